"""Rules of KServe: InferenceService in both modes, InferenceGraph.

Sources: kserve/kserve pkg/apis/serving/v1beta1/inference_service_validation.go, component.go, pkg/controller/v1beta1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from . import rules_knative
from .autoscaling import PREFIX
from .fields import Field
from .findings import Finding
from .rules_pod import containers, pod
from .schema import Schemas

GROUP = "serving.kserve.io/"
MODE = GROUP + "deploymentMode"
AUTOSCALER = GROUP + "autoscalerClass"
COMPONENTS = ("predictor", "transformer", "explainer")
FRAMEWORKS = (
    "sklearn", "xgboost", "tensorflow", "pytorch", "triton", "onnx", "huggingface", "pmml", "lightgbm", "paddle",
)  # fmt: skip

_MODES = {"Standard": "Standard", "RawDeployment": "Standard", "Knative": "Knative", "Serverless": "Knative"}
_AUTOSCALERS = ("hpa", "keda", "external", "none")
_SCHEMES = (
    "gs",
    "s3",
    "pvc",
    "hdfs",
    "webhdfs",
    "http",
    "https",
    "file",
    "hf",
    "oci",
    "oci+native",
    "azure",
    "git",
    "huggingface",
)
_SPEC_SCHEMES = ("s3", "hdfs", "webhdfs")
_UNREAD = ("metrics", "targetUtilizationPercentage")
_SDK_FLAGS = (
    "--http_port", "--grpc_port", "--workers", "--enable_grpc", "--max_threads", "--enable_latency_logging",
    "--predictor_host", "--predictor_protocol", "--enable_predictor_health_check", "--log_config_file",
)  # fmt: skip
_OWN_FIELDS = {
    "minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "autoScaling", "timeout",
    "canaryTrafficPercent", "logger", "batcher", "labels", "annotations", "deploymentStrategy", "model", "storageUris",
    "storageContainerName", "workerSpec", "name", "art", *FRAMEWORKS,
}  # fmt: skip
"""What of a component is KServe's, and no part of the pod that Knative gets."""


@dataclass(frozen=True)
class _Service:
    """mode: Standard, Knative or, where the annotation is missing or wrong, ''."""

    top: Field
    mode: str

    @property
    def components(self) -> list[Field]:
        return [part for name in COMPONENTS if (part := self.top["spec"][name])]

    @property
    def autoscaler(self) -> str:
        return self.top["metadata"]["annotations"][AUTOSCALER].text or "hpa"

    @property
    def knative(self) -> str | None:
        """The severity of what only Knative refuses: a warning where the mode is not said; None: Standard."""
        return {"Knative": "", "": "warning"}.get(self.mode)


def inference_service(top: Field, schemas: Schemas) -> Iterator[Finding]:
    written = top["metadata"]["annotations"][MODE]
    service = _Service(top, _MODES.get(written.text, ""))
    if not written:
        why = "the cluster's config map says what it is otherwise, Knative as shipped, and it can't be changed later"
        yield written.finding("deployment-mode-missing", "Standard or Knative", why)
    elif not service.mode:
        why = "ModelMesh never gets ready" if written.text == "ModelMesh" else "KServe takes it and uses the default"
        yield written.finding("deployment-mode", "Standard or Knative", f"{why}; it can't be changed later")
    yield from _annotations(service)
    for component in service.components:
        yield from _component(service, component)
    yield from _predictor(top["spec"]["predictor"])
    if top["spec"]["transformer"]:
        yield from _transformer(top["spec"]["predictor"], top["spec"]["transformer"])
    yield from _canaries(service)
    if service.knative is not None:
        for finding in _in_knative_mode(service, schemas):
            yield finding if not service.knative or finding.severity else _weaker(finding, service.knative)


def _weaker(finding: Finding, severity: str) -> Finding:
    return Finding(
        finding.rule, finding.place, finding.value, finding.must, finding.why + " (in Knative mode)", severity
    )


def _annotations(service: _Service) -> Iterator[Finding]:
    annotations = service.top["metadata"]["annotations"]
    scaler = annotations[AUTOSCALER]
    if scaler and scaler.text not in _AUTOSCALERS:
        why = (
            "KServe refuses kpa, which is what Knative mode uses anyway"
            if scaler.text == "kpa"
            else "KServe refuses others"
        )
        yield scaler.finding("autoscaler-class", f"one of {', '.join(_AUTOSCALERS)}", why)
    for name in _UNREAD:
        if annotations[GROUP + name]:
            why = "nobody reads this annotation any more"
            yield annotations[GROUP + name].finding(
                "ignored-annotation", "scaleMetric or scaleTarget of the component", why
            )
    for holder in (annotations, *(component["annotations"] for component in service.components)):
        for name, annotation in holder.entries.items():
            if name.startswith(PREFIX) and service.mode == "Standard" and not name.endswith("/class"):
                yield annotation.finding(
                    "ignored-annotation", "left out", "in Standard mode there is no Knative to read it"
                )
            elif name in (PREFIX + "min-scale", PREFIX + "max-scale", PREFIX + "minScale", PREFIX + "maxScale"):
                field = "minReplicas" if "min" in name else "maxReplicas"
                why = "KServe drops the annotation and writes its own, of minReplicas and maxReplicas"
                yield annotation.finding("scale-annotation", f"{field} of the component", why)
    yield from rules_knative.rollout_duration(annotations)


