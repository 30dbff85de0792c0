"""What is to run: each component of an InferenceService, and each Knative Service, as one kind of thing.

Names are those that KServe gives the Knative Services that it makes (NAME-predictor, NAME-transformer), so that a Trigger finds
them. What KServe and Knative would add is added here: min-scale, environment, a transformer's arguments.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..autoscaling import PREFIX, AnnotationError, Autoscaling
from ..durations import seconds
from .documents import Document, UpError

_TIMEOUT_S = 300.0
"""config-defaults' revision-timeout-seconds."""
_PROGRESS_S = 600.0
"""config-deployment's progress-deadline."""
_FORMATS = ("torpor", "pytorch")
_LEGACY = (
    "sklearn", "xgboost", "tensorflow", "pytorch", "triton", "onnx", "huggingface", "pmml", "lightgbm", "paddle",
)  # fmt: skip


@dataclass(frozen=True)
class Service:
    """name: of the Knative Service. owner: of the InferenceService, "" for a plain one. role: predictor, transformer, service.

    container: as it stands in the YAML. storage_uri: "" for none. predictor: the name of the service that a transformer asks,
    "" for none. probe: the readiness probe's path, "" for TCP. where: FILE:LINE. notes: what is not as on a cluster.
    """

    name: str
    owner: str
    role: str
    container: dict[str, Any]
    autoscaling: Autoscaling
    timeout_s: float
    progress_s: float
    storage_uri: str
    predictor: str
    probe: str
    where: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """services: in the order of the files, a transformer before its predictor. brokers, triggers, bindings: of Eventing."""

    services: Sequence[Service]
    brokers: Sequence[Document] = ()
    triggers: Sequence[Document] = ()
    bindings: Sequence[Document] = ()
    left_out: Sequence[str] = field(default_factory=tuple)


def plan(documents: Sequence[Document]) -> Plan:
    """Raises UpError."""
    services: list[Service] = []
    brokers: list[Document] = []
    triggers: list[Document] = []
    bindings: list[Document] = []
    left_out: list[str] = []
    for document in documents:
        match document.kind:
            case ("serving.kserve.io", "InferenceService"):
                services += _inference_service(document)
            case ("serving.knative.dev", "Service"):
                services.append(_knative_service(document))
            case ("eventing.knative.dev", "Broker"):
                brokers.append(document)
            case ("eventing.knative.dev", "Trigger"):
                triggers.append(document)
            case ("sources.knative.dev", "SinkBinding"):
                bindings.append(document)
            case (_, kind):
                left_out.append(f"{document.where}: {kind or 'a document without kind'} {document.name}".rstrip())
    names = [service.name for service in services]
    for name in names:
        if names.count(name) > 1:
            raise UpError(f"{name} is there twice, must be one component")
    if not services:
        raise UpError("nothing to run: no InferenceService and no Knative Service in the files")
    return Plan(services, brokers, triggers, bindings, left_out)


def _inference_service(document: Document) -> list[Service]:
    spec = document.spec
    for part in spec:
        if part not in ("predictor", "transformer"):
            raise UpError(f"{document.where}: spec.{part} is not run here, must be predictor or transformer")
    if not isinstance(spec.get("predictor"), dict):
        raise UpError(f"{document.where}: spec.predictor is missing")
    predictor = f"{document.name}-predictor"
    found = []
    if "transformer" in spec:
        found.append(_component(document, "transformer", spec["transformer"], predictor))
    found.append(_component(document, "predictor", spec["predictor"], ""))
    return found


def _component(document: Document, role: str, spec: dict[str, Any], predictor: str) -> Service:
    where = f"{document.where}: spec.{role}"
    for legacy in _LEGACY:
        if legacy in spec:
            raise UpError(f"{where}.{legacy} is not run here, must be model with modelFormat torpor, or containers")
    storage_uri = ""
    if "model" in spec:
        container = dict(spec["model"])
        name = (container.pop("modelFormat", None) or {}).get("name")
        if name not in _FORMATS:
            raise UpError(f"{where}.model.modelFormat.name = {name!r}, must be one of {', '.join(_FORMATS)}")
        storage_uri = container.pop("storageUri", "")
        if not storage_uri:
            raise UpError(f"{where}.model.storageUri is missing; storage and storageUris are not read here")
        container.setdefault("image", "torpor")
    else:
        container = _first_container(spec, where)
        for variable in container.get("env") or ():
            if variable.get("name") == "STORAGE_URI":
                storage_uri = str(variable.get("value", ""))
    # As KServe does: the InferenceService's annotations, those of the component first, min-scale from minReplicas alone.
    annotations = {**document.annotations, **(spec.get("annotations") or {})}
    annotations[PREFIX + "min-scale"] = str(spec.get("minReplicas", 1))
    annotations.pop(PREFIX + "max-scale", None)
    if spec.get("scaleTarget") is not None:
        annotations[PREFIX + "target"] = str(spec["scaleTarget"])
    if spec.get("scaleMetric"):
        annotations[PREFIX + "metric"] = spec["scaleMetric"]
    return _service(
        f"{document.name}-{role}", document.name, role, container, annotations, spec.get("containerConcurrency"),
        spec.get("timeout"), storage_uri, predictor, where,
    )  # fmt: skip


def _knative_service(document: Document) -> Service:
    template = document.spec.get("template") or {}
    spec = template.get("spec") or {}
    where = f"{document.where}: spec.template"
    annotations = (template.get("metadata") or {}).get("annotations") or {}
    return _service(
        document.name, "", "service", _first_container(spec, f"{where}.spec"), annotations,
        spec.get("containerConcurrency"), spec.get("timeoutSeconds"), "", "", where,
    )  # fmt: skip


def _service(
    name: str,
    owner: str,
    role: str,
    container: dict[str, Any],
    annotations: dict[str, Any],
    concurrency: Any,
    timeout: Any,
    storage_uri: str,
    predictor: str,
    where: str,
) -> Service:
    if not name:
        raise UpError(f"{where}: metadata.name is missing")
    try:
        autoscaling = Autoscaling.of(annotations, int(concurrency or 0))
        progress = annotations.get("serving.knative.dev/progress-deadline")
        progress_s = seconds(progress) if progress else _PROGRESS_S
    except AnnotationError as error:
        raise UpError(f"{where}: annotation {error}") from error
    except ValueError as error:
        raise UpError(f"{where}: {error}") from error
    notes = []
    probe = container.get("readinessProbe") or {}
    if "exec" in probe or "grpc" in probe:
        notes.append("its readiness probe is not HTTP: it counts as ready when its port takes connections")
    if autoscaling.min_scale > 1:
        notes.append(f"min-scale {autoscaling.min_scale}: one instance here")
    timeout_s = _TIMEOUT_S if timeout is None else float(timeout)
    path = str((probe.get("httpGet") or {}).get("path", ""))
    return Service(
        name, owner, role, container, autoscaling, timeout_s, progress_s, storage_uri, predictor, path, where,
        tuple(notes),
    )  # fmt: skip


def _first_container(spec: dict[str, Any], where: str) -> dict[str, Any]:
    containers = spec.get("containers")
    if not isinstance(containers, list) or not containers or not isinstance(containers[0], dict):
        raise UpError(f"{where}.containers is missing, must have one container")
    if len(containers) > 1:
        names = ", ".join(str(one.get("name")) for one in containers[1:])
        raise UpError(f"{where}.containers has {len(containers)}, must have one here; {names} would not run")
    return dict(containers[0])
