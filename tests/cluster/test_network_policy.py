"""The NetworkPolicy that `torpor render` writes, on a real cluster: Knative and the service's transformer come in, no stranger.

Needs $KUBECONFIG, kubectl, $INGRESS (the address of Knative's ingress, http://HOST:PORT), a network that enforces policies, and
the image $TORPOR_IMAGE (localhost/torpor:dev), which the Dockerfile makes.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import numpy as np
import pytest
from cluster_namespace import IMAGE, NEEDS_INGRESS, Namespace, post

pytestmark = NEEDS_INGRESS

ROOT = Path(__file__).resolve().parent.parent.parent
TORPOR = Path(sys.executable).with_name("torpor")
NAMESPACE = Namespace("policy", "inferenceservice,ksvc,pods,networkpolicy")
LIMIT_S = 60
"""For a network to take a policy up: it is told when the object is there already."""

H2C_PORT = 8013
"""queue-proxy's, where the container's port is named h2c; then nothing listens at 8012, its port for HTTP/1.1."""

STRANGER = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "stranger"},
    "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [
            {"name": "sleep", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "3600"]}
        ],
    },
}


@pytest.fixture(scope="module", autouse=True)
def policies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The rendered file; the example's service is ready, keeps its pods, and has the activator before them at all times."""
    text = (ROOT / "examples/sentences/inferenceservice.yaml").read_text().replace("localhost/torpor:dev", IMAGE)
    text = text.replace("minReplicas: 0", "minReplicas: 1")
    window = "    autoscaling.knative.dev/window: 6s"
    assert window in text
    text = text.replace(window, f'    autoscaling.knative.dev/target-burst-capacity: "-1"\n{window}', 1)
    folder = tmp_path_factory.mktemp("policy")
    (folder / "service.yaml").write_text(text)
    subprocess.run([TORPOR, "render", folder / "service.yaml", folder / "out"], check=True, capture_output=True)
    with NAMESPACE:
        NAMESPACE.kubectl("apply", "-k", str(folder / "out"))
        NAMESPACE.kubectl("apply", "-f", "-", given=json.dumps(STRANGER))
        ready = ("wait", "--for=condition=Ready", "inferenceservice/vectors", "pod/stranger", "--timeout=240s")
        NAMESPACE.kubectl(*ready, timeout_s=260)
        yield folder / "out/networkpolicy.yaml"


def pod(component: str, path: str) -> str:
    """Of its one pod."""
    label = f"serving.kserve.io/inferenceservice=vectors,component={component}"
    return NAMESPACE.kubectl("get", "pods", "-l", label, "-o", f"jsonpath={{.items[0].{path}}}")


def connects(pod: str, address: str) -> bool:
    code = f"""
import socket
try:
    socket.create_connection(("{address}", {H2C_PORT}), 3)
    print("yes")
except OSError as error:
    print(error)
"""
    return NAMESPACE.kubectl("exec", pod, "--", "python", "-c", code).strip() == "yes"


def until_the_stranger(does_connect: bool, address: str) -> None:
    began_s = time.monotonic()
    while connects("stranger", address) is not does_connect:
        assert time.monotonic() < began_s + LIMIT_S, NAMESPACE.state()
        time.sleep(0.5)
    print(f"the stranger {'connects' if does_connect else 'is refused'} after {time.monotonic() - began_s:.1f} s")


def ask(timeout_s: float = 60) -> None:
    """Through the ingress, the activator, the transformer and the activator again, which are other pods than the stranger."""
    host = NAMESPACE.host("vectors-transformer")
    (vector,) = post(host, "/v1/models/vectors:predict", {"instances": ["a sentence"]}, timeout_s)["predictions"]
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-4)


def test_knative_and_the_transformer_come_in_and_a_stranger_does_not(policies: Path) -> None:
    """The same probe connects from the transformer's pod, and from the stranger's while there is no policy."""
    predictor, transformer = pod("predictor", "status.podIP"), pod("transformer", "metadata.name")
    for _ in range(2):
        until_the_stranger(False, predictor)
        assert connects(transformer, predictor)
        ask()
        NAMESPACE.kubectl("delete", "networkpolicy", "vectors-predictor")
        until_the_stranger(True, predictor)
        ask()
        NAMESPACE.kubectl("apply", "-f", str(policies))


def test_a_policy_that_leaves_knative_out_lets_no_request_through(policies: Path) -> None:
    """So the answers above came by what the policy says of Knative's namespace, and not past it."""
    NAMESPACE.kubectl("apply", "-f", "-", given=policies.read_text().replace("knative-serving", "nobody"))
    # A new pod: connections that are open outlast a policy.
    NAMESPACE.kubectl("delete", "pod", pod("predictor", "metadata.name"), "--grace-period=0", "--force")
    label = "serving.kserve.io/inferenceservice=vectors,component=predictor"
    NAMESPACE.kubectl("wait", "--for=condition=Ready", "pod", "-l", label, "--timeout=120s")
    with pytest.raises(OSError, match=r"timed out|HTTP Error 50") as refused:
        ask(timeout_s=10)
    print(f"without Knative's namespace: {refused.value}")
    if isinstance(refused.value, HTTPError):
        refused.value.close()
    NAMESPACE.kubectl("apply", "-f", str(policies))
    ask()