def _component(service: _Service, component: Field) -> Iterator[Finding]:
    yield from pod(component)
    yield from rules_knative.concurrency(component["containerConcurrency"])
    least, most = component["minReplicas"], component["maxReplicas"]
    for field in (least, most):
        if field.number is not None and field.number < 0:
            yield field.finding("replicas", "at least 0", "KServe refuses it")
    if most.number and (least.number if least.number is not None else 1) > most.number:
        yield most.finding(
            "replicas", f"at least minReplicas, {least.number or 1:g}, or 0 for no limit", "KServe refuses it"
        )
    if component["logger"] and not component["logger"]["mode"]:
        yield component["logger"]["mode"].finding(
            "logger-mode", "all, request or response", "KServe refuses a logger without"
        )
    percent = component["canaryTrafficPercent"]
    if percent.number is not None and not 0 <= percent.number <= 100:
        yield percent.finding("canary", "in [0, 100]", "Knative refuses it")
    if service.mode == "Standard":
        yield from _in_standard_mode(service, component)
    for container in containers(component):
        for variable in container["env"]:
            if variable["name"].text == "PYTHONPATH":
                yield variable["name"].finding(
                    "blocked-env", "another", "KServe refuses it, as it can replace any module"
                )
    if (first := component["containers"][0]) and not first["image"].text:
        yield first["image"].finding("missing", "given", "a container of one's own has no default image")
    if component["batcher"] and (component["model"]["protocolVersion"].text or _env(first, "PROTOCOL") or "v1") != "v1":
        why = "its :predict is v1's; requests in v2 or gRPC pass it as they are, and errors come back as HTTP 200"
        yield component["batcher"].finding("batcher", "left out", why)
    elif component["batcher"] and is_torpor(first):
        why = "torpor batches itself; the agent's batcher takes v1 JSON only, and hides errors as HTTP 200"
        yield component["batcher"].finding("batcher", "left out", why)
    if first and not first["resources"]["requests"] and not first["resources"]["limits"]:
        why = (
            "KServe adds 1 core and 2Gi as requests and limits: too much for a small node, too little for a large model"
        )
        yield first["resources"].finding("resources-default", "given", why)
    serving = next((c for c in component["containers"] if c["name"].text == "kserve-container"), first)
    if serving and not serving["readinessProbe"]:
        why = "the default asks for an open port only, and a pod may get requests before its model is there"
        yield serving["readinessProbe"].finding("readiness", "given, /v2/health/ready for torpor", why)


def _in_standard_mode(service: _Service, component: Field) -> Iterator[Finding]:
    least, percent, metric = component["minReplicas"], component["canaryTrafficPercent"], component["scaleMetric"]
    if least.number == 0:
        if service.autoscaler == "hpa":
            yield least.finding(
                "min-replicas", "at least 1", "the HPA of Standard mode has no scale to zero: KServe makes it 1"
            )
        elif service.autoscaler == "keda":
            why = "nothing holds a request while there is no pod, so it fails; only Knative mode wakes with a request"
            yield least.finding("min-replicas", "at least 1", why)
    if percent.number is not None:
        why = "Standard mode ignores it, and all traffic goes to the new version at once; `canary` is what it has"
        yield percent.finding("canary-ignored", "left out", why)
    if metric and service.autoscaler == "keda":
        yield metric.finding("scale-metric", "left out", "KServe refuses it with KEDA, which has autoScaling.metrics")
    elif metric.text in ("concurrency", "rps") and service.autoscaler == "hpa":
        yield metric.finding("scale-metric", "cpu or memory", "the HPA of Standard mode scales by no other")
    target = component["scaleTarget"]
    by_cpu = service.autoscaler == "hpa" and (metric.text or "cpu") == "cpu"
    if by_cpu and target.number is not None and not 1 <= target.number <= 100:
        why = "it is the HPA's percentage of CPU, and KServe refuses others"
        yield target.finding("scale-metric", "in [1, 100]", why)


