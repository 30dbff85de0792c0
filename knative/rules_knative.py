"""Rules of Knative Serving: of a hand-written Service, and of what KServe makes of an InferenceService in Knative mode.

Sources: knative/serving pkg/apis/serving/k8s_validation.go, fieldmask.go, metadata_validation.go, pkg/apis/config/features.go.
"""

from collections.abc import Iterator
from dataclasses import replace

from .autoscaling import ANNOTATIONS, PREFIX, AnnotationError, Autoscaling, spellings
from .durations import seconds
from .fields import Field
from .findings import Finding
from .rules_pod import PROBES, containers, pod
from .schema import Schemas

MOST_TIMEOUT_S = 600
"""config-defaults, max-revision-timeout-seconds."""
LEAST_DRAIN_S = 45
"""SIGTERM comes 30 s after a pod's deletion, and the pod's grace period is timeoutSeconds: what is left is for the process."""
MOST_CONCURRENCY = 1000
"""config-defaults, container-concurrency-max-limit."""

_RESERVED_PORTS = (8008, 8012, 8013, 8022, 8112, 9090, 9091)
_RESERVED_ENV = ("PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION")
_RESERVED_PATHS = ("/", "/dev", "/dev/log")
_FEATURES = {
    "affinity": "affinity", "topologySpreadConstraints": "topologyspreadconstraints", "nodeSelector": "nodeselector",
    "tolerations": "tolerations", "runtimeClassName": "runtimeclassname", "schedulerName": "schedulername",
    "priorityClassName": "priorityclassname", "securityContext": "securitycontext",
    "shareProcessNamespace": "shareprocessnamespace", "initContainers": "init-containers", "dnsPolicy": "dnspolicy",
    "dnsConfig": "dnsconfig", "hostAliases": "hostaliases", "hostIPC": "hostipc", "hostPID": "hostpid",
    "hostNetwork": "hostnetwork",
}  # fmt: skip
_VOLUME_FEATURES = {
    "persistentVolumeClaim": "persistent-volume-claim", "hostPath": "volumes-hostpath", "image": "volumes-image",
    "csi": "volumes-csi", "ephemeral": "volumes-ephemeral",
}  # fmt: skip
_OTHER_ANNOTATIONS = ("class", "metric-aggregation-algorithm")
_SHORT = {name: short for short in (*ANNOTATIONS, *_OTHER_ANNOTATIONS) for name in spellings(short)}
_HPA = "hpa.autoscaling.knative.dev"
_CLASSES = ("kpa.autoscaling.knative.dev", _HPA)
_ALGORITHMS = ("linear", "weighted-exponential", "weightedExponential")


def service(top: Field, schemas: Schemas) -> Iterator[Finding]:
    """A hand-written Service or Configuration."""
    for name, annotation in top["metadata"]["annotations"].entries.items():
        if name.startswith(PREFIX):
            yield annotation.finding("annotation-place", "under spec.template.metadata", "Knative refuses it here")
    yield from rollout_duration(top["metadata"]["annotations"])
    template = top["spec"]["template"]
    if "serving.knative.dev/rollout-duration" in template["metadata"]["annotations"].entries:
        rollout = template["metadata"]["annotations"]["serving.knative.dev/rollout-duration"]
        yield rollout.finding(
            "ignored-annotation", "under the Service's own metadata", "nobody reads it in the template"
        )
    spec = template["spec"]
    yield from annotations(template["metadata"]["annotations"], spec["containerConcurrency"])
    yield from pod(spec)
    yield from revision(spec)
    yield from timeouts(spec, "timeoutSeconds")
    yield from concurrency(spec["containerConcurrency"])
    yield from _traffic(top["spec"]["traffic"])
    containers = [*spec["containers"]]
    serving = [c for c in containers if c["ports"]] or containers
    if spec and not containers:
        yield spec["containers"].finding("missing", "given", "a revision has at least one container")
    for container in containers:
        if not container["image"].text:
            yield container["image"].finding("missing", "given", "Knative has no image of its own")
    if serving and not serving[0]["readinessProbe"]:
        why = "Knative's own asks for an open port, which says nothing of the model"
        yield serving[0]["readinessProbe"].finding("readiness", "given", why)


def revision(spec: Field) -> Iterator[Finding]:
    """What Knative refuses in a pod. spec: the pod's, or a component's of an InferenceService."""
    yield from _ports(spec)
    for container in containers(spec):
        yield from _container(container, spec)
    mounted = {mount["name"].text for container in containers(spec) for mount in container["volumeMounts"]}
    for volume in spec["volumes"]:
        if volume["name"].text and volume["name"].text not in mounted:
            yield volume["name"].finding("mount", "mounted by a container", "Knative refuses a volume that none uses")
        for source, feature in _VOLUME_FEATURES.items():
            if volume[source]:
                yield _feature(volume[source], feature)
        claim = volume["persistentVolumeClaim"]
        if claim and claim["readOnly"].value is not True:
            yield _feature(claim, "persistent-volume-write", "readOnly: true, or")
    for field, feature in _FEATURES.items():
        if spec[field]:
            yield _feature(spec[field], feature)
    if spec["automountServiceAccountToken"].value is True:
        yield spec["automountServiceAccountToken"].finding("service-token", "false", "Knative refuses true")


