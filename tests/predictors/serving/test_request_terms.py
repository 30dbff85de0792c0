"""What a request says beside its tensors reaches the user's class, by every protocol."""

import json
import time

import grpc
import numpy as np
import pytest
from torpor.predictors.protocol.messages import message

PATH = "/v2/models/asks/infer"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def asks(serve):
    return serve("asks", "--request-timeout-s", "1000")


def request(**tensor: object) -> dict[str, object]:
    x = {"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"content_type": "raw", "n": 1}}
    return {"id": "7", "parameters": {"top_k": 3, "unknown": "é"}, "inputs": [x | tensor]}


def test_rest_keeps_ids_and_parameters(connect, asks) -> None:
    """Of the request and of its inputs, JSON or binary; an output may have an input's name, and be asked for alone."""
    connection = connect(asks)
    binary = request()
    binary["inputs"][0]["parameters"] |= {"binary_data_size": 4}
    head = json.dumps(binary).encode()
    length = {"inference-header-content-length": str(len(head))}
    for _ in range(2):
        for body, headers in ((json.dumps(request(data=[5])).encode(), {}), (head + np.float32(5).tobytes(), length)):
            reply = connection.request("POST", PATH, body, headers | {"traceparent": TRACE}).json()
            x, said = reply["outputs"]
            assert (reply["id"], x["name"], x["data"]) == ("7", "x", [5])
            content = json.loads(said["data"][0])
            assert 990 < content.pop("remaining_s") <= 1000
            assert content == {
                "id": "7", "parameters": {"top_k": 3, "unknown": "é"}, "traceparent": TRACE,
                "tensor_parameters": {"x": {"content_type": "raw", "n": 1}},
            }  # fmt: skip
    alone = json.dumps(request(data=[5]) | {"outputs": [{"name": "x"}]}).encode()
    assert [output["name"] for output in connection.request("POST", PATH, alone).json()["outputs"]] == ["x"]


@pytest.mark.parametrize("raw", [True, False])
def test_grpc_keeps_ids_and_parameters(grpc_infer, asks, raw: bool) -> None:
    """The same, with metadata as headers and the call's own deadline."""
    asked = message("inference.ModelInferRequest")(model_name="asks", id="7")
    asked.parameters["top_k"].int64_param = 3
    tensor = asked.inputs.add(name="x", datatype="FP32", shape=[1])
    tensor.parameters["content_type"].string_param = "raw"
    if raw:
        asked.raw_input_contents.append(np.float32(5).tobytes())
    else:
        tensor.contents.fp32_contents.append(5)
    for _ in range(2):
        response = grpc_infer(asks)(asked, metadata=[("traceparent", TRACE)], timeout=50)
        data = response.raw_output_contents[1][4:] if raw else response.outputs[1].contents.bytes_contents[0]
        content = json.loads(data)
        assert 40 < content.pop("remaining_s") < 51
        assert content == {
            "id": "7", "parameters": {"top_k": 3}, "traceparent": TRACE,
            "tensor_parameters": {"x": {"content_type": "raw"}},
        }  # fmt: skip


@pytest.mark.parametrize("headers", [{"grpc-timeout": "50S"}, {"x-envoy-expected-rq-timeout-ms": "50000"}])
def test_the_shortest_time_is_what_is_left(connect, asks, headers: dict[str, str]) -> None:
    """A header's over the server's default, the parameter's over a longer header's."""
    connection = connect(asks)
    for parameters, most in (({}, 50), ({"timeout": 5_000_000}, 5), ({"timeout": 500_000_000}, 50)):
        body = json.dumps(request(data=[5]) | {"parameters": parameters}).encode()
        content = json.loads(connection.request("POST", PATH, body, headers).json()["outputs"][1]["data"][0])
        assert most - 4 < content["remaining_s"] <= most


def test_a_failing_model_is_logged_with_the_trace(connect, grpc_infer, marked) -> None:
    """One line says which request of which trace failed, and how."""
    seen = len(marked.log)
    row = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1000, 0]}
    reply = connect(marked).request(
        "POST", "/v2/models/marked/infer", json.dumps({"inputs": [row]}).encode(), {"traceparent": TRACE}
    )
    assert reply.status == 500
    asked = message("inference.ModelInferRequest")(model_name="marked")
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1000, 0])
    with pytest.raises(grpc.RpcError):
        grpc_infer(marked)(asked, metadata=[("traceparent", TRACE)])
    path = "POST /inference.GRPCInferenceService/ModelInfer"
    for request_ in ("POST /v2/models/marked/infer", path):
        line = f"{request_} of trace {TRACE[3:35]}: the model raised RuntimeError"
        end_s = time.monotonic() + 20
        while not any(line in entry for entry in marked.log[seen:]):
            assert time.monotonic() < end_s, marked.log[seen:]


def test_v1_has_a_deadline_too(connect, asks) -> None:
    """By the same headers."""
    body = b'{"instances": [1]}'
    reply = connect(asks).request("POST", "/v1/models/asks:predict", body, {"grpc-timeout": "50S"})
    assert 40 < json.loads(reply.json()["predictions"][0]["said"])["remaining_s"] <= 50
