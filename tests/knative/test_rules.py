"""Each rule of `torpor validate`: a file that keeps it, and one change of it that is named."""

import re
from pathlib import Path

import pytest
from torpor.knative.autoscaling import PREFIX
from torpor.knative.findings import Finding
from torpor.knative.manifests import read
from torpor.knative.rules import ERRORS, RULES, WARNINGS, findings
from torpor.knative.schema import bundled

ROOT = Path(__file__).resolve().parent.parent.parent

ISVC = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: m
  annotations:
    serving.kserve.io/deploymentMode: Knative
spec:
  predictor:
    minReplicas: 0
    maxReplicas: 3
    timeout: 60
    containers:
      - name: kserve-container
        image: example/torpor:1
        ports: [{name: h2c, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /v2/health/ready, port: 8080}}
        resources: {requests: {cpu: 1, memory: 1Gi}, limits: {cpu: 2, memory: 1Gi}}
"""
MODEL = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: m, annotations: {serving.kserve.io/deploymentMode: Standard}}
spec:
  predictor:
    minReplicas: 1
    model: {modelFormat: {name: torpor}, storageUri: "pvc://models/m"}
"""
CHAIN = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: m, annotations: {serving.kserve.io/deploymentMode: Knative}}
spec:
  predictor:
    model: {modelFormat: {name: pytorch}, storageUri: "gs://models/m", protocolVersion: v1}
  transformer:
    containers:
      - name: kserve-container
        image: example/stock:1
        args: [--model_name=m]
        readinessProbe: {tcpSocket: {port: 8080}}
        resources: {limits: {cpu: 1, memory: 1Gi}}
"""
RUNTIME = """\
apiVersion: serving.kserve.io/v1alpha1
kind: ClusterServingRuntime
metadata: {name: r}
spec:
  supportedModelFormats:
    - {name: f, version: "1", autoSelect: true, priority: 3}
    - {name: f, version: "2", autoSelect: true, priority: 3}
  protocolVersions: [v1, v2]
  containers:
    - {name: kserve-container, image: example/r:1, args: ["--model_name={{.Name}}"]}
"""
GRAPH = """\
apiVersion: serving.kserve.io/v1alpha1
kind: InferenceGraph
metadata: {name: g}
spec:
  nodes:
    root:
      routerType: Splitter
      steps: [{serviceName: a, weight: 60}, {serviceName: b, weight: 40}]
"""
KSVC = """\
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: s}
spec:
  template:
    metadata:
      annotations:
        autoscaling.knative.dev/max-scale: "3"
    spec:
      containerConcurrency: 10
      timeoutSeconds: 300
      containers:
        - name: c
          image: example/c:1
          ports: [{name: http1, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /, port: 8080}}
          volumeMounts: [{name: tmp, mountPath: /tmp}]
      volumes: [{name: tmp, emptyDir: {}}]
  traffic: [{latestRevision: true, percent: 100}]
"""
TRIGGER = """\
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: t}
spec:
  broker: b
  filter: {attributes: {type: text}}
  subscriber:
    ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: s}
  delivery:
    retry: 3
    backoffPolicy: exponential
    backoffDelay: PT1S
    timeout: PT60S
    deadLetterSink: {uri: "http://dead"}
"""
BINDING = """\
apiVersion: sources.knative.dev/v1
kind: SinkBinding
metadata: {name: s}
spec:
  subject: {apiVersion: apps/v1, kind: Deployment, name: d}
  sink: {ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: b}}
  ceOverrides: {extensions: {site: edge}}
