"""What `torpor render` writes: complete, with the user's own words kept, and faultless by `torpor validate`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from torpor.knative.manifests import read
from torpor.knative.render import Model
from torpor.knative.render_command import runtime
from torpor.knative.rules import findings
from torpor.knative.schema import bundled

ROOT = Path(__file__).resolve().parent.parent.parent
TORPOR = Path(sys.executable).with_name("torpor")
BARE = """\
# What we sell.
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: shop
spec:
  predictor:
    timeout: 120   # the auditors' number
    containers:
      # ours, from our own registry
      - image: "example/torpor:1"
        name: kserve-container
        args: [/models/shop]
"""


def render(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([TORPOR, "render", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done


def rendered(folder: Path) -> dict[tuple[str, str], dict]:
    """Its objects by kind and name, once they have been found faultless and in kustomization.yaml, every file."""
    (kustomization,) = read((folder / "kustomization.yaml").read_text())
    files = kustomization.data["resources"]
    assert {"kustomization.yaml", *files} == {file.name for file in folder.iterdir()}
    documents = [document for file in files for document in read((folder / file).read_text(), file)]
    assert [f.message for _, f in findings(documents, bundled()) if f.severity == "error"] == []
    return {(document.kind, document.name): document.data for document in documents}


def test_an_inference_service_is_completed_and_its_authors_words_are_kept(tmp_path: Path) -> None:
    """Every line that was there still is, comments and quotes too; what was missing is there with a reason."""
    (tmp_path / "shop.yaml").write_text(BARE)
    render(tmp_path / "shop.yaml", tmp_path / "out", "--namespace", "prod")
    text = (tmp_path / "out/inferenceservice.yaml").read_text()
    kept = [" ".join(line.split()) for line in text.splitlines()]
    assert [line for line in BARE.splitlines() if " ".join(line.split()) not in kept] == []
    objects = rendered(tmp_path / "out")
    predictor = objects["InferenceService", "shop"]["spec"]["predictor"]
    (container,) = predictor["containers"]
    assert (predictor["minReplicas"], predictor["maxReplicas"], predictor["timeout"]) == (0, 3, 120)
    assert predictor["automountServiceAccountToken"] is False
    assert container["ports"] == [{"name": "h2c", "containerPort": 8080}]
    assert container["readinessProbe"] == {"httpGet": {"path": "/v2/health/ready", "port": 8080}}
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "1Gi"}
    assert container["securityContext"] == {
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for number in ("minReplicas: 0 #", "maxReplicas: 3 #", "limits: {cpu:", "deploymentMode: Knative #"):
        (line,) = [line for line in text.splitlines() if number in line]
        assert " # " in line
    assert "namespace: prod" in (tmp_path / "out/kustomization.yaml").read_text()


def test_what_is_written_once_stays_when_it_is_rendered_again(tmp_path: Path) -> None:
    """Rendering changes nothing that it has rendered."""
    (tmp_path / "shop.yaml").write_text(BARE)
    render(tmp_path / "shop.yaml", tmp_path / "one")
    render(tmp_path / "one/inferenceservice.yaml", tmp_path / "two")
    for file in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / file.name).read_text() == file.read_text()


def test_who_may_come_in_is_the_ingress_the_activator_and_the_transformer(tmp_path: Path) -> None:
    """One policy and one budget for each component, by the labels that KServe gives its pods; the file's others go along."""
    render(ROOT / "examples/sentences/events.yaml", tmp_path / "out", "--ingress-namespace", "gateway")
    objects = rendered(tmp_path / "out")
    (rule,) = objects["NetworkPolicy", "sentences-predictor"]["spec"]["ingress"]
    names = [peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for peer in rule["from"][:2]]
    assert names == ["knative-serving", "gateway"]
    labels = {"serving.kserve.io/inferenceservice": "sentences", "component": "transformer"}
    assert rule["from"][2:] == [{"podSelector": {"matchLabels": labels}}]
    assert [port["port"] for port in rule["ports"]] == [8012, 8013, 8112, 9090, 9091]
    (rule,) = objects["NetworkPolicy", "sentences-transformer"]["spec"]["ingress"]
    assert len(rule["from"]) == 2
    budget = objects["PodDisruptionBudget", "sentences-transformer"]["spec"]
    assert budget == {"maxUnavailable": 1, "selector": {"matchLabels": labels}}
    assert ("Broker", "default") in objects
    assert ("HorizontalPodAutoscaler", "sentences-predictor") not in objects


