"""A node's description: what is wrong with it, and the files that follow from it."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from edge_bundles import profile
from torpor.edge.profiles.files import node_files
from torpor.edge.profiles.profile import Profile, read_profile
from torpor.edge.profiles.sizing import sizes, visible_bytes
from torpor.edge.refused import Refused
from torpor.knative.manifests import read
from torpor.knative.quantities import amount

ROOT = Path(__file__).resolve().parents[2]
TORPOR = Path(sys.executable).with_name("torpor")
IMAGE = "localhost/torpor:dev"
GATEWAY = Profile("gateway", "arm64", 4 << 30, 4, 32 << 30)
SERVER = Profile("server", "amd64", 64 << 30, 16, 1 << 40, accelerator="cuda", link="steady")
SERVICE = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: digits
spec:
  predictor:
    model:
      modelFormat: {{ name: torpor }}
      storageUri: {uri}
"""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memory": None}, "memory is missing"),
        ({"memory": "4"}, "memory = 4, must be a text such as '4Gi', in [512Mi, 16Ti]"),
        ({"memory": '"4 GB"'}, "memory = '4 GB', must be a text such as '4Gi'"),
        ({"memory": '"256Mi"'}, "memory = '256Mi', must be a text such as '4Gi', in [512Mi, 16Ti]"),
        ({"disk": '"17Ti"'}, "disk = '17Ti', must be a text"),
        ({"cores": "0"}, "cores = 0, must be an integer in [1, 1024]"),
        ({"cores": "true"}, "cores = True, must be an integer"),
        ({"cores": '"2"'}, "cores = '2', must be an integer"),
        ({"cores": "1025"}, "cores = 1025, must be an integer in [1, 1024]"),
        ({"architecture": '"x86_64"'}, "architecture = 'x86_64', must be one of amd64, arm64, arm"),
        ({"accelerator": '"rocm"'}, "accelerator = 'rocm', must be one of none, cuda"),
        (
            {"architecture": '"arm"', "accelerator": '"cuda"'},
            "accelerator = 'cuda', must be none where architecture is arm",
        ),
        ({"link": "1"}, "link = 1, must be one of steady, intermittent, none"),
        ({"mirror": "5"}, "mirror = 5, must be like"),
        ({"mirror": '"registry.site"'}, "mirror = 'registry.site', must be like https://registry.site:5000"),
        ({"name": '"Gate Way"'}, "name = 'Gate Way', must be at most 63"),
        ({"memroy": '"4Gi"'}, "memroy is unknown, must be one of accelerator, architecture"),
        ({"cores": "= 2"}, "is no TOML"),
    ],
)
def test_a_description_is_refused_by_field_value_and_range(changes: dict[str, str | None], said: str) -> None:
    fields = {
        "name": '"node"', "architecture": '"amd64"', "memory": '"1Gi"', "cores": "1", "disk": '"1Gi"', **changes,
    }  # fmt: skip
    text = "".join(f"{name} = {value}\n" for name, value in fields.items() if value is not None)
    with pytest.raises(Refused, match=re.escape(said)) as refused:
        read_profile(text.encode(), "node.toml")
    assert refused.value.reason == "malformed"
    assert "node.toml" in str(refused.value)


def test_what_is_not_said_has_the_documented_defaults() -> None:
    """Those of the module's example."""
    text = 'name = "a"\narchitecture = "arm"\nmemory = "2G"\ncores = 2\ndisk = "8Gi"\n'
    assert read_profile(text.encode(), "x") == Profile("a", "arm", 2 * 10**9, 2, 8 << 30)


def files_of(profile: Profile, service: str = "", folder: Path | None = ROOT / "examples/digits") -> dict[str, str]:
    return node_files(profile, service, folder, "", IMAGE, "torpor", "/var/lib/torpor/edge")


def objects_of(files: dict[str, str], name: str) -> list[Any]:
    return [document.data for document in read(files[f"manifests/{name}.yaml"])]