def _in_knative_mode(service: _Service, schemas: Schemas) -> Iterator[Finding]:
    annotations = service.top["metadata"]["annotations"]
    hpa = annotations[PREFIX + "class"].text.startswith("hpa.") or annotations[AUTOSCALER].text == "hpa"
    for name, annotation in annotations.entries.items():
        if name.startswith(PREFIX) and name.endswith(("-scale", "Scale")) and name[len(PREFIX) :][:3] in ("min", "max"):
            continue
        if name.startswith((PREFIX, "serving.knative.dev/progress")):
            one = Field({name: annotation.value}, annotations.place)
            yield from rules_knative.annotations(one, Field(None))
    for component in service.components:
        yield from rules_knative.annotations(component["annotations"], component["containerConcurrency"])
        yield from rules_knative.timeouts(component, "timeout")
        if component["containers"]:
            yield from rules_knative.revision(component)
        own = (
            {name: value for name, value in component.value.items() if name not in _OWN_FIELDS}
            if isinstance(component.value, dict)
            else {}
        )
        yield from rules_knative.drops(Field(own, component.place), schemas)
        if component["deploymentStrategy"]:
            why = "KServe refuses it: only Standard mode has a Deployment of its own"
            yield component["deploymentStrategy"].finding("deployment-strategy", "left out", why)
        metric = component["scaleMetric"]
        if metric.text in ("cpu", "memory") and not hpa:
            yield metric.finding(
                "scale-metric", "concurrency or rps", "Knative's autoscaler scales by no other; KServe refuses it"
            )


def _predictor(predictor: Field) -> Iterator[Finding]:
    if not isinstance(predictor.value, dict):
        return
    given = [name for name in ("model", *FRAMEWORKS) if predictor[name]]
    names = [container["name"].text for container in predictor["containers"]]
    if len(given) > 1:
        why = f"{' and '.join(given)} are two models, and KServe refuses it"
        yield predictor[given[1]].finding("one-predictor", "the only one", why)
    elif not given and not names:
        why = "KServe refuses a predictor with nothing to run"
        yield predictor.finding("one-predictor", "one with model, a framework or containers", why)
    for name in given:
        if predictor[name]["name"].text:
            yield predictor[name]["name"].finding(
                "model-name-field", "left out", "KServe refuses it; the model is named like the service"
            )
        yield from _storage(predictor[name], predictor)
    yield from _containers(predictor, bool(given))
    for container in predictor["containers"]:
        if container["name"].text == "transformer-container" and _env(container, "STORAGE_URI"):
            yield container["env"].finding(
                "transformer-storage", "without STORAGE_URI", "KServe refuses it: the model is the predictor's"
            )
    first = predictor["containers"][0]
    for variable in first["env"]:
        if variable["name"].text == "PROTOCOL" and variable["value"].value not in ("v1", "v2"):
            why = "KServe refuses others, gRPC too: the server speaks what it speaks, this is for the status only"
            yield variable["value"].finding("protocol-env", "v1 or v2", why)
        if variable["name"].text == "STORAGE_URI":
            yield from _scheme(variable["value"])
    arguments = [*first["command"].texts, *first["args"].texts]
    if _is_sdk(first) and not _has(arguments, "--model_name", "--model-name"):
        why = "KServe passes a custom predictor no arguments; its SDK answers 404 under the service's name"
        yield first["args"].finding("model-name", "with --model_name=NAME", why)


def _containers(component: Field, model: bool) -> Iterator[Finding]:
    names = [container["name"].text for container in component["containers"]]
    if len(names) > 1 and not model and "kserve-container" in names[1:]:
        place = component["containers"][names.index("kserve-container", 1)]["name"]
        why = "KServe gives the first that name too, and the service is refused for two of one name"
        yield place.finding("container-first", "the first of the containers", why)


def _storage(model: Field, predictor: Field) -> Iterator[Finding]:
    uri = model["storageUri"]
    yield from _scheme(uri)
    if uri and predictor["storageUris"]:
        yield uri.finding("storage-uri", "left out beside storageUris", "KServe refuses both")
    if uri.text and model["storage"] and uri.text.partition("://")[0] not in _SPEC_SCHEMES:
        must = f"one of {', '.join(f'{scheme}://' for scheme in _SPEC_SCHEMES)} beside `storage`"
        yield uri.finding("storage-uri", must, "KServe refuses others")


def _scheme(uri: Field) -> Iterator[Finding]:
    scheme, separator, rest = uri.text.partition("://")
    if (
        uri.text
        and not uri.text.startswith("/")
        and (not separator or not rest or scheme not in _SCHEMES)
        and "{{" not in uri.text
        and "$" not in uri.text
    ):
        must = f"SCHEME://… with one of {', '.join(_SCHEMES[:8])}, hf, oci"
        yield uri.finding("storage-uri", must, "no storage initializer knows it, and the pod never starts")


