"""A model's workload on a node: a Knative Service where the node carries Knative, else a Deployment that sleeps by itself.

The Deployment's one container is `torpor up`, whose activator holds requests while the model's process wakes, and ends it when
nobody asks; the pod stays and keeps some 60 MiB. Its InferenceService lies beside it as a ConfigMap. Models come from the
node's bundle, by a volume over the folder that it serves; a digest in the pod's annotations starts a new pod for new weights.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torpor.knative.quantities import memory
from torpor.knative.render import (
    Map,
    Model,
    Wanted,
    beside,
    complete,
    components,
    dump,
    load,
    new_service,
    plain_service,
)

from ..contents import checked_name
from ..refused import Refused
from .objects import selector
from .profile import Profile
from .sandbox import VARIABLES
from .sizing import Sizes, sizes

MODELS = "/mnt/torpor"
"""Where a pod has the node's models."""

WINDOW = "60s"
"""Without a request, until a model sleeps: Knative's default too."""


@dataclass(frozen=True)
class Workload:
    """service: an InferenceService. model: of its predictor, None if nothing is known of it. digest: of the model's folder.

    node_root: where the node has its bundles.
    """

    service: Map
    model: Model | None
    digest: str
    image: str
    namespace: str
    node_root: str

    @property
    def name(self) -> str:
        return str(self.service["metadata"]["name"])


def folder_digest(folder: Path) -> str:
    """Of all files by their paths."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"sha256:{digest.hexdigest()}"


def service_of(text: str, model: Model | None, path: str, image: str) -> Map:
    """The InferenceService of a file, or with no text a new one of a model. path: in the image, "" for the node's own models.

    Raises Refused.
    """
    if not text:
        assert model is not None, "a workload is of a model's folder or of an InferenceService"
        text = new_service(model, "", path or f"{MODELS}/{model.name}", image)
    services = [document for document in load(text) if document.get("kind") == "InferenceService"]
    if len(services) != 1:
        raise Refused("malformed", f"the service's file has {len(services)} InferenceServices, must have one")
    (service,) = services
    try:
        predictor = service["spec"]["predictor"]
        name = service["metadata"]["name"]
    except (KeyError, TypeError):
        raise Refused("malformed", "the InferenceService must have metadata.name and spec.predictor") from None
    checked_name(name, "the InferenceService's name")
    if "model" in predictor:
        args = json.dumps([_local(predictor.pop("model"))])
        # As a document, so that comments can stand in it.
        container = load(f"name: kserve-container\nimage: {json.dumps(image)}\nargs: {args}\n")[0]
        predictor["containers"] = [container]
    return service


def _local(model: Map) -> str:
    """Where a pod has what `storageUri` names."""
    uri = str(model.get("storageUri", ""))
    claim, _, path = uri.removeprefix("pvc://").partition("/")
    if not uri.startswith("pvc://") or not claim or not path:
        raise Refused(
            "malformed",
            f"storageUri = {uri!r}, must be pvc://CLAIM/NAME: a node has the models of its bundle, by their names",
        )
    return f"{MODELS}/{path}"


def workload_files(given: Workload, profile: Profile) -> Iterator[tuple[str, str]]:
    """Names and contents. Raises Refused where the model does not fit the node."""
    model = given.model or Model(given.name)
    if model.device.startswith("cuda") and profile.accelerator != "cuda":
        raise Refused(
            "profile", f"{profile.name}: the model's device is {model.device}, must be cpu or auto: it has no CUDA"
        )
    said = _variables(given.service) & {"TORPOR_DEVICE", "TORPOR_THREADS"}
    may_repeat = not said and model.device in ("auto", "cpu")
    fit = sizes(profile, model.weights_bytes, model.max_batch_size, may_repeat=may_repeat)
    has_volume = MODELS in str(_containers(given.service))
    if has_volume:
        yield "models.yaml", _volume(given)
    if profile.has_knative:
        yield from _knative(given, profile, fit, has_volume)
    else:
        yield from _deployment(given, profile, fit, has_volume)


def _containers(service: Map) -> list[Any]:
    return [
        container
        for part in ("predictor", "transformer")
        if isinstance(service["spec"].get(part), dict)
        for container in service["spec"][part].get("containers") or ()
    ]


def _variables(service: Map) -> set[str]:
    """The names of those that the predictor's container has."""
    container = service["spec"]["predictor"]["containers"][0]
    return {variable.get("name") for variable in container.get("env") or ()}


