"""A container as a process: command, environment, limits, and what is refused."""

import sys
from pathlib import Path
from typing import Any

import pytest
from torpor.knative.up.container import IMAGES, Surroundings, process_of
from torpor.knative.up.documents import Document, UpError
from torpor.knative.up.services import Service, plan

TORPOR = str(Path(sys.executable).with_name("torpor"))


def services(**spec: Any) -> list[Service]:
    """Those of an InferenceService `pa`."""
    content = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "pa"},
        "spec": spec,
    }
    return [*plan([Document(content, "pa.yaml:1")]).services]


def around(*maps: tuple[str, str], images: tuple[str, ...] = (), **environment: str) -> Surroundings:
    return Surroundings(environment, maps, (*IMAGES, *images), {"pa-predictor": "127.0.0.1:81"})


def container(**fields: Any) -> dict[str, Any]:
    return {"containers": [{"image": "localhost/torpor:dev", **fields}]}


def test_torpors_own_image_is_torpor_serve() -> None:
    """The one beside this interpreter, with the container's arguments, on a port of its own and this machine alone."""
    (one,) = services(predictor=container(args=["/models/pa"]))
    process = process_of(one, 70, None, around())
    assert process.command == [TORPOR, "serve", "/models/pa"]
    expected = {"PORT": "70", "INFERENCE_SERVICE_NAME": "pa", "K_SERVICE": "pa-predictor", "TORPOR_HOST": "127.0.0.1"}
    assert expected.items() <= process.environment.items()


@pytest.mark.parametrize("image", ["torpor", "registry:5000/team/torpor:1.0", "a/torpor@sha256:00"])
def test_images_named_torpor_count(image: str) -> None:
    """Whatever the registry, tag or digest."""
    (one,) = services(predictor=container(image=image))
    assert process_of(one, 70, None, around()).command == [TORPOR, "serve"]


def test_another_image_is_refused_by_name() -> None:
    """With what to do about it; a pattern makes it torpor's own."""
    (one,) = services(predictor=container(image="example.org/mine:1"))
    with pytest.raises(UpError, match=r"pa.yaml:1: spec.predictor: image 'example.org/mine:1' cannot .* --image"):
        process_of(one, 70, None, around())
    assert process_of(one, 70, None, around(images=("*/mine:*",))).command == [TORPOR, "serve"]


def test_a_command_is_run_as_given() -> None:
    """Whatever the image; `torpor` is the one that runs."""
    (one,) = services(predictor=container(image="x", command=["python", "serve.py"], args=["-v"]))
    assert process_of(one, 70, None, around()).command == ["python", "serve.py", "-v"]
    (one,) = services(predictor=container(command=["torpor", "events", "tail"]))
    assert process_of(one, 70, None, around()).command == [TORPOR, "events", "tail"]


def test_models_lie_elsewhere() -> None:
    """/mnt/models in arguments and environment is the folder that was fetched; so is what KServe makes of STORAGE_URI."""
    env = [{"name": "WEIGHTS", "value": "/mnt/models/w.bin"}, {"name": "STORAGE_URI", "value": "pvc://claim/m"}]
    (one,) = services(predictor=container(args=["--model-dir=/mnt/models"], env=env))
    assert one.storage_uri == "pvc://claim/m"
    process = process_of(one, 70, Path("/here"), around())
    assert process.command[-1] == "--model-dir=/here"
    assert process.environment["WEIGHTS"] == "/here/w.bin"
    assert process.environment["STORAGE_URI"] == "/here"
    assert process.environment["TORPOR_MODEL"] == "/here"


