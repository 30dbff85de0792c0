"""What `torpor edge profile` writes, on a real cluster: pods under gVisor that sleep by themselves, and a Knative Service.

Needs $KUBECONFIG, kubectl, a RuntimeClass gvisor, the image $TORPOR_IMAGE (localhost/torpor:dev), which the Dockerfile makes,
and pods that see the machine's /tmp; the Knative Service $INGRESS too.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_namespace import IMAGE, NEEDS_CLUSTER, Namespace, post

pytestmark = NEEDS_CLUSTER

ROOT = Path(__file__).resolve().parent.parent.parent
TORPOR = Path(sys.executable).with_name("torpor")
NAMESPACE = Namespace("edge", "deployments,ksvc,pods,pvc,networkpolicy")
NODE = Path("/tmp") / NAMESPACE.name
LIMIT_S = 120
MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
PROFILE = f"""\
name = "{NAMESPACE.name}"
architecture = "{MACHINE}"
memory = "4Gi"
cores = 2
disk = "32Gi"
"""
SERVICE = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: mlp
  annotations: { autoscaling.knative.dev/window: 6s }
spec:
  predictor:
    model:
      modelFormat: { name: torpor }
      storageUri: pvc://models/mlp
"""
ASK = """
import json, sys, urllib.request
body = json.dumps({"instances": [[0.5] * 784] * 2}).encode()
request = urllib.request.Request(sys.argv[1], body, {"Content-Type": "application/json"})
print(len(json.load(urllib.request.urlopen(request, timeout=60))["predictions"]))
"""
CLIENT = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "client"},
    "spec": {
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "sleep", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "3600"],
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    },
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def node() -> Iterator[None]:
    """The cluster's node as the profile has it: labelled as by K3s's config.yaml, with what a bundle installs."""
    generation = NODE / "generations" / "1" / "model" / "mlp"
    shutil.copytree(ROOT / "examples/mlp", generation, ignore=shutil.ignore_patterns("__pycache__"))
    (NODE / "current").symlink_to("generations/1")
    NODE.chmod(0o755)
    with NAMESPACE:
        try:
            NAMESPACE.kubectl("label", "node", "--all", f"torpor.dev/profile={NAMESPACE.name}")
            yield
        finally:
            NAMESPACE.kubectl("label", "node", "--all", "torpor.dev/profile-")
            NAMESPACE.delete("persistentvolume", f"{NAMESPACE.name}-mlp-models")
            shutil.rmtree(NODE)


def render(folder: Path, profile: str) -> Path:
    """The folder of manifests."""
    (folder / "node.toml").write_text(profile)
    (folder / "service.yaml").write_text(SERVICE)
    command = [
        TORPOR, "edge", "profile", folder / "node.toml", "--out", folder / "out", "--model", ROOT / "examples/mlp",
        "--service", folder / "service.yaml", "--image", IMAGE, "--namespace", NAMESPACE.name, "--node", NODE,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "out" / "manifests"


def apply(folder: Path, *names: str) -> None:
    for name in names:
        NAMESPACE.kubectl("apply", "--validate=strict", "-f", str(folder / f"{name}.yaml"))


def sleeps() -> int:
    """How often the model has fallen asleep so far."""
    return NAMESPACE.kubectl("logs", "deployment/mlp").count("mlp-predictor is asleep")


def test_a_small_nodes_pod_runs_under_gvisor_sleeps_and_wakes(tmp_path: Path) -> None:
    """Restricted Pod Security admits it; its model is the one that the node's bundle has; a probe does not wake it."""
    manifests = render(tmp_path, PROFILE)
    assert "torpor.dev/runsc" in (manifests / "runtimeclass.yaml").read_text()
    NAMESPACE.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", str(manifests / "runtimeclass.yaml"))
    apply(manifests, "namespace", "models", "configmap", "deployment", "service", "networkpolicy")
    NAMESPACE.kubectl("apply", "-f", "-", given=json.dumps(CLIENT))
    NAMESPACE.kubectl("wait", "--for=condition=Available", "deployment/mlp", f"--timeout={LIMIT_S}s")
    NAMESPACE.kubectl("wait", "--for=condition=Ready", "pod/client", f"--timeout={LIMIT_S}s")
    kernel = ("exec", "deployment/mlp", "--", "python", "-c", "import platform; print(platform.release())")
    assert "gvisor" in NAMESPACE.kubectl(*kernel)
    ask = ("exec", "client", "--", "python", "-c", ASK, f"http://mlp.{NAMESPACE.name}/v1/models/mlp:predict")
    before = sleeps()
    assert NAMESPACE.kubectl(*ask).strip() == "2"
    began_s = time.monotonic()
    while sleeps() == before:
        assert time.monotonic() < began_s + LIMIT_S, NAMESPACE.state()
        time.sleep(0.5)
    began_s = time.monotonic()
    assert NAMESPACE.kubectl(*ask).strip() == "2"
    print(f"awake and answered after {time.monotonic() - began_s:.1f} s")
    NAMESPACE.kubectl("delete", "-f", str(manifests / "deployment.yaml"))
    for name in ("networkpolicy", "service", "configmap", "models"):
        NAMESPACE.kubectl("delete", "-f", str(manifests / f"{name}.yaml"))


@pytest.fixture
def features(tmp_path: Path) -> Iterator[None]:
    """Knative's, as the rendered patch has them, and afterwards as they were."""
    got = ("-n", "knative-serving", "get", "configmap", "config-features", "-o", "json")
    before = json.loads(NAMESPACE.kubectl(*got)).get("data") or {}
    render(tmp_path, f'{PROFILE}serving = "knative"\n')
    patch = ("-n", "knative-serving", "patch", "configmap", "config-features")
    NAMESPACE.kubectl(*patch, "--patch-file", str(tmp_path / "out/knative/config-features.yaml"))
    names = json.loads(NAMESPACE.kubectl(*got))["data"].keys()
    yield
    NAMESPACE.kubectl(*patch, "--type=merge", "-p", json.dumps({"data": {name: before.get(name) for name in names}}))


@pytest.mark.skipif(not os.environ.get("INGRESS"), reason="no ingress: $INGRESS is not set")
def test_a_node_with_knative_gets_a_knative_service_under_gvisor(tmp_path: Path, features: None) -> None:
    """The same model and volume; the fields that Knative refuses without the rendered patch are accepted."""
    manifests = tmp_path / "out" / "manifests"
    apply(manifests, "namespace", "models")
    command = ["kubectl", "apply", "--validate=strict", "-f", manifests / "service.yaml"]
    began_s = time.monotonic()
    # The webhook hears of the patch a moment later.
    while (done := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
        assert time.monotonic() < began_s + 30, done.stderr
        time.sleep(1)
    apply(manifests, "networkpolicy")
    NAMESPACE.kubectl("wait", "--for=condition=Ready", "ksvc/mlp", f"--timeout={LIMIT_S}s")
    answer = post(NAMESPACE.host("mlp"), "/v1/models/mlp:predict", {"instances": [[0.5] * 784]})
    assert len(answer["predictions"]) == 1
    pods = ("get", "pods", "-l", "serving.knative.dev/service=mlp", "-o", "jsonpath={.items[0].spec.runtimeClassName}")
    assert NAMESPACE.kubectl(*pods) == "gvisor"
    NAMESPACE.kubectl("delete", "-f", str(manifests / "service.yaml"))