def _size(service: Map, profile: Profile, fit: Sizes, gpu: str) -> None:
    """Give the predictor's first container what the node has for it, unless its author has said otherwise."""
    predictor = service["spec"]["predictor"]
    container = predictor["containers"][0]
    wanted: dict[str, tuple[int | str, str]] = {
        "TORPOR_THREADS": (fit.threads, fit.why_threads),
        "TORPOR_MAX_BATCH_SIZE": (fit.max_batch_size, fit.why_batch),
    }
    if profile.is_sandboxed:
        wanted |= VARIABLES
    if fit.instances > 1:
        wanted["TORPOR_DEVICE"] = (fit.device, fit.why_instances)
    there = _variables(service)
    lines = "".join(
        f'- {{ name: {name}, value: "{value}" }} # {why}\n'
        for name, (value, why) in wanted.items()
        if name not in there
    )
    if lines:
        new = load(f"env:\n{lines}")[0]["env"]
        for variable in container.get("env") or ():
            new.append(variable)
        container["env"] = new
    if gpu and "resources" not in container:
        container["resources"] = load(_resources(fit, gpu))[0]
    if "containerConcurrency" not in predictor:
        predictor["containerConcurrency"] = min(1000, 2 * fit.max_batch_size * fit.instances)
        each = f" for each of {fit.instances} instances" if fit.instances > 1 else ""
        predictor.yaml_add_eol_comment(
            f"two batches of {fit.max_batch_size}{each}: one runs, one forms", "containerConcurrency"
        )


def _resources(fit: Sizes, gpu: str) -> str:
    size = memory(fit.memory_bytes)
    return f"""\
requests:
  cpu: {fit.cpu_request} # {fit.why_request}
  memory: {size} # {fit.why_memory}
limits:
  cpu: "{fit.cpu}" # {fit.why_cpu}
  memory: {size}{gpu}
"""


def _gpu(profile: Profile) -> str:
    return '\n  nvidia.com/gpu: "1"' if profile.accelerator == "cuda" else ""


def _volume(given: Workload) -> str:
    volume = f"{given.namespace}-{given.name}-models"
    return f"""\
# The models of the bundle that the node serves. A claim, since Pod Security forbids a pod to name a folder of its node.
apiVersion: v1
kind: PersistentVolume
metadata:
  name: {volume}
spec:
  capacity: {{ storage: 1Gi }} # nothing measures it
  accessModes: [ReadOnlyMany]
  storageClassName: ""
  hostPath: {{ path: {given.node_root}/current/model, type: Directory }} # a link that moves with an update; a pod keeps its own
  claimRef: {{ namespace: {given.namespace}, name: {given.name}-models }}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {given.name}-models
  namespace: {given.namespace}
spec:
  accessModes: [ReadOnlyMany]
  storageClassName: ""
  volumeName: {volume}
  resources: {{ requests: {{ storage: 1Gi }} }}
"""


def _knative(given: Workload, profile: Profile, fit: Sizes, has_volume: bool) -> Iterator[tuple[str, str]]:
    service = given.service
    gpu = _gpu(profile)
    _size(service, profile, fit, gpu)
    predictor = service["spec"]["predictor"]
    container = predictor["containers"][0]
    if "resources" not in container:
        container["resources"] = load(_resources(fit, gpu))[0]
    if profile.is_sandboxed:
        predictor.setdefault("runtimeClassName", "gvisor")
    predictor.setdefault("nodeSelector", selector(profile))
    if has_volume:
        claim = {"claimName": f"{given.name}-models", "readOnly": True}
        predictor.setdefault("volumes", []).append({"name": "models", "persistentVolumeClaim": claim})
        container.setdefault("volumeMounts", []).append({"name": "models", "mountPath": MODELS, "readOnly": True})
    wanted = Wanted(mode="Knative", plain_service=True, ingress_namespaces=("kourier-system",))
    complete(service, wanted, given.model)
    rendered = plain_service(service)
    rendered["metadata"]["namespace"] = given.namespace
    if given.digest:
        rendered["spec"]["template"]["metadata"]["annotations"]["torpor.dev/model"] = given.digest
    yield "service.yaml", dump(rendered)
    for name, text in beside(list(components(service, "Knative", True)), "Knative", wanted):
        place = f"\n  name: {given.name}\n"
        yield name, text.replace(place, f"{place}  namespace: {given.namespace}\n", 1)


FEATURES = """\
# kubectl -n knative-serving patch configmap config-features --patch-file config-features.yaml
# Without these Knative refuses the fields of pods that name the sandbox, the node, and the volume with its models.
data:
  kubernetes.podspec-runtimeclassname: enabled
  kubernetes.podspec-nodeselector: enabled
  kubernetes.podspec-persistent-volume-claim: enabled
"""