"""
GOOD = (ISVC, MODEL, CHAIN, RUNTIME, GRAPH, KSVC, TRIGGER, BINDING)
STANDARD = ISVC.replace("deploymentMode: Knative", "deploymentMode: Standard").replace(
    "minReplicas: 0", "minReplicas: 1"
)

IMAGE = "image: example/torpor:1"
MODE = "deploymentMode: Knative"
CANARY = "  canary: [{trafficPercent: 10, predictor: {name: c, model: {modelFormat: {name: x}}}}]\n"
BROKER = "---\napiVersion: eventing.knative.dev/v1\nkind: Broker\nmetadata: {name: c}\n"

MUTATIONS = [
    ("yaml", ISVC, "    minReplicas: 0", "   minReplicas: 0"),
    ("yaml", ISVC, "maxReplicas: 3", "minReplicas: 3"),
    ("template", ISVC, "image: example/torpor:1", "image: {{ .Values.image }}"),
    ("template", ISVC, "example/torpor:1", '"{{ image }}"'),
    ("template", ISVC, "example/torpor:1", "example/${IMAGE}"),
    ("api-version", ISVC, "v1beta1", "v1alpha2"),
    ("api-version", ISVC, "serving.kserve.io/v1beta1", "serving.kubeflow.org/v1alpha2"),
    ("kind", ISVC, "kind: InferenceService", "kind: InferenceServce"),
    ("kind", TRIGGER, "kind: Trigger", "kind: trigger"),
    ("unknown-field", ISVC, "minReplicas", "minReplica"),
    ("unknown-field", KSVC, "timeoutSeconds", "terminationGracePeriodSeconds"),
    ("missing", ISVC, "name: kserve-container\n        image", "image"),
    ("missing", KSVC, "image: example/c:1", "command: [x]"),
    ("type", ISVC, "minReplicas: 0", 'minReplicas: "0"'),
    ("type", KSVC, '"3"', "3"),
    ("type", ISVC, "cpu: 1,", "cpu: true,"),
    ("value", ISVC, "minReplicas: 0", "minReplicas: 0\n    scaleMetric: qps"),
    ("value", ISVC, "memory: 1Gi}, limits", "memory: 1GiB}, limits"),
    ("duplicate-item", KSVC, "volumes: [{name: tmp, emptyDir: {}}]",
     "initContainers: [{name: c, image: x}]\n      volumes: [{name: tmp, emptyDir: {}}]"),
    ("duplicate-item", ISVC, IMAGE, IMAGE + "\n        env: [{name: A, value: b}, {name: A}]"),
    ("name", ISVC, "name: m", "name: My_model"),
    ("name", TRIGGER, "name: t", "name: t_1"),
    ("duplicate-object", ISVC, ISVC, ISVC + "---\n" + ISVC),
    ("deployment-mode", ISVC, "deploymentMode: Knative", "deploymentMode: knative"),
    ("deployment-mode", ISVC, "deploymentMode: Knative", "deploymentMode: ModelMesh"),
    ("autoscaler-class", ISVC, MODE, MODE + "\n    serving.kserve.io/autoscalerClass: kpa"),
    ("one-predictor", MODEL, "minReplicas: 1", 'sklearn: {storageUri: "gs://a/b"}'),
    ("one-predictor", MODEL, 'model: {modelFormat: {name: torpor}, storageUri: "pvc://models/m"}', "timeout: 60"),
    ("model-name-field", MODEL, "storageUri:", "name: mine, storageUri:"),
    ("container-first", ISVC, "containers:\n", "containers:\n      - {name: side, image: x, resources: {limits: {cpu: 1}}}\n"),
    ("protocol-env", ISVC, IMAGE, IMAGE + "\n        env: [{name: PROTOCOL, value: grpc-v2}]"),
    ("blocked-env", ISVC, IMAGE, IMAGE + "\n        env: [{name: PYTHONPATH, value: /x}]"),
    ("storage-uri", MODEL, "pvc://", "s4://"),
    ("storage-uri", MODEL, "minReplicas: 1", "storageUris: [{uri: \"gs://a/b\"}]"),
    ("transformer-storage", ISVC, IMAGE, IMAGE + "\n      - name: transformer-container\n"
     "        image: example/torpor:1\n        env: [{name: STORAGE_URI, value: \"gs://a/b\"}]"),
    ("replicas", ISVC, "minReplicas: 0", "minReplicas: 4"),
    ("replicas", ISVC, "minReplicas: 0", "minReplicas: -1"),
    ("canary", ISVC, "minReplicas: 0", "canaryTrafficPercent: 110"),
    ("canary", ISVC, "spec:\n", "spec:\n" + CANARY),
    ("scale-metric", ISVC, "minReplicas: 0", "scaleMetric: cpu"),
    ("scale-metric", STANDARD, "minReplicas: 1", "scaleMetric: rps"),
    ("scale-metric", STANDARD, "minReplicas: 1", "scaleTarget: 300"),
    ("logger-mode", ISVC, "minReplicas: 0", 'logger: {url: "http://x"}'),
    ("deployment-strategy", ISVC, "minReplicas: 0", "deploymentStrategy: {type: Recreate}"),
    ("runtime-template", RUNTIME, "{{.Name}}", "{{.Spec.Name}}"),
    ("runtime-container", RUNTIME, "name: kserve-container", "name: server"),
    ("runtime-priority", RUNTIME, 'version: "2", autoSelect: true, priority: 3', 'version: "2", autoSelect: true, priority: 4'),
    ("runtime-protocol", RUNTIME, "[v1, v2]", "[v1, v3]"),
    ("graph", GRAPH, "weight: 40", "weight: 50"),
    ("graph", GRAPH, "root:", "start:"),
    ("graph", GRAPH, "serviceName: a", "nodeName: a"),
    ("timeout", ISVC, "timeout: 60", "timeout: 900"),
    ("timeout", KSVC, "timeoutSeconds: 300", "timeoutSeconds: 700"),
    ("timeout", KSVC, "timeoutSeconds: 300", "timeoutSeconds: 300\n      responseStartTimeoutSeconds: 400"),
    ("container-concurrency", KSVC, "containerConcurrency: 10", "containerConcurrency: 1001"),
    ("container-concurrency", ISVC, "timeout: 60", "containerConcurrency: -1"),
    ("port", KSVC, "name: http1", "name: grpc"),
    ("port", KSVC, "ports: [{", "ports: [{containerPort: 8081}, {"),
    ("port", KSVC, "containerPort: 8080", "containerPort: 8012"),
    ("port", ISVC, "name: h2c", "name: http"),
    ("port", KSVC, "containerPort: 8080", "containerPort: 8080, protocol: UDP"),
    ("reserved-env", KSVC, "image: example/c:1", 'image: example/c:1\n          env: [{name: PORT, value: "80"}]'),
    ("reserved-env", ISVC, IMAGE, IMAGE + "\n        env: [{name: K_SERVICE, value: x}]"),
    ("reserved-name", KSVC, "name: c\n", "name: queue-proxy\n"),
    ("mount", KSVC, "{name: tmp, mountPath: /tmp}", "{name: temp, mountPath: /tmp}"),
    ("mount", KSVC, "mountPath: /tmp", "mountPath: /dev"),
    ("mount", KSVC, "mountPath: /tmp", "mountPath: tmp"),
    ("mount", KSVC, "          volumeMounts: [{name: tmp, mountPath: /tmp}]\n", ""),
    ("probe", KSVC, "readinessProbe: {", "readinessProbe: {failureThreshold: 3, "),
    ("probe", ISVC, "readinessProbe: {", "readinessProbe: {tcpSocket: {port: 8080}, "),
    ("probe", ISVC, "port: 8080}}", "port: web}}"),
    ("probe", ISVC, "port: 8080}}", "port: 8081}}"),
    ("autoscaling", KSVC, 'max-scale: "3"', 'window: "5s"'),
    ("autoscaling", KSVC, 'max-scale: "3"', 'targetUtilizationPercentage: "0"'),
    ("autoscaling", KSVC, 'max-scale: "3"', 'metric: "cpu"'),
    ("autoscaling", KSVC, 'max-scale: "3"', 'initial-scale: "0"'),
    ("autoscaling", KSVC, 'max-scale: "3"', 'max-scale: "3"\n        autoscaling.knative.dev/min-scale: "4"'),
    ("autoscaling", KSVC, 'max-scale: "3"', 'maxScale: "3"\n        autoscaling.knative.dev/minScale: "4"'),
    ("autoscaling", KSVC, 'max-scale: "3"', "class: x.autoscaling.knative.dev"),
    ("autoscaling", ISVC, MODE, MODE + '\n    autoscaling.knative.dev/window: "2h"'),
    ("annotation-place", KSVC, "{name: s}", '{name: s, annotations: {autoscaling.knative.dev/target: "5"}}'),
    ("service-token", ISVC, "timeout: 60", "automountServiceAccountToken: true"),
    ("traffic", KSVC, "percent: 100", "percent: 90"),
    ("traffic", KSVC, "latestRevision: true", "latestRevision: true, revisionName: r"),
    ("resources", ISVC, "limits: {cpu: 2", "limits: {cpu: 500m"),
    ("resources", ISVC, "requests: {cpu: 1", "requests: {cpu: 500Mi"),
    ("filter", TRIGGER, "{type: text}", "{eventType: text}"),
    ("filter", TRIGGER, "filter: {attributes: {type: text}}", "filters: [{exact: {type: a}, prefix: {type: b}}]"),
    ("subscriber", TRIGGER, "    ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: s}", "    uri: /path"),
    ("subscriber", TRIGGER, "kind: Service, name: s", "kind: Service"),
    ("sink-kind", TRIGGER, "serving.knative.dev/v1, kind: Service", "serving.kserve.io/v1beta1, kind: InferenceService"),
    ("sink-kind", BINDING, "apps/v1, kind: Deployment", "serving.kserve.io/v1beta1, kind: InferenceService"),
    ("delivery", TRIGGER, "PT1S", "1s"),
    ("delivery", TRIGGER, "exponential", "quadratic"),
    ("binding", BINDING, ", name: d", ""),
    ("binding", BINDING, "site: edge", "my-site: edge"),
    ("deployment-mode-missing", ISVC, "  annotations:\n    serving.kserve.io/deploymentMode: Knative\n", ""),
    ("min-replicas", STANDARD, "minReplicas: 1", "minReplicas: 0"),
    ("canary-ignored", STANDARD, "minReplicas: 1", "canaryTrafficPercent: 10"),
    ("scale-annotation", ISVC, MODE, MODE + '\n    autoscaling.knative.dev/min-scale: "1"'),
    ("ignored-annotation", STANDARD, "Mode: Standard", 'Mode: Standard\n    autoscaling.knative.dev/target: "1"'),
    ("ignored-annotation", ISVC, MODE, MODE + "\n    serving.kserve.io/metrics: cpu"),
    ("ignored-annotation", KSVC, "max-scale", "maximum-scale"),
    ("model-name", ISVC, "image: example/torpor:1", "image: example/stock:1\n        args: [--http_port=8080]"),
    ("transformer-protocol", CHAIN, "protocolVersion: v1", "protocolVersion: v2"),
    ("transformer-workers", CHAIN, "  transformer:\n", "  transformer:\n    containerConcurrency: 4\n"),
    ("transformer-host", CHAIN.replace("protocolVersion: v1", "protocolVersion: grpc-v2"), "[--model_name=m]",
     "[--model_name=m, --predictor_protocol=grpc-v2]"),
    ("batcher", ISVC, "minReplicas: 0", "batcher: {maxBatchSize: 8}"),
    ("batcher", MODEL, "minReplicas: 1\n    model: {", "batcher: {maxBatchSize: 8}\n    model: {protocolVersion: v2, "),
    ("knative-drops", ISVC, "timeout: 60", "terminationGracePeriodSeconds: 90"),
    ("knative-drops", ISVC, IMAGE, IMAGE + "\n        lifecycle: {preStop: {exec: {command: [x]}}}"),
    ("knative-feature", ISVC, "timeout: 60", "nodeSelector: {a: b}"),
    ("knative-feature", KSVC, "emptyDir: {}", "persistentVolumeClaim: {claimName: c, readOnly: true}"),
    ("drain", ISVC, "timeout: 60", "timeout: 20"),
    ("idle-timeout", KSVC, "timeoutSeconds: 300", "timeoutSeconds: 300\n      idleTimeoutSeconds: 10"),
    ("readiness", ISVC, "        readinessProbe: {httpGet: {path: /v2/health/ready, port: 8080}}\n", ""),
    ("resources-default", ISVC, "        resources: {requests: {cpu: 1, memory: 1Gi}, limits: {cpu: 2, memory: 1Gi}}\n", ""),
    ("memory-unit", ISVC, "requests: {cpu: 1, memory: 1Gi}", "requests: {cpu: 1, memory: 512m}"),
    ("unfiltered", TRIGGER, "  filter: {attributes: {type: text}}\n", ""),
    ("unfiltered", TRIGGER, "filter: {attributes: {type: text}}", "filter: {}"),
    ("filter-ignored", TRIGGER, "  subscriber:", "  filters: [{exact: {type: a}}]\n  subscriber:"),
    ("back-off", TRIGGER, "    backoffDelay: PT1S\n", ""),
    ("dead-letter", TRIGGER, '    deadLetterSink: {uri: "http://dead"}\n', ""),
    ("delivery-timeout", TRIGGER, "PT60S", "PT1S"),
    ("retry-after", TRIGGER, "timeout: PT60S", "retryAfterMax: PT60S"),
    ("sink-name", TRIGGER, TRIGGER, TRIGGER.replace("name: s}", "name: m}") + "---\n" + ISVC),
    ("broker-name", TRIGGER, TRIGGER, TRIGGER + BROKER),
]  # fmt: skip
"""A rule, a file that keeps all of them, and what is written in place of a part of it."""


def of(text: str) -> list[Finding]:
    return [finding for _, finding in findings(read(text), bundled())]


@pytest.mark.parametrize("text", [*GOOD, STANDARD])
def test_a_good_file_has_no_finding(text: str) -> None:
    """The files that are changed below are faultless before."""
    assert [finding.message for finding in of(text)] == []


@pytest.mark.parametrize(("rule", "text", "part", "instead"), MUTATIONS)
def test_one_change_is_named_by_its_rule(rule: str, text: str, part: str, instead: str) -> None:
    """With the severity that the rule has, and a message that says where and what it must be."""
    assert part in text
    found = [finding for finding in of(text.replace(part, instead, 1)) if finding.rule == rule]
    assert found, [finding.message for finding in of(text.replace(part, instead, 1))]
    assert found[0].severity == ("error" if rule in ERRORS else "warning")
    assert found[0].line or ", must be " in found[0].message


def test_every_rule_has_a_change_that_breaks_it() -> None:
    """And no change names a rule that there is none of."""
    assert {rule for rule, *_ in MUTATIONS} == set(RULES)
    assert not set(ERRORS) & set(WARNINGS)


def test_the_docs_list_the_rules() -> None:
    """Each with its severity and the sentence that `torpor validate --rules` prints."""
    rows = re.findall(
        r"^\| `([a-z0-9-]+)` \| (error|warning) \| (.*) \|$", (ROOT / "docs/validate.md").read_text(), re.M
    )
    assert rows == [(name, "error" if name in ERRORS else "warning", about) for name, about in RULES.items()]


def test_what_only_knative_refuses_is_a_warning_while_the_mode_is_not_said() -> None:
    """The cluster's default may be either."""
    text = ISVC.replace("  annotations:\n    serving.kserve.io/deploymentMode: Knative\n", "").replace(
        "timeout: 60", "timeout: 900"
    )
    (finding,) = [finding for finding in of(text) if finding.rule == "timeout"]
    assert finding.severity == "warning"
    assert "in Knative mode" in finding.message


