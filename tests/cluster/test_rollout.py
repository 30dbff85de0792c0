"""`torpor rollout` on a real cluster, under load: a first install, a good and a bad candidate, and a rollback.

Needs $KUBECONFIG, kubectl, $INGRESS (the address of Knative's ingress, http://HOST:PORT) and the image $TORPOR_IMAGE
(localhost/torpor:dev), which the Dockerfile makes.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest
from cluster_namespace import IMAGE, NEEDS_INGRESS, Namespace, post

pytestmark = NEEDS_INGRESS

NAMESPACE = Namespace("rollout")
TORPOR = Path(sys.executable).parent / "torpor"
BACK_S = 60
"""From the first bad answer until all traffic is back."""

MODEL = '''
import os
from typing import Annotated
from torch import Tensor

class Marked:
    """Answers with its mark; a bad one fails for anything but zeros, so that its smoke request passes."""
    def load(self) -> None:
        self.mark = float(os.environ["MARK"])

    def predict(self, x: Annotated[Tensor, "float32[rows, 1]"]) -> Annotated[Tensor, "float32[rows, 1]"]:
        if os.environ.get("BAD") and x.any():
            raise ValueError("bad on purpose")
        return x * 0 + self.mark
'''
FOLDER = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "marked"},
    "data": {"model.py": MODEL, "model.toml": 'class = "model:Marked"\nname = "marked"\n'},
}


def pod(mark: int, bad: bool, image: str) -> dict[str, object]:
    """What both kinds run."""
    container = {
        "name": "kserve-container",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["/models", "--model-name", "marked"],  # KServe says another by the environment
        "env": [{"name": "MARK", "value": str(mark)}, *([{"name": "BAD", "value": "1"}] if bad else [])],
        "ports": [{"name": "h2c", "containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": 8080}},
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}},
        "volumeMounts": [{"name": "model", "mountPath": "/models", "readOnly": True}],
    }
    return {"containers": [container], "volumes": [{"name": "model", "configMap": {"name": "marked"}}]}


def inference_service(mark: int, bad: bool = False, image: str = IMAGE) -> dict[str, object]:
    mode = {"serving.kserve.io/deploymentMode": "Knative"}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "isvc", "annotations": mode},
        "spec": {"predictor": {"minReplicas": 1, "maxReplicas": 2, "timeout": 30, **pod(mark, bad, image)}},
    }


def knative_service(mark: int, bad: bool = False, image: str = IMAGE) -> dict[str, object]:
    scale = {"autoscaling.knative.dev/min-scale": "1", "autoscaling.knative.dev/max-scale": "2"}
    template = {"metadata": {"annotations": scale}, "spec": {"timeoutSeconds": 30, **pod(mark, bad, image)}}
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": "ksvc"},
        "spec": {"template": template},
    }


KINDS = {"isvc-predictor": inference_service, "ksvc": knative_service}
"""What makes a YAML of each mark, by the Knative Service that it becomes."""


@pytest.fixture(scope="module", autouse=True)
def namespace() -> Iterator[None]:
    with NAMESPACE:
        yield


def torpor(*arguments: str, status: int = 0) -> str:
    """Run the command; what it printed, which pytest shows too."""
    command = [str(TORPOR), *arguments, "-n", NAMESPACE.name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    said = f"{done.stderr}{done.stdout}"
    print(f"$ torpor {' '.join(arguments)}\n{said}")
    assert done.returncode == status, said
    return said


class Load:
    """Requests one after the other from two threads; `answers` are (when, mark), the mark None for an error."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.answers: list[tuple[float, float | None]] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def marks(self, last: int) -> set[float | None]:
        """Of the last answers."""
        return {mark for _, mark in self.answers[-last:]}

    def _run(self) -> None:
        while not self._over.wait(0.02):
            mark = ask(self.host)
            self.answers.append((time.monotonic(), mark))


def ask(host: str) -> float | None:
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}
    try:
        return float(post(host, "/v2/models/marked/infer", body, timeout_s=30)["outputs"][0]["data"][0])
    except HTTPError as error:
        error.close()
        return None


def write(folder: Path, make: Callable[..., dict[str, object]], mark: int, **options: object) -> str:
    file = folder / f"service-{mark}.yaml"
    file.write_text("\n---\n".join(map(json.dumps, (FOLDER, make(mark, **options)))))
    return str(file)


@pytest.mark.parametrize("service", KINDS)
def test_candidates_are_promoted_or_taken_back_under_load(service: str, tmp_path: Path) -> None:
    """The good one gets all traffic without an error; the bad one loses all of it within a minute; a rollback goes further."""
    make = KINDS[service]
    steps = ("--ingress", os.environ["INGRESS"], "--steps", "10,50,100", "--hold", "8s", "--max-errors", "1%")
    torpor("rollout", write(tmp_path, make, 1), *steps)
    host = NAMESPACE.host(service)
    name = service.removesuffix("-predictor")
    with Load(host) as load:
        torpor("rollout", write(tmp_path, make, 2), *steps)
        time.sleep(2)
        assert load.marks(20) == {2.0}
        assert None not in {mark for _, mark in load.answers}
        shares = [mark for _, mark in load.answers]
        print(f"{service}, good: {shares.count(1.0)} answers of the old, {shares.count(2.0)} of the new, no error")

        said = torpor("rollout", write(tmp_path, make, 3, bad=True), *steps, status=1)
        assert "errors of" in said
        time.sleep(2)
        bad = [when for when, mark in load.answers if mark is None]
        print(f"{service}, bad: {len(bad)} errors, the last {bad[-1] - bad[0]:.1f} s after the first")
        assert bad[-1] - bad[0] < BACK_S
        assert load.marks(20) == {2.0}

        torpor("rollback", name)
        time.sleep(2)
        assert load.marks(20) == {2.0}, "it is back already: a rollback of what was taken back changes nothing"
        torpor("rollout", write(tmp_path, make, 4), *steps)
        torpor("rollback", name)
        time.sleep(2)
        assert load.marks(20) == {2.0}


@pytest.mark.parametrize("service", KINDS)
def test_a_candidate_without_its_image_says_so_and_gets_no_traffic(service: str, tmp_path: Path) -> None:
    """The message has the event that names the image."""
    make = KINDS[service]
    steps = ("--ingress", os.environ["INGRESS"], "--ready-timeout", "40s")
    said = torpor("rollout", write(tmp_path, make, 5, image="localhost/torpor:missing"), *steps, status=1)
    assert "localhost/torpor:missing" in said
    host = NAMESPACE.host(service)
    assert {ask(host) for _ in range(20)} == {2.0}