def _feature(field: Field, feature: str, otherwise: str = "") -> Finding:
    must = f"{otherwise} allowed by kubernetes.podspec-{feature}: enabled in config-features".strip()
    return field.finding("knative-feature", must, "Knative refuses it as long as the feature is off, its default")


def _ports(spec: Field) -> Iterator[Finding]:
    ports = [port for container in spec["containers"] for port in container["ports"]]
    for port in ports[1:]:
        yield port["containerPort"].finding("port", "the only one of all containers", "Knative takes one port in total")
    if len([*spec["containers"]]) > 1 and not ports:
        yield spec["containers"].finding("port", "of one container", "of several containers one must name the port")
    for port in ports[:1]:
        name, number = port["name"], port["containerPort"]
        if name and name.value not in ("http1", "h2c", ""):
            why = "h2c is HTTP/2, REST and gRPC alike; Knative refuses other names"
            yield name.finding("port", "http1, h2c or left out", why)
        if number.number in _RESERVED_PORTS:
            yield number.finding("port", f"none of {', '.join(map(str, _RESERVED_PORTS))}", "queue-proxy listens there")
        elif number.number is not None and not 0 <= number.number <= 65535:
            yield number.finding("port", "in [0, 65535]", "Knative refuses it")
        if port["protocol"] and port["protocol"].value != "TCP":
            yield port["protocol"].finding("port", "TCP", "Knative refuses others")


def _container(container: Field, spec: Field) -> Iterator[Finding]:
    serving = bool(container["ports"]) or len([*spec["containers"]]) == 1
    init = container.place[-2] == "initContainers"
    reserved = _RESERVED_ENV if serving and not init else _RESERVED_ENV[1:]
    for variable in container["env"]:
        if variable["name"].text in reserved:
            yield variable["name"].finding("reserved-env", f"none of {', '.join(reserved)}", "Knative sets it itself")
    if container["name"].text == "queue-proxy":
        yield container["name"].finding("reserved-name", "another", "Knative's own container has that name")
    for mount in container["volumeMounts"]:
        path = mount["mountPath"]
        if path.text and (path.text.rstrip("/") or "/") in _RESERVED_PATHS:
            yield path.finding("mount", f"none of {', '.join(_RESERVED_PATHS)}", "Knative refuses it")
    probe = container["readinessProbe"]
    if probe and not probe["periodSeconds"].number:
        for name in ("failureThreshold", "timeoutSeconds"):
            if probe[name].number:
                why = "without periodSeconds Knative probes every 50 ms by its own limits, and refuses this"
                yield probe[name].finding("probe", "left out, or periodSeconds given", why)
    for name in PROBES:
        for handler in ("httpGet", "tcpSocket"):
            port, own = container[name][handler]["port"], container["ports"][0]
            number = own["containerPort"].number or (8080 if serving and not own else None)
            differs = port.number is not None and port.number != 0 and number is not None and port.number != number
            if serving and not init and name == "readinessProbe" and differs:
                yield port.finding("probe", f"the container's port, {number:g}", "queue-proxy asks only that one")


def drops(spec: Field, schemas: Schemas, kind: str = "Service") -> Iterator[Finding]:
    """Fields of a pod that KServe's schema has and Knative's has not; KServe's own fields are left out by the caller."""
    for finding in schemas.check_part("serving.knative.dev/v1", kind, ("spec", "template", "spec"), spec.value):
        if finding.rule == "unknown-field":
            why = "a Knative Service has no such field: KServe's controller drops it without a word, and the service gets ready"
            yield replace(finding, rule="knative-drops", place=(*spec.place, *finding.place), why=why)


def timeouts(spec: Field, name: str) -> Iterator[Finding]:
    """name: of the field with the request's timeout, in seconds."""
    timeout = spec[name]
    for field in (timeout, spec["responseStartTimeoutSeconds"], spec["idleTimeoutSeconds"]):
        if field.number is not None and not 0 <= field.number <= MOST_TIMEOUT_S:
            why = "config-defaults' max-revision-timeout-seconds; KServe takes it, and the service never gets ready"
            yield field.finding("timeout", f"in [0, {MOST_TIMEOUT_S}]", why)
    total = timeout.number if timeout.number is not None else 300
    for field in (spec["responseStartTimeoutSeconds"], spec["idleTimeoutSeconds"]):
        if field.number is not None and total < field.number <= MOST_TIMEOUT_S:
            yield field.finding("timeout", f"at most {name}, {total:g}", "Knative refuses it")
    if timeout.number is not None and 0 < timeout.number < LEAST_DRAIN_S:
        why = (
            "it is the pod's grace period too: SIGTERM comes 30 s after the deletion, or at this time if that is earlier, "
            "and what a start from zero takes counts against it"
        )
        yield timeout.finding("drain", f"at least {LEAST_DRAIN_S}", why)
    if spec["idleTimeoutSeconds"].number:
        why = "any answer that takes longer becomes a 504, and a stream ends with an error's text and status 200"
        yield spec["idleTimeoutSeconds"].finding("idle-timeout", "left out", why)


