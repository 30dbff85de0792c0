"""A cluster's API server, in the few calls that torpor makes: the only module that imports `kubernetes` (the extra `knative`).

Objects are plain dicts. Where to, and as whom, is what kubectl would take: $KUBECONFIG, ~/.kube/config, or a pod's own account.
The library knows credentials and certificates; the calls are made over its pool of connections, since its methods for
server-side apply and for proxying differ between its versions.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from torpor.predictors.errors import InvalidInput, Unavailable

FIELD_MANAGER = "torpor"
CALL_TIMEOUT_S = 10.0
"""Of one call: a webhook behind it may take all of its own ten seconds."""

Object = dict[str, Any]

_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class ClusterAway(Unavailable):
    """The API server was not reached, or said that it cannot answer now: the same call may do later."""


class ClusterRefused(InvalidInput):
    """The API server said no. status: its HTTP status. reason: its word for it, such as Conflict.

    causes: what it says of fields.
    """

    def __init__(self, message: str, status: int = 0, reason: str = "", causes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.causes = causes


class Cluster(Protocol):
    """What a rollout asks of a cluster. Every call raises ClusterAway or ClusterRefused."""

    def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        """None: there is none of that name."""

    def list(self, api_version: str, kind: str, namespace: str, labels: str = "", fields: str = "") -> list[Object]: ...

    def apply(self, document: Object, namespace: str, *, dry_run: bool = False, force: bool = False) -> Object:
        """Server-side apply; the object as it stands afterwards, or would. force: take fields over from other managers."""

    def merge(self, api_version: str, kind: str, namespace: str, name: str, patch: Object) -> Object:
        """A JSON merge patch (RFC 7386)."""

    def log(self, namespace: str, pod: str, container: str, lines: int, previous: bool = False) -> str: ...

    def ask_pod(self, namespace: str, pod: str, port: int, path: str) -> str:
        """GET of a pod's port, through the API server."""


class ApiServer:
    """A real one. context: of the kubeconfig; None for its current one."""

    def __init__(self, context: str | None = None) -> None:
        """Raises ClusterRefused where no configuration is found, or the extra is missing."""
        try:
            from kubernetes import client, config
        except ImportError:
            raise ClusterRefused("the package kubernetes is missing: pip install torpor[knative]") from None
        settings = client.Configuration()
        try:
            self.namespace = _configure(config, settings, context)
        except (config.ConfigException, OSError) as error:
            raise ClusterRefused(f"no cluster: {error}") from None
        settings.retries = False
        self._settings = settings
        self._pool = client.ApiClient(settings).rest_client.pool_manager
        self._resources: dict[str, dict[str, tuple[str, bool]]] = {}

    def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        try:
            return self._json("GET", self._path(api_version, kind, namespace, name))
        except ClusterRefused as error:
            if error.status == 404:
                return None
            raise

    def list(self, api_version: str, kind: str, namespace: str, labels: str = "", fields: str = "") -> list[Object]:
        query = {"labelSelector": labels, "fieldSelector": fields}
        items: list[Object] = self._json("GET", self._path(api_version, kind, namespace), query)["items"]
        return items

    def apply(self, document: Object, namespace: str, *, dry_run: bool = False, force: bool = False) -> Object:
        metadata = document["metadata"]
        path = self._path(
            document["apiVersion"], document["kind"], metadata.get("namespace", namespace), metadata["name"]
        )
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict", "force": str(force).lower()}
        query["dryRun"] = "All" if dry_run else ""
        # JSON is YAML, which is what this content type says.
        return self._json("PATCH", path, query, document, "application/apply-patch+yaml")

    def merge(self, api_version: str, kind: str, namespace: str, name: str, patch: Object) -> Object:
        query = {"fieldManager": FIELD_MANAGER}
        path = self._path(api_version, kind, namespace, name)
        return self._json("PATCH", path, query, patch, "application/merge-patch+json")

    def log(self, namespace: str, pod: str, container: str, lines: int, previous: bool = False) -> str:
        query = {"container": container, "tailLines": str(lines), "previous": "true" if previous else ""}
        return self._call("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}/log", query)

    def ask_pod(self, namespace: str, pod: str, port: int, path: str) -> str:
        return self._call("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy{path}", {})

    def _path(self, api_version: str, kind: str, namespace: str, name: str = "") -> str:
        root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        if api_version not in self._resources:
            try:
                found = self._json("GET", root)["resources"]
            except ClusterRefused as error:
                if error.status != 404:
                    raise
                raise ClusterRefused(f"the cluster knows no {api_version}: is its operator installed?") from None
            self._resources[api_version] = {
                entry["kind"]: (entry["name"], entry["namespaced"]) for entry in found if "/" not in entry["name"]
            }
        if kind not in self._resources[api_version]:
            raise ClusterRefused(f"the cluster knows no kind {kind} in {api_version}")
        plural, namespaced = self._resources[api_version][kind]
        path = f"{root}/namespaces/{quote(namespace)}/{plural}" if namespaced else f"{root}/{plural}"
        return f"{path}/{quote(name)}" if name else path

    def _json(
        self, method: str, path: str, query: Mapping[str, str] = {}, body: Object | None = None, media_type: str = ""
    ) -> Object:
        read: Object = json.loads(self._call(method, path, query, body, media_type))
        return read

    def _call(
        self, method: str, path: str, query: Mapping[str, str], body: Object | None = None, media_type: str = ""
    ) -> str:
        import urllib3

        auth: Any = self._settings.auth_settings()
        headers = {entry["key"]: entry["value"] for entry in auth.values()}
        if body is not None:
            headers["Content-Type"] = media_type
        given = urlencode({key: value for key, value in query.items() if value})
        url = f"{self._settings.host}{path}" + (f"?{given}" if given else "")
        data = None if body is None else json.dumps(body)
        try:
            answer = self._pool.request(method, url, body=data, headers=headers, timeout=CALL_TIMEOUT_S, retries=False)
        except urllib3.exceptions.HTTPError as error:
            raise ClusterAway(f"{self._settings.host}: {error}") from None
        text = answer.data.decode("utf-8", "replace")
        if answer.status < 300:
            return str(text)
        raise _failure(answer.status, text)


def _configure(config: Any, settings: Any, context: str | None) -> str:
    """The namespace that kubectl would use. Raises config's ConfigException."""
    named = os.environ.get("KUBECONFIG")
    file = named or str(Path("~/.kube/config").expanduser())
    if not named and context is None and not Path(file).exists():
        config.load_incluster_config(client_configuration=settings)
        return _OWN_NAMESPACE.read_text()
    config.load_kube_config(file, context, settings)
    contexts, current = config.list_kube_config_contexts(file)
    chosen = next((entry for entry in contexts if entry["name"] == context), current)
    return str(chosen["context"].get("namespace") or "default")


def _failure(status: int, text: str) -> ClusterAway | ClusterRefused:
    """429 and 5xx may pass; but a 500 that names its reason is an answer, as webhooks that fail have."""
    try:
        said = json.loads(text)
        message, reason = str(said["message"]), str(said.get("reason", ""))
        causes = tuple(str(cause.get("message", "")) for cause in (said.get("details") or {}).get("causes") or ())
    except (ValueError, KeyError, TypeError, AttributeError):
        message, reason, causes = " ".join(text.split())[:300] or f"status {status}", "", ()
    if status in (429, 502, 503, 504) or (status == 500 and "webhook" not in message):
        return ClusterAway(f"status {status}: {message}")
    return ClusterRefused(message, status, reason, causes)