def _deployment(given: Workload, profile: Profile, fit: Sizes, has_volume: bool) -> Iterator[tuple[str, str]]:
    service, name, namespace = given.service, given.name, given.namespace
    images = {str(container.get("image", "")) for container in _containers(service)}
    if images != {given.image}:
        raise Refused(
            "malformed",
            f"{name}: images = {', '.join(sorted(images))}, must be {given.image} alone: its components share one pod",
        )
    _size(service, profile, fit, "")
    predictor = service["spec"]["predictor"]
    for key, value in (("minReplicas", 0), ("timeout", 60)):
        predictor.setdefault(key, value)
    service["metadata"].setdefault("annotations", {}).setdefault("autoscaling.knative.dev/window", WINDOW)
    inner = "".join(f"    {line}\n" if line else "\n" for line in dump(service).splitlines())
    config = f"""\
# What `torpor up` runs in the pod.
apiVersion: v1
kind: ConfigMap
metadata:
  name: {name}
  namespace: {namespace}
data:
  service.yaml: |
{inner}"""
    yield "configmap.yaml", config
    digest = "sha256:" + hashlib.sha256(inner.encode()).hexdigest()
    yield "deployment.yaml", _pod(given, profile, fit, has_volume, digest)
    yield (
        "service.yaml",
        f"""\
apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: {namespace}
spec:
  selector: {{ app.kubernetes.io/name: {name} }}
  ports:
    - {{ name: http, port: 80, targetPort: 8080, appProtocol: kubernetes.io/h2c }} # HTTP/1.1, HTTP/2 and gRPC
""",
    )
    yield (
        "networkpolicy.yaml",
        f"""\
# In: this namespace, and kube-system for K3s's load balancer. Out: nowhere, since model and weights are the node's own.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {name}
  namespace: {namespace}
spec:
  podSelector:
    matchLabels: {{ app.kubernetes.io/name: {name} }}
  policyTypes: [Ingress, Egress]
  ingress:
    - from:
        - podSelector: {{}}
        - namespaceSelector:
            matchLabels: {{ kubernetes.io/metadata.name: kube-system }}
      ports:
        - port: 8080
  egress: []
""",
    )


def _indented(text: str, blanks: int) -> str:
    return "".join(f"{' ' * blanks}{line}\n" for line in text.splitlines())


def _pod(given: Workload, profile: Profile, fit: Sizes, has_volume: bool, config_digest: str) -> str:
    name = given.name
    annotations = f"        torpor.dev/service: {config_digest} # another service.yaml is another pod\n"
    if given.digest:
        annotations += f"        torpor.dev/model: {given.digest} # other weights too\n"
    runtime = "      runtimeClassName: gvisor\n" if profile.is_sandboxed else ""
    labels = "".join(f'        {key}: "{value}"\n' for key, value in selector(profile).items())
    pull = "Never # no link: the image came with the bundle" if profile.link == "none" else "IfNotPresent"
    mounts = f"            - {{ name: models, mountPath: {MODELS}, readOnly: true }}\n" if has_volume else ""
    volumes = f"        - {{ name: models, persistentVolumeClaim: {{ claimName: {name}-models, readOnly: true }} }}\n"
    return f"""\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {name}
  namespace: {given.namespace}
spec:
  replicas: 1 # the pod is an activator; more would each hold a model awake
  strategy: {{ type: Recreate }} # the node has no memory for two
  selector:
    matchLabels: {{ app.kubernetes.io/name: {name} }}
  template:
    metadata:
      labels: {{ app.kubernetes.io/name: {name} }}
      annotations:
{annotations}\
    spec:
{runtime}\
      nodeSelector:
{labels}\
      automountServiceAccountToken: false # torpor never asks the API server
      enableServiceLinks: false
      terminationGracePeriodSeconds: 95 # a request's 60 seconds, and 30 for the model's process to end
      securityContext:
        runAsNonRoot: true # the image's user is 65532; this and the container's are Pod Security's restricted standard
        seccompProfile: {{ type: RuntimeDefault }}
      containers:
        - name: torpor
          image: {given.image}
          imagePullPolicy: {pull}
          command: [torpor, up, /etc/torpor/service.yaml, --host, 0.0.0.0, --state, /tmp/torpor-up, --image, "{given.image}"]
          ports:
            - {{ name: http, containerPort: 8080 }}
          readinessProbe:
            tcpSocket: {{ port: 8080 }} # an HTTP probe would be a request, and keep the model awake
          resources:
{_indented(_resources(fit, _gpu(profile)), 12)}\
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {{ drop: [ALL] }}
          volumeMounts:
            - {{ name: service, mountPath: /etc/torpor, readOnly: true }}
            - {{ name: tmp, mountPath: /tmp }}
{mounts}\
      volumes:
        - {{ name: service, configMap: {{ name: {name} }} }}
        - {{ name: tmp, emptyDir: {{ sizeLimit: 256Mi }} }} # torpor up's lock, and what a model writes
{volumes if has_volume else ""}"""
