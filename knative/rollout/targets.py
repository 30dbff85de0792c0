"""What is rolled out: an InferenceService in Knative mode, or a plain Knative Service: both share traffic out by revisions.

A Knative Service names revisions and percentages itself. Under KServe `canaryTrafficPercent` of a component does it: the newest
revision gets so much, the rest goes to `status.components.*.latestRolledoutRevision`, by the tag `prev`. KServe 0.17 counts a
revision as rolled out at 100 %; and where the newest revision is the one that it counts, a percentage below 100 makes it take
the one before. So a percentage is only ever written together with a template that makes a new revision, or after one.
"""

import copy
from collections.abc import Mapping
from typing import Any

from torpor.knative.cluster import Cluster, ClusterRefused, Object
from torpor.predictors.errors import InvalidInput

SERVING = "serving.knative.dev/v1"
KSERVE = "serving.kserve.io/v1beta1"
COMPONENTS = ("predictor", "transformer", "explainer")
_MODE = "serving.kserve.io/deploymentMode"
_TAGS = "serving.kserve.io/enable-tag-routing"
_NO_TEMPLATE = ("autoscaling.knative.dev/min-scale", "autoscaling.knative.dev/max-scale",
                "kubectl.kubernetes.io/last-applied-configuration", "serving.knative.dev/rollout-duration")  # fmt: skip
"""Annotations of an InferenceService that no revision gets, so that changing them makes none."""


class KnativeService:
    """kind, name: of the object. document: what to apply; None to take something back only."""

    api_version, kind, tag = SERVING, "Service", "candidate"

    def __init__(self, cluster: Cluster, namespace: str, name: str, document: Object | None = None) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.name = name
        self.document = document
        if document is not None and not _all_to_latest(document.get("spec", {}).get("traffic")):
            raise InvalidInput("spec.traffic is given, must be left out: a rollout shares the traffic out itself")

    def live(self) -> Object | None:
        return self.cluster.get(self.api_version, self.kind, self.namespace, self.name)

    def services(self, live: Object | None) -> dict[str, str]:
        return {self.name: self.name}

    def changed(self, live: Object, planned: Object) -> list[str]:
        """Of its Knative Services, those that get a new revision."""
        return [self.name] if live["spec"]["template"] != planned["spec"]["template"] else []

    def stable(self, live: Object, name: str) -> str:
        """The revision with most of the traffic; '' where none has any."""
        shares: dict[str, int] = {}
        for target in live.get("status", {}).get("traffic") or ():
            revision = target.get("revisionName", "")
            shares[revision] = shares.get(revision, 0) + (target.get("percent") or 0)
        return max(shares, key=lambda revision: shares[revision], default="")

    def planned(self, stable: Mapping[str, str], candidate: bool) -> Object:
        """What to apply: with a candidate, all traffic stays with the stable revision and the newest is reached by its tag."""
        document = copy.deepcopy(self.document or {})
        if stable and candidate:
            document["spec"]["traffic"] = [
                {"revisionName": stable[self.name], "latestRevision": False, "percent": 100},
                {"latestRevision": True, "percent": 0, "tag": self.tag},
            ]
        return document

    def shift(self, percent: int, stable: Mapping[str, str], candidate: Mapping[str, str]) -> None:
        old: Object = {"revisionName": stable.get(self.name), "latestRevision": False, "percent": 100 - percent}
        new: Object = {
            "revisionName": candidate.get(self.name),
            "latestRevision": False,
            "percent": percent,
            "tag": self.tag,
        }
        newest: Object = {"latestRevision": True, "percent": 100}
        traffic = {0: [old], 100: [newest]}.get(percent, [old, new])
        self._share(traffic)

    def offer(self, stable: Mapping[str, str], candidate: Mapping[str, str]) -> None:
        """Give a candidate that was taken back its address again, and no traffic."""
        old = {"revisionName": stable[self.name], "latestRevision": False, "percent": 100}
        new = {"revisionName": candidate[self.name], "latestRevision": False, "percent": 0, "tag": self.tag}
        self._share([old, new])

    def _share(self, traffic: list[Object]) -> None:
        self.cluster.merge(self.api_version, self.kind, self.namespace, self.name, {"spec": {"traffic": traffic}})