def test_maps_and_references() -> None:
    """--map replaces, $(NAME) expands as the kubelet has it: unknown names stay, $$ is a dollar."""
    env = [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2"}]
    (one,) = services(predictor=container(args=["/opt/x/m", "$(B)", "$(NONE)", "$$(A)"], env=env))
    process = process_of(one, 70, None, around(("/opt/x", "local")))
    assert process.command[2:] == ["local/m", "12", "$(NONE)", "$(A)"]


def test_a_port_in_the_arguments_is_replaced() -> None:
    """If it is the container's: every container has its own on a cluster, and not here."""
    arguments = ["--http_port=8080", "--port", "8080", "--port", "9"]
    (one,) = services(predictor=container(args=arguments))
    assert process_of(one, 70, None, around()).command[2:] == ["--http_port=70", "--port", "70", "--port", "9"]


def test_the_shells_own_settings_do_not_leak() -> None:
    """What a container would not see of torpor's settings; the rest (PATH, proxies) is there."""
    (one,) = services(predictor=container())
    process = process_of(one, 70, None, around(TORPOR_MODEL="wrong", PORT="1", K_SINK="http://x", HOME="/h"))
    assert process.environment["HOME"] == "/h"
    assert process.environment["PORT"] == "70"
    assert not {"TORPOR_MODEL", "K_SINK"} & process.environment.keys()


def test_value_from_comes_from_the_shell() -> None:
    """Secrets are not here: the message says what to set."""
    (one,) = services(predictor=container(env=[{"name": "KEY", "valueFrom": {"secretKeyRef": {}}}]))
    with pytest.raises(UpError, match="env KEY is valueFrom, which is not here: set KEY for torpor up"):
        process_of(one, 70, None, around())
    assert process_of(one, 70, None, around(KEY="s")).environment["KEY"] == "s"


def test_limits() -> None:
    """Memory in bytes; threads by the CPU limit, rounded up, unless the container says."""
    resources = {"limits": {"memory": "1.5Gi", "cpu": "1500m"}}
    (one,) = services(predictor=container(resources=resources))
    process = process_of(one, 70, None, around(OMP_NUM_THREADS="9"))
    assert process.memory_bytes == 1536 << 20
    assert process.environment["OMP_NUM_THREADS"] == "2"
    (one,) = services(predictor=container(resources=resources, env=[{"name": "OMP_NUM_THREADS", "value": "1"}]))
    assert process_of(one, 70, None, around()).environment["OMP_NUM_THREADS"] == "1"


def test_a_transformer_asks_its_predictor() -> None:
    """By the arguments that KServe's webhook adds, unless they are there; it comes before its predictor."""
    first, second = services(predictor=container(), transformer=container(args=["--model_name", "mine"]))
    assert (first.name, second.name) == ("pa-transformer", "pa-predictor")
    command = process_of(first, 70, None, around()).command
    assert command[2:] == ["--model_name", "mine", "--predictor_host", "127.0.0.1:81", "--http_port", "70"]


def test_min_replicas_are_kserves() -> None:
    """None is 1, 0 is allowed, and KServe drops the annotation of Knative's."""
    for replicas, expected in (({}, 1), ({"minReplicas": 0}, 0), ({"minReplicas": 3}, 3)):
        (one,) = services(
            predictor=container() | replicas | {"annotations": {"autoscaling.knative.dev/min-scale": "7"}}
        )
        assert one.autoscaling.min_scale == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "spec.predictor is missing"),
        ({"predictor": {}}, "spec.predictor.containers is missing"),
        ({"predictor": {"sklearn": {}}}, "spec.predictor.sklearn is not run here"),
        (
            {"predictor": {"model": {"modelFormat": {"name": "onnx"}}}},
            "modelFormat.name = 'onnx', must be one of torpor",
        ),
        ({"predictor": {"model": {"modelFormat": {"name": "torpor"}}}}, "storageUri is missing"),
        ({"predictor": container(), "explainer": {}}, "spec.explainer is not run here"),
        (
            {"predictor": container() | {"annotations": {"autoscaling.knative.dev/window": "5s"}}},
            r"annotation autoscaling.knative.dev/window = '5s', must be whole seconds, .* in \[6, 3600\]",
        ),
    ],
)
def test_what_cannot_be_run_is_named(spec: dict[str, Any], message: str) -> None:
    """By its place."""
    with pytest.raises(UpError, match=rf"^pa.yaml:1.*{message}"):
        services(**spec)
