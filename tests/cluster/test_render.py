"""What `torpor render` writes, on a real cluster: a rendered folder, and a model on a volume by the ClusterServingRuntime.

Needs $KUBECONFIG, kubectl, $INGRESS (the address of Knative's ingress, http://HOST:PORT) and the image $TORPOR_IMAGE
(localhost/torpor:dev), which the Dockerfile makes.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_namespace import IMAGE, NEEDS_INGRESS, Namespace, post

pytestmark = NEEDS_INGRESS

ROOT = Path(__file__).resolve().parent.parent.parent
TORPOR = Path(sys.executable).with_name("torpor")
NAMESPACE = Namespace("render", "inferenceservice,ksvc,pods,networkpolicy,pdb")
RUNTIME = f"torpor-{NAMESPACE.name.rpartition('-')[2]}"


@pytest.fixture(scope="module", autouse=True)
def namespace() -> Iterator[None]:
    """With the restricted Pod Security standard enforced; it and what is the cluster's go at the end."""
    with NAMESPACE:
        NAMESPACE.kubectl("label", "namespace", NAMESPACE.name, "pod-security.kubernetes.io/enforce=restricted")
        yield
    NAMESPACE.delete("persistentvolume", NAMESPACE.name)
    NAMESPACE.delete("clusterservingruntime", RUNTIME)


def render(*arguments: str | Path) -> str:
    done = subprocess.run([TORPOR, "render", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(service: str, rows: list[list[float]]) -> list[object]:
    """Its predictions, by v1 through the ingress."""
    ready = ("wait", "--for=condition=Ready", f"inferenceservice/{service}", "--timeout=180s")
    NAMESPACE.kubectl(*ready, timeout_s=210)
    answer = post(NAMESPACE.host(f"{service}-predictor"), f"/v1/models/{service}:predict", {"instances": rows})
    predictions: list[object] = answer["predictions"]
    return predictions


def test_a_rendered_folder_is_applied_and_answers(tmp_path: Path) -> None:
    """`kubectl apply -k` takes all of it, kubectl knows each field, and restricted Pod Security admits the pod."""
    out = tmp_path / "out"
    render(ROOT / "examples/mlp", out, "--path", "/opt/torpor/examples/mlp", "--image", IMAGE)
    NAMESPACE.kubectl("apply", "--validate=strict", "-k", str(out))
    assert len(ask("mlp", [[0.5] * 784] * 2)) == 2
    for kind in ("networkpolicy", "poddisruptionbudget"):
        NAMESPACE.kubectl("get", kind, "mlp-predictor")


def test_a_model_on_a_volume_runs_by_the_cluster_serving_runtime(tmp_path: Path) -> None:
    """An InferenceService with just a storageUri: KServe finds the runtime by the model's format."""
    models = Path("/tmp") / NAMESPACE.name
    shutil.copytree(ROOT / "examples/mlp", models / "mlp", ignore=shutil.ignore_patterns("__pycache__"))
    try:
        runtime = render("--runtime", "--image", IMAGE).replace("\n  name: torpor\n", f"\n  name: {RUNTIME}\n")
        NAMESPACE.kubectl("apply", "--validate=strict", "-f", "-", given=runtime)
        NAMESPACE.claim(models)
        out = tmp_path / "out"
        render(ROOT / "examples/mlp", out, "--storage-uri", "pvc://models/mlp")
        text = (out / "inferenceservice.yaml").read_text().replace("name: mlp\n", "name: stored\n", 1)
        NAMESPACE.kubectl("apply", "--validate=strict", "-f", "-", given=text)
        assert len(ask("stored", [[0.5] * 784])) == 1
    finally:
        shutil.rmtree(models)


def test_the_cluster_refuses_what_validate_calls_an_error(tmp_path: Path) -> None:
    """By a dry run on the server: webhooks and schemas say no to a sample of the rules that they are behind."""
    base = (ROOT / "examples/minilm/inferenceservice.yaml").read_text()
    changes = {
        "logger-mode": ("minReplicas: 0", "logger: {url: 'http://x'}\n    minReplicas: 0"),
        "autoscaler-class": ("  annotations:\n", "  annotations:\n    serving.kserve.io/autoscalerClass: kpa\n"),
        "unknown-field": ("minReplicas: 0", "minReplica: 0"),
        "type": ("timeout: 60", "timeout: soon"),
        "name": ("name: minilm", "name: Minilm"),
        "replicas": ("maxReplicas: 3", "maxReplicas: -1"),
        "scale-metric": ("minReplicas: 0", "scaleMetric: cpu\n    minReplicas: 0"),
        "protocol-env": ("        args:", "        env: [{ name: PROTOCOL, value: grpc-v2 }]\n        args:"),
    }
    wrong = []
    for rule, (part, instead) in changes.items():
        assert part in base
        text = base.replace(part, instead, 1)
        said = subprocess.run([TORPOR, "validate", "-"], input=text, capture_output=True, text=True, check=False)
        command = ["kubectl", "-n", NAMESPACE.name, "apply", "--dry-run=server", "--validate=strict", "-f", "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if f"[{rule}]" not in said.stdout or done.returncode == 0:
            wrong.append(f"{rule}: validate {said.returncode}, cluster {done.returncode}: {done.stderr}{done.stdout}")
    assert not wrong, "\n".join(wrong)