def concurrency(field: Field) -> Iterator[Finding]:
    """containerConcurrency."""
    if field.number is not None and not 0 <= field.number <= MOST_CONCURRENCY:
        why = "config-defaults' container-concurrency-max-limit"
        yield field.finding("container-concurrency", f"in [0, {MOST_CONCURRENCY}]", why)


def annotations(annotations: Field, container_concurrency: Field) -> Iterator[Finding]:
    """Those of a revision: of a Service's template, or of an InferenceService in Knative mode."""
    read: dict[str, Field] = {}
    scaling_class = ""
    for name, annotation in annotations.entries.items():
        if not name.startswith(PREFIX):
            continue
        short = _SHORT.get(name, "")
        if short == "class":
            scaling_class = annotation.text
            if annotation.text.endswith("autoscaling.knative.dev") and annotation.text not in _CLASSES:
                yield annotation.finding("autoscaling", f"one of {', '.join(_CLASSES)}", "Knative refuses it")
        elif short == "metric-aggregation-algorithm":
            if annotation.text not in _ALGORITHMS:
                yield annotation.finding("autoscaling", f"one of {', '.join(_ALGORITHMS[:2])}", "Knative refuses it")
        elif short:
            read[short] = next(
                annotations[spelling] for spelling in spellings(short) if spelling in annotations.entries
            )
        else:
            yield annotation.finding("ignored-annotation", f"one of {', '.join((*ANNOTATIONS, *_OTHER_ANNOTATIONS))}",
                                     "Knative has no such annotation, and nobody reads it")  # fmt: skip
    if scaling_class == _HPA:
        metric = annotations[PREFIX + "metric"]
        if metric and metric.text in ("concurrency", "rps"):
            yield metric.finding("autoscaling", "cpu, memory or a custom metric", "the class is hpa's")
        return
    for short, annotation in read.items():
        value = annotation.value
        if not isinstance(value, str):
            continue  # the schema says so
        try:
            ANNOTATIONS[short].read(PREFIX + short, value)
        except AnnotationError as error:
            why = "Knative refuses it"
            if short == "metric":
                why = f"the autoscaler of Knative scales by no other; cpu and memory need {PREFIX}class: {_HPA}"
            yield annotation.finding("autoscaling", error.allowed, why)
            return
        if short == "initial-scale" and value == "0":
            why = "Knative refuses 0 as long as config-autoscaler's allow-zero-initial-scale is false, its default"
            yield annotation.finding("autoscaling", "at least 1", why)
    strings = {name: field.value for name, field in annotations.entries.items() if isinstance(field.value, str)}
    try:
        Autoscaling.of(strings, int(container_concurrency.number or 0))
    except AnnotationError as error:
        yield annotations[error.name].finding("autoscaling", error.allowed, "Knative refuses it")
    activation, most = (read.get(short, Field(None)) for short in ("activation-scale", "max-scale"))
    if activation.text and most.text and 0 < int(most.text) < int(activation.text):
        yield activation.finding("autoscaling", f"at most max-scale, {most.text}", "Knative refuses it")
    deadline = annotations["serving.knative.dev/progress-deadline"]
    if deadline:
        yield from _duration(deadline, 1)


def rollout_duration(annotations: Field) -> Iterator[Finding]:
    """Of a Service's or an InferenceService's own metadata."""
    duration = annotations["serving.knative.dev/rollout-duration"]
    if duration:
        yield from _duration(duration, 0)


def _duration(field: Field, least_s: int) -> Iterator[Finding]:
    try:
        good = seconds(field.text) >= least_s and seconds(field.text) == int(seconds(field.text))
    except ValueError:
        good = False
    if not good:
        yield field.finding("autoscaling", f"whole seconds of at least {least_s}, like 60s", "Knative refuses it")


def _traffic(traffic: Field) -> Iterator[Finding]:
    tags: set[str] = set()
    total = 0.0
    for target in traffic:
        total += target["percent"].number or 0
        tag = target["tag"]
        if tag.text and tag.text in tags:
            yield tag.finding("traffic", "unique", "Knative refuses a tag twice")
        tags.add(tag.text)
        if target["revisionName"].text and target["latestRevision"].value is True:
            why = "Knative refuses a revision by name that is the latest as well"
            yield target["latestRevision"].finding("traffic", "false", why)
        if (percent := target["percent"].number) is not None and not 0 <= percent <= 100:
            yield target["percent"].finding("traffic", "in [0, 100]", "Knative refuses it")
    if traffic and [*traffic] and total != 100:
        yield replace(traffic.finding("traffic", "of 100 percent in all", "Knative refuses it"), value=f"{total:g} %")
