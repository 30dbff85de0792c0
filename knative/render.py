"""What a service needs on a cluster, as YAML with a reason beside each number: an InferenceService or Knative Service that is
completed, never overwritten, and the objects beside it.

The user's own file is read and written by ruamel.yaml's round trip, so that comments, order and quotes stay as they were.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from .fields import Field
from .quantities import memory
from .rules_kserve import AUTOSCALER, COMPONENTS, MODE, is_torpor

_MODES = {"RawDeployment": "Standard", "Serverless": "Knative"}
_BASE_BYTES = 300 << 20
_LEAST_BYTES = 1 << 30
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".onnx", ".npz")
"""How files end that are counted as a model's weights."""

KNATIVE_PORTS = (8012, 8013, 8112, 9090, 9091)
"""queue-proxy's for HTTP/1.1, HTTP/2 and TLS, and those that the autoscaler and Prometheus read."""

Map = Any
"""ruamel.yaml's CommentedMap."""


class RenderError(ValueError):
    """What can't be rendered; the message names it and what must be instead."""


@dataclass(frozen=True)
class Model:
    """What a model's folder says of the pod that it needs. weights_bytes: 0 if none lie in it."""

    name: str
    max_batch_size: int = 32
    weights_bytes: int = 0
    device: str = "auto"
    writes: bool = False

    @property
    def memory_bytes(self) -> int:
        """Two and a half times the weights: themselves, once more while they are read, and a batch's activations."""
        wanted = max(_LEAST_BYTES, self.weights_bytes * 5 // 2 + _BASE_BYTES)
        return -(-wanted // (256 << 20)) * (256 << 20)


@dataclass(frozen=True)
class Wanted:
    """How to render. mode: Knative or Standard, '' for what the file says, else Knative. trigger: the events' type, or ''."""

    mode: str = ""
    plain_service: bool = False
    namespace: str = ""
    trigger: str = ""
    broker: str = "default"
    dead_letter: str = ""
    ingress_namespaces: tuple[str, ...] = ("kourier-system", "istio-system")


def read_model(folder: Path) -> Model:
    """Raises SettingError for a folder without model.toml, or a bad one."""
    from torpor.predictors.catalog import find_model_file, version_folder, wanted_versions
    from torpor.predictors.settings import ModelFile

    latest = version_folder(folder, wanted_versions(folder, "latest")[0])
    file = ModelFile.read(find_model_file(folder, latest))
    weights = sum(found.stat().st_size for found in latest.rglob("*") if found.suffix in WEIGHTS and found.is_file())
    return Model(
        file.name or folder.resolve().name,
        file.settings.get("max_batch_size", 32),
        weights,
        file.settings.get("device", "auto"),
        file.settings.get("compile", "off") != "off",
    )


def new_service(model: Model, storage_uri: str, path: str, image: str) -> str:
    """An InferenceService for a model's folder: at storage_uri, by the runtime torpor, or at a path in the image."""
    if storage_uri:
        predictor = f"""\
    model: # the ClusterServingRuntime `torpor` runs it: torpor render --runtime
      modelFormat:
        name: torpor
      storageUri: {storage_uri}
"""
    else:
        predictor = f"""\
    containers:
      - name: kserve-container
        image: {image}
        imagePullPolicy: IfNotPresent
        args: [{path}]
"""
    return f"""\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {model.name}
spec:
  predictor:
{predictor}"""


def load(text: str) -> list[Map]:
    """A file's objects, with its comments. What is no YAML was refused before, by `manifests.read`."""
    return [document for document in _yaml().load_all(text) if document]


def dump(document: Map) -> str:
    stream = StringIO()
    _yaml().dump(document, stream)
    return stream.getvalue()


def complete(service: Map, wanted: Wanted, model: Model | None) -> str:
    """Add to an InferenceService what it lacks. Its mode, Knative or Standard."""
    metadata = service["metadata"]
    if "annotations" not in metadata:
        metadata["annotations"] = _map({})
    annotations = metadata["annotations"]
    said = str(annotations.get(MODE, ""))
    mode = wanted.mode or _MODES.get(said, said) or "Knative"
    if not said:
        _put(
            annotations, MODE, mode, "never left out: the cluster's default counts then, and it can't be changed later"
        )
    elif _MODES.get(said, said) != mode:
        raise RenderError(f"{MODE} = {said!r}, must be {mode}, or --mode left out: a service keeps its mode")
    if mode == "Standard" and AUTOSCALER not in annotations:
        _put(annotations, AUTOSCALER, "external", "the HPA beside it scales: KServe's own has no say in how fast")
    for name in COMPONENTS:
        if isinstance(service["spec"].get(name), dict):
            _component(service["spec"][name], name, mode, model if name == "predictor" else None, service)
    return mode


def _component(component: Map, name: str, mode: str, model: Model | None, service: Map) -> None:
    rows = model.max_batch_size if model else 0
    lacks: list[tuple[str, Any, str]] = []
    if mode == "Knative":
        lacks += [
            ("minReplicas", 0, "sleep when nobody asks; 1 keeps a pod awake"),
            ("maxReplicas", 3, "pods at most; 0 would be no limit"),
        ]
        if rows:
            why = f"two batches of {rows}: one runs, one forms; more wait before the pod"
            lacks.append(("containerConcurrency", min(1000, 2 * rows), why))
        why = "seconds for a request, the start of a sleeping pod included, and for a pod's end, which has a drain of 30 s"
        lacks.append(("timeout", 60, why))
    else:
        lacks += [
            ("minReplicas", 1, "Standard mode has no scale to zero"),
            ("maxReplicas", 3, "the HPA's too"),
        ]
    lacks.append(("automountServiceAccountToken", False, "torpor never asks the API server"))
    for position, (key, value, why) in enumerate(lack for lack in lacks if lack[0] not in component):
        component.insert(position, key, value)
        component.yaml_add_eol_comment(why, key, column=0)
    if isinstance(component.get("model"), dict):
        _resources(component["model"], model or Model(""))
        return
    containers = component.get("containers") or []
    for container in containers:
        if is_torpor(Field(container)):
            _container(container, component, model or Model(""), name)


def _container(container: Map, component: Map, model: Model, name: str) -> None:
    if not container.get("ports"):
        container["ports"] = _flow("[{ name: h2c, containerPort: 8080 }]")
        container.yaml_add_eol_comment(
            "one port for HTTP/1.1, HTTP/2 and gRPC; the name lets Knative send HTTP/2", "ports"
        )
    port = container["ports"][0].get("containerPort", 8080)
    if "readinessProbe" not in container:
        probe = f"{{ httpGet: {{ path: /v2/health/ready, port: {port} }} }}"
        _put(container, "readinessProbe", _flow(probe), "ready when every model is; the default is an open port")
    _resources(container, model if name == "predictor" else Model("", weights_bytes=0))
    security = container.setdefault("securityContext", _map({}))
    for key, value, why in _RESTRICTED:
        _put(security, key, _flow(value) if isinstance(value, str) else value, why)
    mounted = any(mount.get("mountPath") == "/tmp" for mount in container.get("volumeMounts") or ())
    if model.writes and not mounted and security["readOnlyRootFilesystem"] is True:
        container.setdefault("volumeMounts", _flow("[]")).append(_flow("{ name: tmp, mountPath: /tmp }"))
        component.setdefault("volumes", _flow("[]")).append(_flow("{ name: tmp, emptyDir: { sizeLimit: 1Gi } }"))
        container.yaml_add_eol_comment("torch.compile writes its kernels there", "volumeMounts")


_RESTRICTED: tuple[tuple[str, Any, str], ...] = (
    ("runAsNonRoot", True, "the image's user is 65532; this and the next four are Pod Security's restricted standard"),
    ("allowPrivilegeEscalation", False, ""),
    ("readOnlyRootFilesystem", True, "torpor writes nothing"),
    ("capabilities", "{ drop: [ALL] }", ""),
    ("seccompProfile", "{ type: RuntimeDefault }", ""),
)


def _resources(holder: Map, model: Model) -> None:
    """Of a container, or of `model`, whose resources come before the runtime's."""
    if holder.get("resources"):
        return
    size = memory(model.memory_bytes)
    seen = f"weights of {model.weights_bytes / 2**20:.0f} MiB" if model.weights_bytes else "no weights seen"
    gpu = ', nvidia.com/gpu: "1"' if model.device.startswith("cuda") else ""
    resources = _map({})
    _put(
        resources,
        "requests",
        _flow(f"{{ cpu: 500m, memory: {size} }}"),
        "what the scheduler keeps free",
    )
    _put(resources, "limits", _flow(f'{{ cpu: "2", memory: {size}{gpu} }}'),
         f"{seen}: 2.5 times that, and 0.3 GiB of torch; torpor plan measures it")  # fmt: skip
    holder["resources"] = resources


def plain_service(service: Map) -> Map:
    """The same as a Knative Service, without KServe. Raises RenderError for what needs KServe."""
    spec, name = service["spec"], service["metadata"]["name"]
    predictor = spec["predictor"]
    if "transformer" in spec or "explainer" in spec:
        raise RenderError(
            f"{name}: spec.transformer needs KServe, which connects it; --knative-service takes a predictor alone"
        )
    if not predictor.get("containers"):
        raise RenderError(
            f"{name}: spec.predictor.model needs KServe, which fetches it; --knative-service takes containers"
        )
    annotations = {
        "autoscaling.knative.dev/min-scale": str(predictor["minReplicas"]),
        "autoscaling.knative.dev/max-scale": str(predictor["maxReplicas"]),
    }
    given = {**service["metadata"].get("annotations", {}), **predictor.get("annotations", {})}
    annotations |= {key: value for key, value in given.items() if key.startswith("autoscaling.knative.dev/")}
    revision = _map({})
    for there, here in (("containerConcurrency",) * 2, ("timeout", "timeoutSeconds")):
        if there in predictor:
            revision[here] = predictor[there]
    for key in predictor:
        if key in _POD_FIELDS:
            revision[key] = predictor[key]
    first = revision["containers"][0]
    env = first.setdefault("env", _flow("[]"))
    if not any(variable["name"] in ("TORPOR_MODEL_NAME", "INFERENCE_SERVICE_NAME") for variable in env):
        env.append(_flow(f"{{ name: TORPOR_MODEL_NAME, value: {name} }}"))
    template = _map({"metadata": _map({"annotations": _map(annotations)}), "spec": revision})
    metadata = _map({"name": name})
    if labels := service["metadata"].get("labels"):
        metadata["labels"] = labels
    rendered = {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": metadata}
    return _map({**rendered, "spec": _map({"template": template})})


_POD_FIELDS = (
    "automountServiceAccountToken", "containers", "volumes", "serviceAccountName", "imagePullSecrets", "nodeSelector",
    "tolerations", "affinity", "runtimeClassName", "initContainers", "securityContext", "enableServiceLinks",
)  # fmt: skip


@dataclass(frozen=True)
class Component:
    """One kind of pods of a service. labels: theirs. address: apiVersion and name of the Service in front of them."""

    name: str
    labels: Mapping[str, str]
    address: tuple[str, str]
    ports: tuple[int, ...]
    timeout_s: int
    replicas: tuple[int, int]


def components(service: Map, mode: str, plain: bool) -> Iterator[Component]:
    name = service["metadata"]["name"]
    api = "serving.knative.dev/v1" if mode == "Knative" else "v1"
    for part in COMPONENTS:
        component = service["spec"].get(part)
        if not isinstance(component, dict):
            continue
        labels = {"serving.kserve.io/inferenceservice": name, "component": part}
        if plain:
            labels = {"serving.knative.dev/service": name}
        ports = (component.get("containers") or [{}])[0].get("ports") or [{}]
        own = (int(ports[0].get("containerPort", 8080)),)
        yield Component(
            name if plain else f"{name}-{part}",
            labels,
            (api, name if plain else f"{name}-{part}"),
            KNATIVE_PORTS if mode == "Knative" else own,
            int(component.get("timeout", 60)),
            (int(component.get("minReplicas", 1)), int(component.get("maxReplicas", 0) or 10)),
        )


def beside(parts: list[Component], mode: str, wanted: Wanted) -> Iterator[tuple[str, str]]:
    """Name of a file and its text, of every object that goes with a service."""
    yield "networkpolicy.yaml", _documents(_policy(part, parts, mode, wanted) for part in parts)
    yield "poddisruptionbudget.yaml", _documents(_budget(part) for part in parts)
    if mode == "Standard":
        yield "horizontalpodautoscaler.yaml", _documents(_scaler(part) for part in parts)
    if wanted.trigger:
        yield "trigger.yaml", _trigger(_front(parts), wanted)


def kustomization(files: list[str], namespace: str) -> str:
    head = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
    head += f"namespace: {namespace}\n" if namespace else ""
    return head + "resources:\n" + "".join(f"  - {file}\n" for file in files)


def _front(parts: list[Component]) -> Component:
    """Where requests come in: the transformer, if there is one."""
    return next((part for part in parts if part.labels.get("component") == "transformer"), parts[0])


def _documents(texts: Iterator[str]) -> str:
    return "---\n".join(texts)


def _labels(part: Component, indent: int) -> str:
    return "".join(f"{' ' * indent}{key}: {value}\n" for key, value in part.labels.items())


def _policy(part: Component, parts: list[Component], mode: str, wanted: Wanted) -> str:
    sources = ""
    for namespace in dict.fromkeys(("knative-serving",) * (mode == "Knative") + wanted.ingress_namespaces):
        sources += (
            f"        - namespaceSelector:\n            matchLabels: {{ kubernetes.io/metadata.name: {namespace} }}\n"
        )
    front = _front(parts)
    if part is not front:
        sources += "        - podSelector: # the transformer of the same service\n            matchLabels:\n" + _labels(
            front, 14
        )
    who = "Knative's activator and autoscaler, the ingress" if mode == "Knative" else "the ingress"
    ports = "".join(f"        - port: {port}\n" for port in part.ports)
    return f"""\
# Who may talk to these pods: {who}, and where there is one the transformer.
# Add a source for Prometheus, or for clients that call a pod without the ingress.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {part.name}
spec:
  podSelector:
    matchLabels:
{_labels(part, 6)}\
  policyTypes: [Ingress]
  ingress:
    - from:
{sources}\
      ports:{" # queue-proxy's, which stands before the container" if mode == "Knative" else ""}
{ports}"""


def _budget(part: Component) -> str:
    return f"""\
# One pod at a time when nodes are drained. minAvailable: 1 would keep a node from ever being drained of a single pod.
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {part.name}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
{_labels(part, 6)}"""


def _scaler(part: Component) -> str:
    least, most = max(1, part.replicas[0]), max(1, *part.replicas)
    return f"""\
# In KServe's place (autoscalerClass: external), whose own has no `behavior`.
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {part.name}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {part.name}
  minReplicas: {least}
  maxReplicas: {most}
  metrics:
    - type: Resource
      resource:
        name: cpu
        target: {{ type: Utilization, averageUtilization: 80 }} # of the requests; a batch takes its cores whole
  behavior:
    scaleUp: {{ stabilizationWindowSeconds: 0 }} # a queue grows at once
    scaleDown: {{ stabilizationWindowSeconds: 300 }} # a start costs seconds: not for each lull
"""


def _trigger(part: Component, wanted: Wanted) -> str:
    api, name = part.address
    sink = f"""\
    deadLetterSink: # where an event goes whose tries are over
      uri: {wanted.dead_letter}
"""
    return f"""\
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata:
  name: {part.name}
spec:
  broker: {wanted.broker}
  filter:
    attributes:
      type: {wanted.trigger} # without a filter the answers would come back as questions
  subscriber:
    ref: {{ apiVersion: {api}, kind: Service, name: {name} }}
  delivery:
    retry: 10
    backoffPolicy: exponential # linear begins with no wait at all
    backoffDelay: PT0.5S # the last wait is 4 minutes, all of them 8.5
    timeout: PT{part.timeout_s}S # as long as a request may take, a start from zero included
{sink if wanted.dead_letter else ""}"""


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 128
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _flow(text: str) -> Any:
    return _yaml().load(text)


def _map(content: Mapping[str, Any]) -> Map:
    from ruamel.yaml.comments import CommentedMap

    return CommentedMap(content)


def _put(mapping: Map, key: str, value: Any, why: str) -> None:
    """Unless it is there."""
    if key not in mapping:
        mapping[key] = value
        if why:
            mapping.yaml_add_eol_comment(why, key, column=0)