class InferenceService:
    """As above; each component is a Knative Service of its own, NAME-predictor and so on."""

    api_version, kind, tag = KSERVE, "InferenceService", "latest"

    def __init__(self, cluster: Cluster, namespace: str, name: str, document: Object | None = None) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.name = name
        self.document = document
        for component in COMPONENTS:
            given = ((document or {}).get("spec", {}).get(component) or {}).get("canaryTrafficPercent")
            if given is not None:
                what = f"spec.{component}.canaryTrafficPercent = {given}, must be left out"
                raise InvalidInput(f"{what}: a rollout shares the traffic out itself")

    def live(self) -> Object | None:
        live = self.cluster.get(self.api_version, self.kind, self.namespace, self.name)
        for found in (live, self.document):
            metadata = (found or {}).get("metadata", {})
            mode = (found or {}).get("status", {}).get("deploymentMode") or (metadata.get("annotations") or {}).get(
                _MODE
            )
            if mode not in (None, "Knative", "Serverless"):
                why = "only Knative shares traffic out between revisions"
                raise InvalidInput(f"deploymentMode = {mode}, must be Knative for a rollout: {why}")
        return live

    def services(self, live: Object | None) -> dict[str, str]:
        spec = (live or self.document or {}).get("spec", {})
        return {f"{self.name}-{component}": component for component in COMPONENTS if component in spec}

    def changed(self, live: Object, planned: Object) -> list[str]:
        everything = _template_metadata(live) != _template_metadata(planned)
        return [
            f"{self.name}-{component}"
            for component in COMPONENTS
            if component in live["spec"]
            and component in planned["spec"]
            and (everything or _without_percent(live, component) != _without_percent(planned, component))
        ]

    def stable(self, live: Object, name: str) -> str:
        components = live.get("status", {}).get("components") or {}
        return str((components.get(self._component(name)) or {}).get("latestRolledoutRevision", ""))

    def planned(self, stable: Mapping[str, str], candidate: bool) -> Object:
        document = copy.deepcopy(self.document or {})
        metadata = document["metadata"]
        metadata["annotations"] = {**(metadata.get("annotations") or {}), _TAGS: "true"}
        for name in stable if candidate else ():
            if (component := self._component(name)) in document["spec"]:
                document["spec"][component]["canaryTrafficPercent"] = 0
        return document

    def keep_percents(self, document: Object, live: Object, changed: list[str]) -> None:
        """What a component that gets no new revision has, it keeps: after a rollback it is 0."""
        for component in COMPONENTS:
            percent = (live["spec"].get(component) or {}).get("canaryTrafficPercent")
            if percent is not None and component in document["spec"] and f"{self.name}-{component}" not in changed:
                document["spec"][component]["canaryTrafficPercent"] = percent

    def shift(self, percent: int, stable: Mapping[str, str], candidate: Mapping[str, str]) -> None:
        spec = {self._component(name): {"canaryTrafficPercent": percent} for name in candidate}
        self.cluster.merge(self.api_version, self.kind, self.namespace, self.name, {"spec": spec})

    def offer(self, stable: Mapping[str, str], candidate: Mapping[str, str]) -> None:
        """The newest revision keeps its address."""

    def _component(self, name: str) -> str:
        return name.removeprefix(f"{self.name}-")


Target = KnativeService | InferenceService


def target_of(cluster: Cluster, namespace: str, document: Object) -> Target | None:
    """None: an object that is applied as it is. Raises InvalidInput."""
    metadata = document.get("metadata") or {}
    kind: type[Target] | None = _TARGETS.get((str(document.get("apiVersion")), str(document.get("kind"))))
    return kind(cluster, metadata.get("namespace") or namespace, metadata["name"], document) if kind else None


def find_target(cluster: Cluster, namespace: str, name: str) -> Target:
    """By the name alone. Raises ClusterRefused where there is none."""
    for kind in (InferenceService, KnativeService):
        target = kind(cluster, namespace, name)
        try:
            found = target.live()
        except ClusterRefused as error:
            if error.status or "knows no" not in str(error):
                raise
            found = None  # a cluster without KServe
        if found is not None:
            return target
    raise ClusterRefused(f"no InferenceService and no Knative Service {name} in the namespace {namespace}", 404)


_TARGETS: dict[tuple[str, str], type[Target]] = {
    (KSERVE, "InferenceService"): InferenceService,
    (SERVING, "Service"): KnativeService,
}


def _all_to_latest(traffic: Any) -> bool:
    return not traffic or (len(traffic) == 1 and traffic[0].get("latestRevision") is True and not traffic[0].get("tag"))


def _without_percent(isvc: Object, component: str) -> Object:
    return {key: value for key, value in isvc["spec"][component].items() if key != "canaryTrafficPercent"}


def _template_metadata(isvc: Object) -> tuple[Object, Object]:
    annotations = isvc["metadata"].get("annotations") or {}
    kept = {key: value for key, value in annotations.items() if key not in _NO_TEMPLATE}
    return kept, isvc["metadata"].get("labels") or {}
