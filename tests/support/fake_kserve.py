"""An API server with one InferenceService: a Knative Service of each component, among whose revisions `canaryTrafficPercent`
shares the traffic out as KServe's controller does (pkg/controller/v1beta1/inferenceservice).
"""

from typing import Any

from fake_api_server import KINDS, NAMESPACE, FakeApiServer, merged

COMPONENTS = ("predictor", "transformer")
_KIND = {"/apis/serving.kserve.io/v1beta1": {"InferenceService": "inferenceservices"}}


class FakeKServe(FakeApiServer):
    """bad: the components whose newest revision fails each request."""

    kinds = KINDS | _KIND

    def __init__(self) -> None:
        super().__init__()
        self.inference_service: dict[str, Any] | None = None
        self.services: dict[str, dict[str, Any]] = {}
        self.bad: set[str] = set()
        self.rolled_out: dict[str, str] = {}

    def shares(self, component: str) -> dict[str, int]:
        """Percent by revision, without those that have none."""
        traffic = self.services[component]["status"]["traffic"]
        return {target["revisionName"]: target["percent"] for target in traffic if target["percent"]}

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        last = path.rsplit("/", 1)[-1]
        if self.away or path in self.kinds:
            return super().answer(method, path, query, body)
        if "/inferenceservices/" in path:
            if method == "PATCH":
                return self._apply(query, body)
            return (200, self.inference_service) if self.inference_service else (404, {"message": "not found"})
        if "/services/" in path:
            service = self.services.get(last.rpartition("-")[2])
            if service is None:
                return 404, {"message": "not found"}
            if method == "PATCH" and not query.get("dryRun"):
                service["metadata"] = merged(service["metadata"], body["metadata"])
            return 200, service
        return super().answer(method, path, query, body)

    def _apply(self, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        old = self.inference_service or {"metadata": {"namespace": NAMESPACE}, "spec": {}, "status": {"components": {}}}
        new = merged(old, body)
        if query.get("dryRun"):
            return 200, new
        self.inference_service = new
        for component in COMPONENTS:
            if component in new["spec"]:
                self._reconcile_component(component, new["spec"][component])
        return 200, new

    def _reconcile_component(self, component: str, spec: dict[str, Any]) -> None:
        assert self.inference_service is not None
        name = f"{self.inference_service['metadata']['name']}-{component}"
        percent = spec.get("canaryTrafficPercent")
        template = {key: value for key, value in spec.items() if key != "canaryTrafficPercent"}
        fresh: dict[str, Any] = {
            "metadata": {"name": name, "namespace": NAMESPACE, "generation": 0},
            "spec": {},
            "status": {},
        }
        service = self.services.setdefault(component, fresh)
        if service["spec"].get("template") != template:
            number = sum(revision.startswith(f"{name}-0") for revision in self.revisions) + 1
            self.revisions[f"{name}-{number:05}"] = self.ready
            service["status"]["latestCreatedRevisionName"] = f"{name}-{number:05}"
            service["spec"]["template"] = template
        newest = service["status"]["latestCreatedRevisionName"]
        rolled_out = self.rolled_out.get(component, "")
        if self.revisions[newest] and percent in (None, 100):
            self.rolled_out[component] = rolled_out = newest
        traffic = [{"latestRevision": True, "revisionName": newest, "percent": 100, "tag": "latest"}]
        if percent not in (None, 100) and rolled_out:
            traffic[0]["percent"] = percent
            traffic.append({"revisionName": rolled_out, "percent": 100 - percent, "tag": "prev"})
        service["status"]["traffic"] = [{**target, "url": self.url} for target in traffic]
        service["status"]["url"] = self.url
        service["status"]["conditions"] = [{"type": "RoutesReady", "status": "True"}]
        service["metadata"]["generation"] += 1
        service["status"]["observedGeneration"] = service["metadata"]["generation"]
        self.inference_service["status"]["components"][component] = {"latestRolledoutRevision": rolled_out}

    def fails(self, revision: str) -> bool:
        return any(
            self.services[component]["status"]["latestCreatedRevisionName"] == revision for component in self.bad
        )
