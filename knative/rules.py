"""The rules that no schema has, by id, and which of them a document is held against.

A rule is here for what a webhook refuses, for what a controller does in silence, and for what cannot work. What each says was
seen on a cluster (KServe 0.17, Knative Serving 1.21, Eventing 1.15) or read in the source of KServe 0.20, Knative Serving 1.23
and Eventing 1.22.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from . import rules_events, rules_knative, rules_kserve, rules_runtime, rules_set
from .fields import fields_of
from .findings import Finding
from .manifests import Document
from .schema import Schemas

ERRORS = {
    # of any file
    "yaml": "it can't be read: syntax, a key twice, an alias in its own anchor",
    "template": "a template of Helm, Jinja or ERB, or a shell variable, is left in",
    "api-version": "no such version of this kind",
    "kind": "the group has no such kind",
    "unknown-field": "the schema has no such field: it is dropped",
    "missing": "the schema requires the field",
    "type": "the value is of another type; an annotation without quotes, say",
    "value": "the value is not among those, or outside the range or pattern, of the schema",
    "duplicate-item": "two items of a list have the same key, two containers one name",
    "name": "a name that the API server or KServe refuses",
    "duplicate-object": "the files have the same object twice",
    # InferenceService
    "deployment-mode": "the annotation's word is none that KServe knows: it silently means the default",
    "autoscaler-class": "hpa, keda, external and none; kpa is refused",
    "one-predictor": "exactly one of model, a framework, containers",
    "model-name-field": "a model or framework may not have a `name`",
    "container-first": "with several containers kserve-container must be the first",
    "protocol-env": "PROTOCOL of a custom predictor is v1 or v2",
    "blocked-env": "PYTHONPATH is refused",
    "storage-uri": "no such scheme, or storageUri beside storageUris",
    "transformer-storage": "a transformer-container beside the predictor may have no STORAGE_URI",
    "replicas": "minReplicas above maxReplicas, or below 0",
    "canary": "`canary` needs Standard mode, unlike names and at most 100 percent; canaryTrafficPercent is in [0, 100]",
    "scale-metric": "what the mode's autoscaler cannot scale by",
    "logger-mode": "a logger without mode is refused",
    "deployment-strategy": "only for Standard mode",
    # ServingRuntime, ClusterServingRuntime
    "runtime-template": "a placeholder that KServe can't fill in",
    "runtime-container": "no container named kserve-container",
    "runtime-priority": "one model format with two priorities",
    "runtime-protocol": "a protocol version that KServe doesn't know",
    # InferenceGraph
    "graph": "no root, a node that is not there, weights that are not 100",
    # Knative Service, and InferenceServices in Knative mode
    "timeout": "timeouts above Knative's 600 s, or below 0",
    "container-concurrency": "in [0, 1000]",
    "port": "one port in all containers, named http1 or h2c or not at all, TCP, none of Knative's own",
    "reserved-env": "PORT, K_SERVICE, K_CONFIGURATION, K_REVISION are Knative's",
    "reserved-name": "a container's name that Knative or KServe uses itself",
    "mount": "a volume that is mounted nowhere, a mount without volume, a path that is Knative's",
    "probe": "a probe that Knative or Kubernetes refuses",
    "autoscaling": "an autoscaling annotation out of its range",
    "annotation-place": "an annotation where Knative refuses it",
    "service-token": "automountServiceAccountToken may only be false",
    "traffic": "percents that are not 100, a tag twice, a revision that is named and the latest",
    "resources": "a quantity that is none, or a limit below its request",
    # Broker, Trigger, SinkBinding and their like
    "filter": "an attribute's name, or a filter with no dialect or several",
    "subscriber": "neither ref nor uri, a relative uri, or a ref without name",
    "sink-kind": "an InferenceService can't be addressed by Eventing",
    "delivery": "a duration that is not ISO 8601, a policy or count that is none",
    "binding": "a SinkBinding's subject or overrides that Eventing refuses",
}
WARNINGS = {
    "deployment-mode-missing": "without the annotation the cluster's default counts",
    "min-replicas": "Standard mode has no scale to zero: 0 becomes 1, or holds no requests",
    "canary-ignored": "canaryTrafficPercent in Standard mode",
    "scale-annotation": "min-scale and max-scale of an InferenceService are dropped",
    "ignored-annotation": "nobody reads it, or not in this mode or place",
    "model-name": "a custom predictor of KServe's SDK gets no --model_name",
    "transformer-protocol": "a stock transformer in front of v2 or gRPC needs --predictor_protocol",
    "transformer-workers": "containerConcurrency becomes --workers of a stock transformer, whose workers answer 501",
    "transformer-host": "a stock transformer in front of gRPC needs --predictor_host with a port",
    "batcher": "the agent batches v1 only",
    "knative-drops": "Knative has no such field: KServe's controller drops it in silence",
    "knative-feature": "a feature of Knative's that is off unless config-features says otherwise",
    "drain": "a timeout below 45 s leaves the process no time after SIGTERM",
    "idle-timeout": "ends every answer that is slower, and streams",
    "readiness": "without a readiness probe a pod gets requests before its model is loaded",
    "resources-default": "KServe's defaults, 1 core and 2Gi, as requests and limits",
    "memory-unit": "memory in thousandths of a byte, or too little for any process",
    "unfiltered": "a trigger without filter gets the answers of its subscriber again",
    "filter-ignored": "`filter` beside `filters`",
    "back-off": "retries without back-off follow each other at once",
    "dead-letter": "what fails for good is lost",
    "delivery-timeout": "a delivery ends before a pod at zero has started",
    "retry-after": "retryAfterMax needs a feature that is off",
    "sink-name": "the name is an InferenceService's; its Knative Service has another",
    "broker-name": "the files have brokers, but none of this name",
}
RULES = ERRORS | WARNINGS
"""What each rule is about, for the reader of docs/validate.md."""

_BY_KIND = {
    ("serving.kserve.io", "InferenceService"): rules_kserve.inference_service,
    ("serving.kserve.io", "ServingRuntime"): rules_runtime.serving_runtime,
    ("serving.kserve.io", "ClusterServingRuntime"): rules_runtime.serving_runtime,
    ("serving.kserve.io", "InferenceGraph"): rules_kserve.inference_graph,
    ("serving.knative.dev", "Service"): rules_knative.service,
    ("serving.knative.dev", "Configuration"): rules_knative.service,
    ("eventing.knative.dev", "Broker"): rules_events.broker,
    ("eventing.knative.dev", "Trigger"): rules_events.trigger,
    ("messaging.knative.dev", "Subscription"): rules_events.subscription,
    ("flows.knative.dev", "Sequence"): rules_events.sequence,
    ("flows.knative.dev", "Parallel"): rules_events.parallel,
    ("sources.knative.dev", "SinkBinding"): rules_events.sink_binding,
    ("sources.knative.dev", "PingSource"): rules_events.source,
    ("sources.knative.dev", "ContainerSource"): rules_events.source,
    ("sources.knative.dev", "ApiServerSource"): rules_events.source,
}


def check(document: Document, schemas: Schemas) -> Iterator[Finding]:
    """Of one document by itself: what keeps it from being read, then its schema, then the rules of its kind."""
    for fault in document.faults:
        yield Finding("template" if fault.template else "yaml", (), None, "readable", fault.message, line=fault.line)
    if document.data is None:
        return
    if not isinstance(document.data, dict) or not document.kind or not document.api_version:
        yield Finding("kind", (), document.data, "an object with apiVersion and kind", "it is none of Kubernetes'")
        return
    yield from schemas.kind(document.api_version, document.kind)
    top = fields_of(document)
    unknown = set()
    if schemas.source(document.api_version, document.kind):
        yield from rules_set.metadata(top, document.kind)
        for finding in schemas.check(document.data):
            yield finding
            if finding.rule == "unknown-field":
                unknown.add(finding.place)
    rule = _BY_KIND.get((document.api_version.rpartition("/")[0], document.kind))
    if rule is not None:
        # What KServe does not know it drops itself, before Knative could.
        yield from (f for f in rule(top, schemas) if f.rule != "knative-drops" or f.place not in unknown)


def findings(documents: list[Document], schemas: Schemas) -> Iterator[tuple[Document, Finding]]:
    """Of all documents, and of what they are together; each with its severity, and none twice."""
    seen = set()
    each = ((document, finding) for document in documents for finding in check(document, schemas))
    for document, finding in _chain(each, rules_set.together(documents)):
        key = (id(document), finding.rule, finding.place, finding.line)
        unreadable = {fault.line for fault in document.faults}
        if key not in seen and (finding.line or document.line_of(finding.place) not in unreadable):
            seen.add(key)
            default = "error" if finding.rule in ERRORS else "warning"
            if finding.rule not in RULES:
                raise KeyError(finding.rule)
            yield document, replace(finding, severity=finding.severity or default)


def _chain(*parts: Iterable[tuple[Document, Finding]]) -> Iterator[tuple[Document, Finding]]:
    for part in parts:
        yield from part