@pytest.mark.parametrize("memory_bytes", [3 << 30, 4 << 30, 8 << 30, 64 << 30])
@pytest.mark.parametrize("cores", [1, 2, 4, 64])
@pytest.mark.parametrize("weights_bytes", [0, 10 << 20, 300 << 20])
def test_sizes_fit_the_node(memory_bytes: int, cores: int, weights_bytes: int) -> None:
    """What a pod asks for lies within what the kernel shows, K3s's share taken off, and a batch within the model's own."""
    node = Profile("node", "amd64", memory_bytes, cores, 32 << 30)
    fit = sizes(node, weights_bytes, 32)
    assert 2 * weights_bytes < fit.memory_bytes <= visible_bytes(node) - (1252 << 20)
    assert fit.memory_bytes >= fit.instances * (2 * weights_bytes + fit.max_batch_size * (4 << 20)) + (300 << 20)
    assert 1 <= fit.instances * fit.threads <= fit.cpu <= cores
    assert 1 <= fit.max_batch_size <= 32
    assert fit.max_batch_size & (fit.max_batch_size - 1) == 0


def test_a_model_that_a_node_cannot_hold_is_refused_with_both_numbers() -> None:
    with pytest.raises(Refused, match=r"gateway: the model needs .*Mi, must be at most .*Mi: .* memory = 4Gi"):
        sizes(GATEWAY, 2 << 30, 32)


