"""TorchServe's storage folder on a real cluster: an InferenceService of `modelFormat: pytorch` that names no runtime.

Needs $KUBECONFIG, kubectl, $INGRESS (the address of Knative's ingress, http://HOST:PORT) and the image $TORPOR_TORCHSERVE_IMAGE
(localhost/torpor:torchserve), which the Dockerfile makes with `--build-arg EXTRAS=torchserve`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import numpy as np
import pytest
import torch
from archives import entry, write_storage
from cluster_namespace import NEEDS_INGRESS, Namespace, post
from torpor.knative.render_command import runtime
from torpor.predictors.protocol.v2_grpc import ModelInferRequest, ModelInferResponse

pytestmark = NEEDS_INGRESS

IMAGE = os.environ.get("TORPOR_TORCHSERVE_IMAGE", "localhost/torpor:torchserve")
NAMESPACE = Namespace("torchserve")
RUNTIME = f"torpor-{NAMESPACE.name.rpartition('-')[2]}"
ARCHIVER = Path(sys.executable).with_name("torch-model-archiver")
NETWORK = """
import torch

class Mlp(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Linear(784, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
"""
HANDLER = """
import torch
from ts.torch_handler.base_handler import BaseHandler

class Digits(BaseHandler):
    def preprocess(self, data):
        rows = [row.get("body", row)["data"] if isinstance(row, dict) else row for row in data]
        return torch.tensor(rows).reshape(-1, 784)

    def postprocess(self, data):
        return data.argmax(1).tolist()
"""
SERVICE = f"""
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: shop
  namespace: {NAMESPACE.name}
  annotations: {{ serving.kserve.io/deploymentMode: Knative }}
spec:
  predictor:
    minReplicas: 1
    model:
      modelFormat: {{ name: pytorch }}
      storageUri: pvc://models/storage
"""
MODELS = Path("/tmp") / NAMESPACE.name
"""On the machine, which is the cluster's node."""

ROWS = torch.linspace(-1, 1, 3 * 784).reshape(3, 784)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """The digits of ROWS; `digits.mar` of the same network is in the storage folder."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(784, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
    sources, store = tmp_path_factory.mktemp("sources"), MODELS / "storage" / "model-store"
    store.mkdir(parents=True)
    (sources / "network.py").write_text(NETWORK)
    (sources / "digits.py").write_text(HANDLER)
    torch.save(network.state_dict(), sources / "digits.pt")
    options = (
        "--model-name digits --version 1.0 --handler digits.py --model-file network.py --serialized-file digits.pt"
    )
    command = [ARCHIVER, *options.split(), "--export-path", store]
    subprocess.run(command, cwd=sources, check=True, capture_output=True)
    write_storage(MODELS / "storage", {"digits": {"1.0": entry("digits.mar", batchSize=8, maxBatchDelay=5)}})
    digits: list[int] = network(ROWS).argmax(1).tolist()
    return digits


@pytest.fixture(scope="module")
def host(expected: list[int]) -> Iterator[str]:
    """The service's host name, once it is ready. The namespace, and what is the cluster's, go at the end."""
    with NAMESPACE:
        NAMESPACE.kubectl("label", "namespace", NAMESPACE.name, "pod-security.kubernetes.io/enforce=restricted")
        try:
            named = runtime(IMAGE, True).replace("\n  name: torpor\n", f"\n  name: {RUNTIME}\n")
            NAMESPACE.kubectl("apply", "--validate=strict", "-f", "-", given=named)
            NAMESPACE.claim(MODELS)
            NAMESPACE.kubectl("apply", "--validate=strict", "-f", "-", given=SERVICE)
            ready = ("wait", "--for=condition=Ready", "inferenceservice/shop", "--timeout=180s")
            NAMESPACE.kubectl(*ready, timeout_s=210)
            yield NAMESPACE.host("shop-predictor")
        finally:
            NAMESPACE.delete("persistentvolume", NAMESPACE.name)
            NAMESPACE.delete("clusterservingruntime", RUNTIME)
            shutil.rmtree(MODELS)


def test_kserve_takes_torpors_runtime_for_pytorch(host: str) -> None:
    """Nothing in the YAML says torpor."""
    images = "jsonpath={.items[0].spec.containers[*].image}"
    look = ("get", "pods", "-l", "serving.kserve.io/inferenceservice=shop", "-o", images)
    assert IMAGE in NAMESPACE.kubectl(*look).split()


def test_v1_answers_under_the_archives_name(host: str, expected: list[int]) -> None:
    """The handler gets the instances, the caller what it returns."""
    answer = post(host, "/v1/models/digits:predict", {"instances": ROWS.tolist()})
    assert answer == {"predictions": expected}


def test_v2_rest_answers(host: str, expected: list[int]) -> None:
    """The handler gets the input as an object, the caller an output of the input's name."""
    asked = {"name": "image", "shape": [1, 784], "datatype": "FP32", "data": ROWS[0].tolist()}
    answer = post(host, "/v2/models/digits/infer", {"inputs": [asked]})
    assert answer["outputs"] == [{"name": "image", "datatype": "INT64", "shape": [1], "data": expected[:1]}]


def test_v2_grpc_answers(host: str, expected: list[int]) -> None:
    """Tensors both ways."""
    request = ModelInferRequest(model_name="digits")
    request.inputs.add(name="image", datatype="FP32", shape=[1, 784])
    request.raw_input_contents.append(ROWS[1].numpy().tobytes())
    options = [("grpc.default_authority", host)]
    with grpc.insecure_channel(urlsplit(os.environ["INGRESS"]).netloc, options=options) as channel:
        path = "/inference.GRPCInferenceService/ModelInfer"
        call = channel.unary_unary(path, ModelInferRequest.SerializeToString, ModelInferResponse.FromString)
        response = call(request, timeout=60)
    assert [(output.name, output.datatype) for output in response.outputs] == [("image", "INT64")]
    assert np.frombuffer(response.raw_output_contents[0], np.int64).tolist() == expected[1:2]


def test_predictions_answer_as_torchserves(host: str, expected: list[int]) -> None:
    """TorchServe's own path is there too, behind the same ingress."""
    assert post(host, "/predictions/digits", {"data": ROWS[2].tolist()}) == expected[2]