def test_standard_mode_keeps_what_knative_drops() -> None:
    """A Deployment has lifecycle, a grace period, several ports and node selectors."""
    text = STANDARD.replace("timeout: 60", "terminationGracePeriodSeconds: 90\n    nodeSelector: {a: b}")
    assert of(text.replace("ports: [{", "ports: [{name: metrics, containerPort: 9090}, {")) == []


@pytest.mark.parametrize(("newer", "older", "count"), [("3", "x", 0), ("x", "3", 1)])
def test_of_two_spellings_the_newer_one_is_looked_at(newer: str, older: str, count: int) -> None:
    """Wherever it stands: Knative does not read the other."""
    max_scale = f'max-scale: "{newer}"'
    for lines in ((max_scale, f'maxScale: "{older}"'), (f'maxScale: "{older}"', max_scale)):
        found = of(KSVC.replace('max-scale: "3"', "\n        autoscaling.knative.dev/".join(lines)))
        assert [(finding.place[-1], finding.value) for finding in found] == [(PREFIX + "max-scale", newer)] * count


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            ISVC.replace("timeout: 60", "timeout: 900"),
            "spec.predictor.timeout = 900, must be in [0, 600]: config-defaults' max-revision-timeout-seconds; "
            "KServe takes it, and the service never gets ready",
        ),
        (
            ISVC.replace("minReplicas", "minreplicas"),
            "spec.predictor.minreplicas = 0, must be left out: KServe 0.20.0 has no such field here and drops it; "
            "was minReplicas meant?",
        ),
        (
            KSVC.replace('max-scale: "3"', "max-scale: 3"),
            "spec.template.metadata.annotations[autoscaling.knative.dev/max-scale] = 3, must be a string: "
            "without quotes YAML reads it as a number",
        ),
    ],
)  # fmt: skip
def test_a_message_names_path_value_allowed_range_and_why(text: str, message: str) -> None:
    """So that the file can be mended without a look elsewhere."""
    assert message in [finding.message for finding in of(text)]