def test_standard_mode_has_an_autoscaler_of_its_own(tmp_path: Path) -> None:
    """KServe's is switched off, which would write over it; the container's own port is let in."""
    render(ROOT / "examples/mlp", tmp_path / "out", "--path", "/opt/torpor/examples/mlp", "--mode", "Standard")
    objects = rendered(tmp_path / "out")
    service = objects["InferenceService", "mlp"]
    assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "external"
    assert service["spec"]["predictor"]["minReplicas"] == 1
    scaler = objects["HorizontalPodAutoscaler", "mlp-predictor"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == "mlp-predictor"
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (1, 3)
    (rule,) = objects["NetworkPolicy", "mlp-predictor"]["spec"]["ingress"]
    assert rule["ports"] == [{"port": 8080}]


def test_a_model_folder_on_storage_runs_by_the_runtime(tmp_path: Path) -> None:
    """With its batch size in containerConcurrency, and resources of its own."""
    render(ROOT / "examples/mlp", tmp_path / "out", "--storage-uri", "pvc://models/mlp")
    predictor = rendered(tmp_path / "out")["InferenceService", "mlp"]["spec"]["predictor"]
    assert predictor["model"]["storageUri"] == "pvc://models/mlp"
    assert predictor["model"]["modelFormat"] == {"name": "torpor"}
    assert predictor["containerConcurrency"] == 128
    assert "containers" not in predictor


def test_a_plain_knative_service_needs_no_kserve(tmp_path: Path) -> None:
    """Scales become annotations, the time-out Knative's field; a trigger and its dead letters go to it."""
    more = ("--trigger", "ask", "--broker", "b", "--dead-letter", "http://dead/")
    render(ROOT / "examples/minilm", tmp_path / "out", "--knative-service", *more)
    objects = rendered(tmp_path / "out")
    template = objects["Service", "minilm"]["spec"]["template"]
    assert template["metadata"]["annotations"] == {
        "autoscaling.knative.dev/min-scale": "0",
        "autoscaling.knative.dev/max-scale": "3",
    }
    assert (template["spec"]["containerConcurrency"], template["spec"]["timeoutSeconds"]) == (64, 60)
    assert {"name": "TORPOR_MODEL_NAME", "value": "minilm"} in template["spec"]["containers"][0]["env"]
    trigger = objects["Trigger", "minilm"]["spec"]
    assert trigger["subscriber"]["ref"] == {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "minilm"}
    assert (trigger["broker"], trigger["filter"]) == ("b", {"attributes": {"type": "ask"}})
    assert trigger["delivery"]["deadLetterSink"] == {"uri": "http://dead/"}


def test_a_model_that_compiles_gets_a_place_to_write(tmp_path: Path) -> None:
    """The root stays read-only; /tmp is a volume."""
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.toml").write_text('class = "model:M"\n[device]\ncompile = "default"\ndevice = "cuda"\n')
    render(folder, tmp_path / "out", "--path", "/m")
    predictor = rendered(tmp_path / "out")["InferenceService", "m"]["spec"]["predictor"]
    assert predictor["containers"][0]["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
    assert predictor["volumes"] == [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}]
    assert predictor["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_memory_is_two_and_a_half_times_the_weights() -> None:
    """And torch's own 0.3 GiB, in quarters of a gibibyte, at least one."""
    assert Model("m").memory_bytes == 1 << 30
    assert Model("m", weights_bytes=1 << 30).memory_bytes == 3 << 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "OUT"), "no such file or folder"),
        ((str(ROOT / "examples/mlp"), "OUT"), "--storage-uri or --path must be given"),
        ((str(ROOT / "examples/minilm"), "OUT", "--mode", "Standard"), "must be Standard, or --mode left out"),
        ((str(ROOT / "examples/sentences/events.yaml"), "OUT", "--knative-service"), "spec.transformer needs KServe"),
        ((str(ROOT / "examples/mlp"), "OUT", "--storage-uri", "pvc://a", "--knative-service"), "predictor.model needs KServe"),
        ((str(ROOT / "docs/validate.md"), "OUT"), "no YAML"),
        ((), "must be given"),
    ],
)  # fmt: skip
def test_what_cannot_be_rendered_is_said(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    """Status 2, and no folder."""
    out = tmp_path / "out"
    done = render(*(str(out) if argument == "OUT" else argument for argument in arguments), status=2)
    assert message in done.stderr
    assert not out.exists()


def test_a_faulty_service_is_not_written(tmp_path: Path) -> None:
    """Status 1, with what `torpor validate` says of it."""
    (tmp_path / "shop.yaml").write_text(BARE.replace("timeout: 120", "timeout: 1200"))
    done = render(tmp_path / "shop.yaml", tmp_path / "out", status=1)
    assert "[timeout]" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said_with_what_is_written(tmp_path: Path) -> None:
    """The kustomization comes first and names the others, so that kubectl takes none of a half folder."""
    (tmp_path / "shop.yaml").write_text(BARE)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/inferenceservice.yaml").symlink_to("/dev/full")
    done = render(tmp_path / "shop.yaml", tmp_path / "out", "--force", status=2)
    assert "No space left on device; written: kustomization.yaml, of kustomization.yaml, infer" in done.stderr


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    """Unless --force is given."""
    (tmp_path / "shop.yaml").write_text(BARE)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes").write_text("mine")
    assert "--force" in render(tmp_path / "shop.yaml", tmp_path / "out", status=2).stderr
    render(tmp_path / "shop.yaml", tmp_path / "out", "--force")
    assert (tmp_path / "out/notes").read_text() == "mine"


def test_the_runtime_is_taken_before_torchserves() -> None:
    """For both formats, by all three protocols, as the model's own name; and only by name if one wants that."""
    (document,) = read(runtime("example/torpor:2", True))
    assert list(findings([document], bundled())) == []
    spec = document.data["spec"]
    assert {form["name"]: (form["autoSelect"], form["priority"] > 2) for form in spec["supportedModelFormats"]} == {
        "torpor": (True, True),
        "pytorch": (True, True),
    }
    assert spec["protocolVersions"] == ["v1", "v2", "grpc-v2"]
    (container,) = spec["containers"]
    assert container["image"] == "example/torpor:2"
    (named,) = read(runtime("example/torpor:2", False))
    assert not any(form["autoSelect"] for form in named.data["spec"]["supportedModelFormats"])
    # No flag: that would rename an archive, and there may be several.
    assert "args" not in container
    assert container["env"] == [{"name": "INFERENCE_SERVICE_NAME", "value": "{{.Name}}"}]


def test_the_docs_lines_run_as_they_stand(tmp_path: Path) -> None:
    """Those of render.md and validate.md that need no cluster, and the Python sample."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    text = (ROOT / "docs/render.md").read_text() + (ROOT / "docs/validate.md").read_text()
    lines = re.findall(r"^(torpor (?:render|validate) [^|>\n]*?)(?: *#.*)?$", text, re.M)
    lines = [line for line in lines if "service.yaml" not in line]
    assert len(lines) == 7
    for line in lines:
        command = [TORPOR, *line.split()[1:]]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}: {done.stderr}"
    for folder in tmp_path.glob("out*"):
        assert rendered(folder)
    (sample,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    subprocess.run([sys.executable, "-P", "-c", sample], cwd=tmp_path, check=True, capture_output=True)
    (manifest,) = re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    assert list(findings(read(manifest), bundled())) == []
