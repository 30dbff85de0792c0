"""Objects that belong to a node and not to a workload: RuntimeClass, namespace, rules of Node Feature Discovery."""

from collections.abc import Iterator

from torpor.knative.quantities import memory

from .profile import Profile
from .sizing import OVERHEAD_BYTES

_CUDA = """\
    - name: torpor.cuda # an integrated GPU, Jetson's, is no PCI device: label such a node by hand
      labels: { torpor.dev/cuda: "true" }
      matchFeatures:
        - feature: pci.device
          matchExpressions:
            vendor: { op: In, value: ["10de"] }
            class: { op: In, value: ["0300", "0302"] }
"""
_FAST = {"amd64": ("avx2", "AVX2"), "arm64": ("fp16", "ASIMDHP")}


def objects(profile: Profile, namespace: str) -> Iterator[tuple[str, str]]:
    """Names of files, and contents."""
    yield "namespace.yaml", _namespace(namespace)
    if profile.is_sandboxed:
        yield "runtimeclass.yaml", _runtime_class()
    yield "nodefeaturerule.yaml", _rules(profile)


def selector(profile: Profile) -> dict[str, str]:
    """The labels of nodes that a workload is for."""
    labels = {"kubernetes.io/arch": profile.architecture, "torpor.dev/profile": profile.name}
    return labels | ({"torpor.dev/cuda": "true"} if profile.accelerator == "cuda" else {})


def _namespace(namespace: str) -> str:
    return f"""\
apiVersion: v1
kind: Namespace
metadata:
  name: {namespace}
  labels:
    pod-security.kubernetes.io/enforce: restricted # what the pods here keep to
"""


def _runtime_class() -> str:
    return f"""\
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata:
  name: gvisor
handler: runsc # as config-v3.toml.tmpl names it; can't be changed later
overhead:
  podFixed: {{ cpu: 50m, memory: {memory(OVERHEAD_BYTES)} }} # gVisor's own, beside the containers' limits
scheduling:
  nodeSelector: {{ torpor.dev/runsc: "true" }} # elsewhere a pod would hang at FailedCreatePodSandBox
"""


def _rules(profile: Profile) -> str:
    rules = """\
    - name: torpor.sandbox # gVisor needs Linux 4.14.77; every 5 has it
      labels: { torpor.dev/sandbox: "true" }
      matchFeatures:
        - feature: kernel.version
          matchExpressions:
            major: { op: Gt, value: ["4"] }
"""
    if profile.architecture in _FAST:
        label, flag = _FAST[profile.architecture]
        rules += f"""\
    - name: torpor.{label} # torch's fast kernels; without it a model works, some times slower
      labels: {{ torpor.dev/{label}: "true" }}
      matchFeatures:
        - feature: cpu.cpuid
          matchExpressions:
            {flag}: {{ op: Exists }}
"""
    if profile.accelerator == "cuda":
        rules += _CUDA
    return f"""\
# Needs Node Feature Discovery. Its labels say what a node has, beside those that K3s's config.yaml gives by hand.
apiVersion: nfd.k8s-sigs.io/v1alpha1
kind: NodeFeatureRule
metadata:
  name: torpor
spec:
  rules:
{rules}"""
