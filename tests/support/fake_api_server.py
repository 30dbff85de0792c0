"""An API server that knows one plain Knative Service, does at once what it is told, and can be made to fail.

Only for faults that a real cluster does not have on demand: what it answers otherwise is tested on a real one.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

NAMESPACE = "default"
KINDS = {"/apis/serving.knative.dev/v1": {"Service": "services", "Revision": "revisions"},
          "/api/v1": {"Pod": "pods", "Event": "events"}}  # fmt: skip


class FakeApiServer:
    """away: answers 503 to everything. refusal: of the webhook, for every apply and patch of a spec; None for none.

    ready: whether new revisions become ready. unready: the status and the reason of those that do not. events: warnings that it
    has. errors: a request of the newest revision fails. manager: who owns the service's fields. restarts: of each pod's
    container.
    """

    kinds = KINDS

    def __init__(self) -> None:
        self.away = False
        self.refusal: str | None = None
        self.forbidden = False
        self.ready = True
        self.unready = ("Unknown", "Deploying")
        self.errors = False
        self.manager = ""
        self.restarts = 0
        self.events: list[dict[str, Any]] = []
        self.service: dict[str, Any] | None = None
        self.revisions: dict[str, bool] = {}
        self.asked = 0
        self.requests: dict[str, int] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeApiServer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def traffic(self) -> dict[str, int]:
        """Percent by revision, without those that have none."""
        assert self.service is not None
        shares: dict[str, int] = {}
        for target in self.service["status"]["traffic"]:
            shares[target["revisionName"]] = shares.get(target["revisionName"], 0) + target.get("percent", 0)
        return {revision: share for revision, share in shares.items() if share}

    def get_ready(self) -> None:
        """All revisions."""
        self.ready = True
        self.revisions = dict.fromkeys(self.revisions, True)
        self._reconcile(False)

    def deploy(self) -> None:
        """Somebody else makes a new revision."""
        assert self.service is not None
        template = {**self.service["spec"]["template"], "changed": len(self.revisions)}
        self.service["spec"]["template"] = template
        self._reconcile(True)

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        if self.away:
            return 503, {"message": "away"}
        if path in self.kinds:
            kinds = self.kinds[path].items()
            return 200, {"resources": [{"kind": k, "name": n, "namespaced": True} for k, n in kinds]}
        last = path.rsplit("/", 1)[-1]
        if method == "PATCH":
            return self._patch(query, body)
        if "/services/" in path:
            return (200, self.service) if self.service else (404, {"message": "not found"})
        if "/revisions/" in path:
            return (200, self._revision(last)) if last in self.revisions else (404, {"message": "not found"})
        if path.endswith("/events"):
            return 200, {"items": self.events}
        if path.endswith("/pods"):
            return 200, {"items": [self._pod(query["labelSelector"][0].rpartition("=")[2])]}
        if path.endswith("/log"):
            return 200, "the last line of its log"
        if "/proxy/" in path:
            return self._metrics(path.split("/pods/")[1].partition("-pod:")[0])
        return 404, {"message": f"nobody knows {path}"}

    def _patch(self, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        if self.refusal and "spec" in body:
            return 400, {"message": f'admission webhook "x" denied the request: {self.refusal}', "reason": "BadRequest"}
        if self.manager and query.get("force") == ["false"]:
            cause = {"message": f'conflict with "{self.manager}" using v1', "field": ".spec.template"}
            return 409, {"message": "Apply failed", "reason": "Conflict", "details": {"causes": [cause]}}
        if self.service is None and "apiVersion" not in body:
            return 404, {"message": "not found"}
        old = json.loads(json.dumps(self.service or {"metadata": {"namespace": NAMESPACE}, "spec": {}, "status": {}}))
        new = merged(old, body)
        if query.get("dryRun"):
            return 200, new
        changed = (self.service or {}).get("spec", {}).get("template") != new["spec"]["template"]
        self.service = new
        self._reconcile(changed)
        return 200, self.service

    def _reconcile(self, changed: bool) -> None:
        assert self.service is not None
        status = self.service["status"]
        if changed:
            name = f"{self.service['metadata']['name']}-{len(self.revisions) + 1:05}"
            self.revisions[name] = self.ready
            status["latestCreatedRevisionName"] = name
        newest = status["latestCreatedRevisionName"]
        if self.revisions[newest]:
            status["latestReadyRevisionName"] = newest
        latest = status.get("latestReadyRevisionName", "")
        traffic = self.service["spec"].get("traffic") or [{"latestRevision": True, "percent": 100}]
        status["traffic"] = [
            {**each, "revisionName": each.get("revisionName") or latest, "url": self.url} for each in traffic if latest
        ]
        status["url"] = self.url
        status["conditions"] = [{"type": "RoutesReady", "status": "True" if latest else "Unknown"}]
        generation = self.service["metadata"].get("generation", 0) + 1
        self.service["metadata"]["generation"] = status["observedGeneration"] = generation

    def _revision(self, name: str) -> dict[str, Any]:
        status, reason = ("True", "") if self.revisions[name] else self.unready
        condition = {"type": "Ready", "status": status, "reason": reason}
        return {"metadata": {"name": name}, "status": {"conditions": [condition]}}

    def _pod(self, revision: str) -> dict[str, Any]:
        return {
            "metadata": {"name": f"{revision}-pod", "namespace": NAMESPACE},
            "spec": {"containers": [{"name": "model", "ports": [{"containerPort": 8080}]}]},
            "status": {
                "phase": "Running",
                "containerStatuses": [{"name": "model", "state": {"running": {}}, "restartCount": self.restarts}],
            },
        }

    def _metrics(self, revision: str) -> tuple[int, Any]:
        """A hundred requests more with each look."""
        if self.forbidden:
            return 403, {"message": "pods/proxy is forbidden", "reason": "Forbidden"}
        self.requests[revision] = count = self.requests.get(revision, 0) + 100
        status = 500 if self.fails(revision) else 200
        return 200, f'torpor_requests_total{{protocol="rest",status="{status}"}} {count}.0\n'

    def fails(self, revision: str) -> bool:
        assert self.service is not None
        return self.errors and revision == self.service["status"]["latestCreatedRevisionName"]


def merged(old: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    kept = old if isinstance(old, dict) else {}
    return {**kept, **{key: merged(kept.get(key), value) for key, value in patch.items()}}


def _handler(server: FakeApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body are two writes

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            server.asked += 1
            status, said = server.answer(self.command, url.path, parse_qs(url.query), body)
            text = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_PATCH = do_GET  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            """Not in a test's output."""

    return Handler