def _transformer(predictor: Field, transformer: Field) -> Iterator[Finding]:
    first = transformer["containers"][0]
    if not first:
        return
    yield from _containers(transformer, False)
    if is_torpor(first):
        return
    arguments = [*first["command"].texts, *first["args"].texts]
    protocol = _protocol(predictor)
    if protocol != "v1" and not _has(arguments, "--predictor_protocol", "--predictor-protocol"):
        why = f"the predictor speaks {protocol}, KServe passes no protocol, and its SDK takes v1"
        yield first["args"].finding("transformer-protocol", f"with --predictor_protocol={protocol}", why)
    elif protocol == "grpc-v2" and not any(":" in host for host in _values(arguments, "--predictor_host")):
        why = "KServe passes a host without a port, which a gRPC channel needs"
        yield first["args"].finding("transformer-host", "with --predictor_host=HOST:PORT", why)
    concurrency = transformer["containerConcurrency"]
    if (concurrency.number or 0) > 1 and not _has(arguments, "--workers"):
        why = "KServe passes it as --workers, and the SDK's workers answer 501, Could not find PredictorConfig"
        yield concurrency.finding("transformer-workers", "1, or --workers=1 among the arguments", why)


def _protocol(predictor: Field) -> str:
    """What the predictor says that it speaks: v1 unless something says otherwise."""
    for name in ("model", *FRAMEWORKS):
        if predictor[name]:
            ports = {port["name"].text for port in predictor[name]["ports"]}
            written = predictor[name]["protocolVersion"].text
            return "grpc-v2" if written == "grpc-v2" or ports & {"h2c", "grpc-port", "grpc"} else written or "v1"
    first = predictor["containers"][0]
    if is_torpor(first):
        return "v1"  # and all others
    return _env(first, "PROTOCOL") or "v1"


def is_torpor(container: Field) -> bool:
    """Whether it runs torpor, by its image's name or its command."""
    image = container["image"].text.rpartition("/")[2]
    return image.startswith("torpor") or container["command"].texts[:1] == ["torpor"]


def _is_sdk(container: Field) -> bool:
    """Whether its arguments are those of KServe's own server, in an image that is not torpor's."""
    return not is_torpor(container) and _has(container["args"].texts, *_SDK_FLAGS)


def _has(arguments: list[str], *flags: str) -> bool:
    return any(argument.partition("=")[0] in flags for argument in arguments)


def _values(arguments: list[str], flag: str) -> list[str]:
    following = [after for before, after in pairwise(arguments) if before == flag]
    return following + [argument.partition("=")[2] for argument in arguments if argument.startswith(flag + "=")]


def _env(container: Field, name: str) -> str:
    return next((variable["value"].text for variable in container["env"] if variable["name"].text == name), "")


def _canaries(service: _Service) -> Iterator[Finding]:
    canaries = service.top["spec"]["canary"]
    if not [*canaries]:
        return
    if service.mode != "Standard":
        yield canaries.finding(
            "canary", "left out", "KServe refuses it but in Standard mode; canaryTrafficPercent is Knative's"
        )
    total = 0.0
    names = {service.top["spec"]["predictor"]["name"].text}
    for canary in canaries:
        name = canary["predictor"]["name"]
        total += canary["trafficPercent"].number or 0
        if not name.text or name.text in names:
            yield name.finding("canary", "given, and unlike the predictor's and the others'", "KServe refuses it")
        names.add(name.text)
        for fixed in ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling"):
            if canary["predictor"][fixed]:
                yield canary["predictor"][fixed].finding("canary", "left out", "a canary has a fixed number of pods")
    if total > 100:
        yield canaries.finding("canary", f"at most 100 percent in all, not {total:g}", "KServe refuses it")


def inference_graph(top: Field, schemas: Schemas) -> Iterator[Finding]:
    nodes = top["spec"]["nodes"]
    if nodes and "root" not in nodes.entries:
        yield nodes.finding("graph", "with a node `root`", "a request begins there, and KServe refuses a graph without")
    for node in nodes.entries.values():
        weights = 0.0
        for step in node["steps"]:
            weights += step["weight"].number or 0
            if step["nodeName"].text and step["nodeName"].text not in nodes.entries:
                yield step["nodeName"].finding("graph", f"one of {', '.join(nodes.entries)}", "there is no such node")
            targets = [name for name in ("nodeName", "serviceName", "serviceUrl") if step[name].text]
            if len(targets) != 1:
                yield step.finding(
                    "graph", "with one of nodeName, serviceName, serviceUrl", "KServe refuses none or several"
                )
        if node["routerType"].text == "Splitter" and weights != 100:
            yield node["steps"].finding(
                "graph", f"of weights that are 100 in all, not {weights:g}", "KServe refuses it"
            )
