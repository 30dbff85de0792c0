"""The example's InferenceService on a real cluster: to ready, to zero, and awake again with the first request.

Needs $KUBECONFIG, kubectl, $INGRESS (the address of Knative's ingress, http://HOST:PORT) and the image $TORPOR_IMAGE
(localhost/torpor:dev), which the Dockerfile makes.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import numpy as np
import pytest
from cluster_namespace import IMAGE, NEEDS_INGRESS, Namespace, post
from torpor.predictors.protocol.v2_grpc import ModelInferRequest, ModelInferResponse

pytestmark = NEEDS_INGRESS

ROOT = Path(__file__).resolve().parent.parent.parent
NAMESPACE = Namespace("test")
TOKENS = [101, 7592, 2088, 102]
WAKES = 10
PODS = "serving.kserve.io/inferenceservice=minilm"


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """The service's host name, once it is ready; the namespace goes at the end."""
    # Sleep soon: the shortest window that Knative takes; a drain is cut at the request's timeout.
    quick = {"spec": {"predictor": {"timeout": 20, "annotations": {"autoscaling.knative.dev/window": "6s"}}}}
    example = (ROOT / "examples/minilm/inferenceservice.yaml").read_text().replace("localhost/torpor:dev", IMAGE)
    with NAMESPACE:
        patch = ("patch", "--local", "-f", "-", "--type", "merge", "-p", json.dumps(quick), "-o", "yaml")
        NAMESPACE.kubectl("apply", "-f", "-", given=NAMESPACE.kubectl(*patch, given=example))
        ready = ["wait", "--for=condition=Ready", "inferenceservice/minilm", "--timeout=180s"]
        if subprocess.run(["kubectl", "-n", NAMESPACE.name, *ready], capture_output=True, check=False).returncode:
            pytest.fail(
                f"not ready; does the cluster know the image {IMAGE}, made from the Dockerfile?\n{NAMESPACE.state()}"
            )
        yield NAMESPACE.host("minilm-predictor")


def ask_rest(host: str) -> np.ndarray:
    """The embedding of four tokens, by v2 JSON."""
    inputs = [
        {"name": name, "shape": [1, 4], "datatype": "INT64", "data": data}
        for name, data in (("input_ids", TOKENS), ("attention_mask", [1] * 4))
    ]
    answer = post(host, "/v2/models/minilm/infer", {"inputs": inputs})
    return np.array(answer["outputs"][0]["data"], np.float32)


def ask_grpc(host: str) -> np.ndarray:
    """The same by gRPC's ModelInfer."""
    request = ModelInferRequest(model_name="minilm")
    for name, data in (("input_ids", TOKENS), ("attention_mask", [1] * 4)):
        request.inputs.add(name=name, datatype="INT64", shape=[1, 4])
        request.raw_input_contents.append(np.array(data, np.int64).tobytes())
    options = [("grpc.default_authority", host)]
    with grpc.insecure_channel(urlsplit(os.environ["INGRESS"]).netloc, options=options) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            ModelInferRequest.SerializeToString,
            ModelInferResponse.FromString,
        )
        response = call(request, timeout=60)
    return np.frombuffer(response.raw_output_contents[0], np.float32)


def wait_for_zero() -> float:
    """Wait until no pod is left; the seconds that it took."""
    began_s = time.monotonic()
    NAMESPACE.kubectl("wait", "--for=delete", "pod", "-l", PODS, "--timeout=120s")
    assert not NAMESPACE.kubectl("get", "pods", "-l", PODS, "-o", "name")
    return time.monotonic() - began_s


def test_it_sleeps_at_zero_and_wakes_with_each_request(host: str) -> None:
    """One REST and one gRPC request while awake; then ten times to zero and back, every request answered."""
    expected = ask_rest(host)
    assert np.linalg.norm(expected) == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(ask_grpc(host), expected, atol=1e-5)
    for wake in range(WAKES):
        asleep_s = wait_for_zero()
        ask = (ask_rest, ask_grpc)[wake % 2]
        began_s = time.monotonic()
        try:
            answer = ask(host)
        except (OSError, grpc.RpcError) as error:
            pytest.fail(f"wake {wake + 1}, {ask.__name__}: {error}\n{NAMESPACE.state()}")
        print(
            f"wake {wake + 1}: {ask.__name__} answered {time.monotonic() - began_s:.2f} s after zero ({asleep_s:.0f} s to it)"
        )
        np.testing.assert_allclose(answer, expected, atol=1e-5)