def test_a_small_node_gets_a_pod_that_sleeps_by_itself() -> None:
    """torpor up before the model, restricted, sandboxed, bound to its kind of node, with no way out of the pod."""
    files = files_of(GATEWAY)
    (deployment,) = objects_of(files, "deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["runtimeClassName"] == "gvisor"
    assert pod["nodeSelector"] == {"kubernetes.io/arch": "arm64", "torpor.dev/profile": "gateway"}
    (container,) = pod["containers"]
    assert container["command"][:2] == ["torpor", "up"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert amount(container["resources"]["limits"]["memory"]) <= visible_bytes(GATEWAY)
    assert "httpGet" not in container["readinessProbe"], "a request of the kubelet's would keep the model awake"
    (inner,) = read(objects_of(files, "configmap")[0]["data"]["service.yaml"])
    predictor = inner.data["spec"]["predictor"]
    assert predictor["minReplicas"] == 0
    assert predictor["containers"][0]["args"] == ["/mnt/torpor/digits"]
    assert objects_of(files, "networkpolicy")[0]["spec"]["egress"] == []
    assert objects_of(files, "runtimeclass")[0]["handler"] == "runsc"
    assert 'platform = "systrap"' in files["k3s/runsc.toml"]
    assert objects_of(files, "models")[0]["spec"]["hostPath"]["path"] == "/var/lib/torpor/edge/current/model"
    assert "knative/config-features.yaml" not in files


def test_other_weights_start_another_pod(tmp_path: Path) -> None:
    """The pod names the digest of the model's folder; the rest of it is the same."""
    folder = tmp_path / "digits"
    shutil.copytree(ROOT / "examples/digits", folder)
    before = files_of(GATEWAY, folder=folder)
    assert files_of(GATEWAY, folder=folder) == before
    with (folder / "digits.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    after = files_of(GATEWAY, folder=folder)
    assert {name for name in after if after[name] != before[name]} == {"manifests/deployment.yaml"}


def test_a_description_alone_gives_settings_and_objects() -> None:
    """The workload comes with a model or a service."""
    names = set(files_of(GATEWAY, "", None))
    assert {"k3s/config.yaml", "manifests/namespace.yaml", "manifests/runtimeclass.yaml"} <= names
    assert names < set(files_of(GATEWAY))


def test_a_node_that_carries_knative_gets_a_knative_service() -> None:
    """And the patch without which Knative refuses its fields; a GPU is asked for and selected."""
    files = files_of(SERVER)
    (service,) = objects_of(files, "service")
    assert service["apiVersion"] == "serving.knative.dev/v1"
    pod = service["spec"]["template"]["spec"]
    assert pod["runtimeClassName"] == "gvisor"
    assert pod["nodeSelector"]["torpor.dev/cuda"] == "true"
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "torpor.dev/model" in service["spec"]["template"]["metadata"]["annotations"]
    assert "podspec-runtimeclassname: enabled" in files["knative/config-features.yaml"]
    assert "manifests/deployment.yaml" not in files
    assert 'nvproxy = "true"' in files["k3s/runsc.toml"]
    assert "torpor.cuda" in files["manifests/nodefeaturerule.yaml"]


def test_a_model_by_its_uri_is_the_service_of_a_node_with_knative() -> None:
    files = files_of(SERVER, SERVICE.format(uri="pvc://models/digits"))
    (service,) = objects_of(files, "service")
    (container,) = service["spec"]["template"]["spec"]["containers"]
    assert (container["name"], container["args"]) == ("kserve-container", ["/mnt/torpor/digits"])
    assert container["ports"] == [{"name": "h2c", "containerPort": 8080}]


def test_an_inference_services_own_words_stay() -> None:
    """Of a file: its name, and its model by the name in the bundle."""
    text = SERVICE.format(uri="pvc://models/digits") + "    timeout: 7\n"
    (config,) = objects_of(files_of(GATEWAY, text), "configmap")
    (inner,) = read(config["data"]["service.yaml"])
    assert inner.data["spec"]["predictor"]["timeout"] == 7
    assert inner.data["spec"]["predictor"]["containers"][0]["args"] == ["/mnt/torpor/digits"]


def variables_of(files: dict[str, str]) -> dict[str, str]:
    """What the model's process has of environment, as either form of a workload has it."""
    return {each["name"]: each["value"] for each in predictor_of(files)["containers"][0]["env"]}


def predictor_of(files: dict[str, str]) -> Any:
    if "manifests/configmap.yaml" in files:
        (inner,) = read(objects_of(files, "configmap")[0]["data"]["service.yaml"])
        return inner.data["spec"]["predictor"]
    return objects_of(files, "service")[0]["spec"]["template"]["spec"]


@pytest.mark.parametrize("node", [GATEWAY, SERVER], ids=["deployment", "knative"])
@pytest.mark.parametrize(
    ("name", "value", "other"), [("OMP_WAIT_POLICY", "PASSIVE", "ACTIVE"), ("MALLOC_ARENA_MAX", "1", "4")]
)
def test_what_is_dear_in_a_sandbox_is_avoided(node: Profile, name: str, value: str, other: str) -> None:
    """Threads that spin on the cores of gVisor's kernel, memory that grows page by page; what a file says of it stays."""
    assert variables_of(files_of(node))[name] == value
    containers = f'containers: [{{ image: {IMAGE}, env: [{{ name: {name}, value: "{other}" }}] }}]'
    own = f"kind: InferenceService\nmetadata: {{ name: x }}\nspec: {{ predictor: {{ {containers} }} }}\n"
    assert variables_of(files_of(node, own, None))[name] == other
    assert name not in variables_of(files_of(replace(node, runtime_class="none")))


def test_a_sandbox_has_instances_and_no_threads_that_wait_for_each_other() -> None:
    """One for each core of the model's: threads of one operation wait by calls of gVisor's kernel."""
    files = files_of(GATEWAY)
    variables = variables_of(files)
    assert (variables["TORPOR_DEVICE"], variables["TORPOR_THREADS"]) == ("cpu,cpu,cpu", "1")
    # Each has a batch that runs and one that forms.
    assert predictor_of(files)["containerConcurrency"] == 3 * 2 * int(variables["TORPOR_MAX_BATCH_SIZE"])


@pytest.mark.parametrize(
    "node",
    [
        pytest.param(replace(GATEWAY, runtime_class="none"), id="without a sandbox"),
        pytest.param(replace(GATEWAY, cores=2), id="one core beside K3s's"),
        pytest.param(SERVER, id="on a GPU"),
    ],
)
def test_a_model_has_one_instance_where_more_would_gain_nothing(node: Profile) -> None:
    variables = variables_of(files_of(node))
    assert "TORPOR_DEVICE" not in variables
    assert variables["TORPOR_THREADS"] == str(node.cores - 1)
    assert predictor_of(files_of(node))["containerConcurrency"] == 2 * int(variables["TORPOR_MAX_BATCH_SIZE"])


@pytest.mark.parametrize(("name", "value"), [("TORPOR_THREADS", "2"), ("TORPOR_DEVICE", "cpu")])
def test_a_service_that_says_its_threads_or_instances_gets_none(name: str, value: str) -> None:
    containers = f'containers: [{{ image: {IMAGE}, env: [{{ name: {name}, value: "{value}" }}] }}]'
    own = f"kind: InferenceService\nmetadata: {{ name: x }}\nspec: {{ predictor: {{ {containers} }} }}\n"
    variables = variables_of(files_of(GATEWAY, own, None))
    assert {"TORPOR_THREADS": "3"} | {name: value} == {
        key: variables[key] for key in ("TORPOR_THREADS", "TORPOR_DEVICE") if key in variables
    }


def test_a_model_that_names_its_devices_keeps_them(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    folder.mkdir()
    (folder / "model.toml").write_text('class = "model:Digits"\n[device]\ndevice = "cpu,cpu"\n')
    assert "TORPOR_DEVICE" not in variables_of(files_of(GATEWAY, folder=folder))


@pytest.mark.parametrize(
    ("weights_bytes", "instances", "threads"), [(50 << 20, 3, 1), (150 << 20, 2, 1), (400 << 20, 1, 3)]
)
def test_instances_lie_in_half_of_what_is_free(weights_bytes: int, instances: int, threads: int) -> None:
    """A node may have other models; each instance has its weights, and once more while it reads them."""
    fit = sizes(GATEWAY, weights_bytes, 32)
    assert (fit.instances, fit.threads) == (instances, threads)
    assert fit.memory_bytes >= fit.instances * 2 * weights_bytes + (300 << 20)


def test_a_pod_takes_no_more_at_once_than_knative_allows() -> None:
    """However many instances it has."""
    node = replace(SERVER, accelerator="none", cores=512, memory_bytes=1 << 40)
    assert predictor_of(files_of(node))["containerConcurrency"] == 1000


@pytest.mark.parametrize(
    ("service", "said"),
    [
        (SERVICE.format(uri="s3://bucket/digits"), "storageUri = 's3://bucket/digits', must be pvc://CLAIM/NAME"),
        (SERVICE.format(uri="pvc:///digits"), "storageUri = 'pvc:///digits', must be pvc://CLAIM/NAME"),
        (SERVICE.format(uri="pvc://models"), "storageUri = 'pvc://models', must be pvc://CLAIM/NAME"),
        ("kind: Service\n", "has 0 InferenceServices, must have one"),
        ("kind: InferenceService\nmetadata: { name: x }\n", "must have metadata.name and spec.predictor"),
        ("kind: [\n", "the service's file, line"),
        (SERVICE.format(uri="pvc://models/digits").replace("name: digits", "name: Digits"), "Digits"),
        (
            "kind: InferenceService\nmetadata: { name: x }\nspec: { predictor: { containers: [{ image: other:1 }] } }\n",
            "images = other:1, must be localhost/torpor:dev alone",
        ),
    ],
)
def test_a_service_that_does_not_go_on_a_node_is_refused(service: str, said: str) -> None:
    with pytest.raises(Refused, match=re.escape(said)):
        files_of(GATEWAY, service, None)


def test_what_knative_would_refuse_is_refused_before() -> None:
    """By the rules of `torpor validate`."""
    with pytest.raises(Refused, match=r"service\.yaml: .*900"):
        files_of(SERVER, SERVICE.format(uri="pvc://models/digits") + "    timeout: 900\n")


def test_a_model_for_cuda_is_refused_on_a_node_without(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    folder.mkdir()
    (folder / "model.toml").write_text('class = "model:Digits"\n[device]\ndevice = "cuda"\n')
    with pytest.raises(Refused, match="the model's device is cuda, must be cpu or auto"):
        files_of(GATEWAY, folder=folder)


def test_a_model_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text("class = 3\n")
    with pytest.raises(Refused, match=r"model\.toml"):
        files_of(GATEWAY, folder=tmp_path)


def test_what_needs_kserve_is_refused_where_knative_serves() -> None:
    container = f"{{ image: {IMAGE} }}"
    spec = f"{{ predictor: {{ containers: [{container}] }}, transformer: {{ containers: [{container}] }} }}"
    with pytest.raises(Refused, match=r"spec\.transformer needs KServe"):
        files_of(SERVER, f"kind: InferenceService\nmetadata: {{ name: x }}\nspec: {spec}\n", None)


def test_a_node_without_a_link_asks_no_registry() -> None:
    """Images come with the bundle: K3s lists every registry as mirrored by nothing, and the pod never pulls."""
    files = files_of(Profile("mast", "arm64", 4 << 30, 4, 32 << 30, link="none"))
    assert "disable-default-registry-endpoint: true" in files["k3s/config.yaml"]
    assert '"*": {}' in files["k3s/registries.yaml"]
    assert "imagePullPolicy: Never" in files["manifests/deployment.yaml"]


def test_a_sites_mirror_is_asked_first() -> None:
    files = files_of(Profile("shop", "amd64", 4 << 30, 4, 32 << 30, mirror="https://registry.site:5000"))
    assert 'endpoint: ["https://registry.site:5000"]' in files["k3s/registries.yaml"]


def test_a_node_without_gvisor_has_none_of_its_files() -> None:
    files = files_of(Profile("old", "arm", 2 << 30, 2, 8 << 30, runtime_class="none"))
    assert not {"k3s/runsc.toml", "k3s/config-v3.toml.tmpl", "manifests/runtimeclass.yaml"} & files.keys()
    assert "runtimeClassName" not in files["manifests/deployment.yaml"]
    assert "torpor.dev/runsc" not in files["k3s/config.yaml"]


def test_containerd_2_knows_the_runtime_of_the_template(tmp_path: Path) -> None:
    """The rendered template, with version 3 in the place of K3s's own part, as `containerd config dump` reads it back."""
    containerd = shutil.which("containerd")
    if containerd is None:
        pytest.skip("no containerd 2 on the path")
    template = files_of(GATEWAY)["k3s/config-v3.toml.tmpl"]
    text = re.sub(r"\{\{/\*.*?\*/\}\}", "", template).replace('{{ template "base" . }}', "version = 3")
    assert "{{" not in text
    (tmp_path / "config.toml").write_text(text)
    command = [containerd, "--config", tmp_path / "config.toml", "config", "dump"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    dumped = re.search(
        r"\[plugins\.'io\.containerd\.cri\.v1\.runtime'\.containerd\.runtimes\.runsc\](.*?)runtimes\.",
        done.stdout,
        re.S,
    )
    assert dumped is not None
    assert "runtime_type = 'io.containerd.runsc.v1'" in dumped[1]
    assert "dev.gvisor.*" in dumped[1]
    assert "ConfigPath = '/etc/containerd/runsc.toml'" in done.stdout


def test_the_command_writes_the_files_and_says_which(tmp_path: Path) -> None:
    """Into a folder of their own; a second time it is refused."""
    (tmp_path / "node.toml").write_text(profile("amd64", memory='"4Gi"'))
    command = [TORPOR, "edge", "profile", "node.toml", "--out", "out", "--model", ROOT / "examples/digits"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    said = {Path(line).relative_to("out").as_posix() for line in done.stdout.splitlines()}
    assert said == {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "out has files, must be new or empty" in again.stderr
    wrong = subprocess.run([*command[:-2], "--path", "/x"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "--path, but no --model" in wrong.stderr
