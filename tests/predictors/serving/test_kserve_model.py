"""The adapter under a stock kserve.ModelServer, in a process of its own, asked over everything that it speaks."""

import http.client
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from torpor.predictors.protocol.messages import message

ROOT = Path(__file__).parents[3]
MARKED = Path(__file__).parent / "models" / "marked"
ASKS = MARKED.with_name("asks")
TRANSFORMERS = ROOT / "tests" / "transformers" / "models"
RAISE, GIVE_NAN, WAIT = 1000, 1003, 1006

Infer = message("inference.ModelInferRequest")


@pytest.fixture(scope="module")
def kserve(kserve_server, gate_path: Path) -> Iterator[SimpleNamespace]:
    """The ports of a ModelServer with `mlp`, `marked`, `asks`, and the transformer `words`."""
    folders = ROOT / "examples" / "mlp", MARKED, ASKS, TRANSFORMERS / "words"
    with kserve_server(*folders, GATE=str(gate_path), TORPOR_PREDICTOR=str(TRANSFORMERS / "counts")) as ports:
        yield ports


def test_a_transformer_is_a_model_too(kserve) -> None:
    """With its predictor behind it, by v1 and v2; what it takes and gives is told."""
    body = json.dumps({"instances": ["ab", "c"]}).encode()
    status, content, _ = ask(kserve.http, "/v1/models/words:predict", body)
    assert (status, [one["said"] for one in json.loads(content)["predictions"]]) == (200, ["195", "99"])
    status, content, _ = ask(kserve.http, "/v2/models/words/infer", v2("word", datatype="BYTES", shape=[1], data=["c"]))
    outputs = {output["name"]: output["data"] for output in json.loads(content)["outputs"]}
    assert (status, outputs["said"]) == (200, ["99"])
    status, content, _ = ask(kserve.http, "/v2/models/words/infer", v2("word", datatype="BYTES", shape=[1], data=[""]))
    assert (status, json.loads(content)["error"]) == (400, "word = '', must have a letter")


@pytest.fixture(scope="module")
def expected() -> tuple[np.ndarray, np.ndarray]:
    """Inputs of mlp, and what torch makes of them."""
    torch = pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("mlp_example", ROOT / "examples" / "mlp" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Mlp()
    model.load()
    x = np.random.default_rng(0).standard_normal((32, 784), dtype=np.float32)
    with torch.inference_mode():
        return x, model.predict(torch.from_numpy(x)).numpy()


def ask(port: int, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"} | (headers or {}))
        response = connection.getresponse()
        return response.status, response.read(), {k.lower(): v for k, v in response.getheaders()}
    finally:
        connection.close()


def get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def v2(name: str, /, **changes: object) -> bytes:
    entry = {"name": name, "datatype": "FP32", "shape": [1, 2], "data": [1, 2]} | changes
    return json.dumps({"inputs": [entry]}).encode()


def v1_answer(server: SimpleNamespace, row: np.ndarray) -> object:
    body = json.dumps({"instances": [row.tolist()]}).encode()
    status, content, _ = ask(server.http, "/v1/models/mlp:predict", body)
    assert status == 200, content
    return json.loads(content)["predictions"][0]


def v2_json_answer(server: SimpleNamespace, row: np.ndarray) -> object:
    body = v2("input", shape=[1, 784], data=row.tolist())
    status, content, _ = ask(server.http, "/v2/models/mlp/infer", body)
    assert status == 200, content
    return json.loads(content)["outputs"][0]["data"]


def v2_binary_answer(server: SimpleNamespace, row: np.ndarray) -> object:
    entry = {"name": "input", "datatype": "FP32", "shape": [1, 784], "parameters": {"binary_data_size": 3136}}
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    status, content, answered = ask(server.http, "/v2/models/mlp/infer", head + row.tobytes(), headers)
    assert status == 200, content
    return np.frombuffer(content[int(answered["inference-header-content-length"]) :], "<f4")


def grpc_infer(server: SimpleNamespace, request: object, metadata: tuple[tuple[str, str], ...] = ()):
    response = message("inference.ModelInferResponse")
    with grpc.insecure_channel(server.grpc) as channel:
        method = "/inference.GRPCInferenceService/ModelInfer"
        stub = channel.unary_unary(method, lambda m: m.SerializeToString(), response.FromString)
        return stub(request, timeout=20, wait_for_ready=True, metadata=metadata)


def grpc_answer(server: SimpleNamespace, row: np.ndarray) -> object:
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 784]}
    response = grpc_infer(server, Infer(model_name="mlp", inputs=[tensor], raw_input_contents=[row.tobytes()]))
    return np.frombuffer(response.raw_output_contents[0], "<f4")


@pytest.mark.parametrize("answer", [v1_answer, v2_json_answer, v2_binary_answer, grpc_answer])
def test_requests_at_the_same_time_get_torchs_answers(kserve, expected, answer) -> None:
    """Thirty-two callers, each with its own row."""
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda row: answer(kserve, row), expected[0]))
    np.testing.assert_allclose(answers, expected[1], rtol=1e-4, atol=1e-5)


def test_requests_that_wait_run_as_one_batch(kserve, gate_path: Path) -> None:
    """What comes while the model is busy is batched, a bad row in it costs only itself."""
    firsts = [1, 2, 3, RAISE, 4, 5, 6, 7]
    with ThreadPoolExecutor(9) as pool:
        path = "/v2/models/marked/infer"
        gate = pool.submit(ask, kserve.http, path, v2("x", data=[WAIT, 0]))
        with gate_path.open("wb"):
            calls = [pool.submit(ask, kserve.http, path, v2("x", data=[first, 0])) for first in firsts]
            while len(calls) > sum(call.running() for call in calls):
                pass
            for _ in range(20):  # the server's loop goes round, and takes the calls in
                assert get(kserve.http, "/v2/health/live") == 200
        assert gate.result()[0] == 200
        replies = [call.result() for call in calls]
    batch_rows = []
    for first, (status, content, _) in zip(firsts, replies, strict=True):
        if first == RAISE:
            assert status == 500
            assert b"the model raised RuntimeError" in content
        else:
            outputs = {output["name"]: output["data"] for output in json.loads(content)["outputs"]}
            assert outputs["doubled"] == [2 * first, 0]
            assert outputs["label"] == [str(first)]
            batch_rows += outputs["batch_rows"]
    assert max(batch_rows) > 1


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"datatype": "FP64"}, "datatype = FP64, must be FP32"),
        ({"datatype": "INT64", "data": [1.5, 2]}, "elements must be integers for INT64"),
        ({"datatype": "INT8", "data": [1, 1000]}, "must be in [-128, 127] for INT8"),
        ({"shape": [2, 2]}, "input 'x'"),
        ({"data": ["a", "b"]}, "input 'x'"),
        ({"name": "y"}, "input 'y' is unknown, must be one of 'x'"),
    ],
)
def test_bad_requests_are_their_callers_error(kserve, changes: dict[str, object], text: str) -> None:
    """400 with torpor's text; over gRPC INVALID_ARGUMENT."""
    status, content, _ = ask(kserve.http, "/v2/models/marked/infer", v2("x", **changes))
    assert status == 400
    assert text in json.loads(content)["error"]


def test_bad_grpc_requests_are_their_callers_error(kserve) -> None:
    """INVALID_ARGUMENT with torpor's text."""
    contents = {"fp32_contents": [1, 2, 3]}
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "contents": contents}
    with pytest.raises(grpc.RpcError) as error:
        grpc_infer(kserve, Infer(model_name="marked", inputs=[tensor]))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "input 'x': shape = [1, 3], must be [-1, 2]" in error.value.details()


def test_outputs_are_those_asked_for(kserve) -> None:
    """By name, binary where the caller wants it."""
    body = json.loads(v2("x")) | {"outputs": [{"name": "doubled", "parameters": {"binary_data": True}}]}
    status, content, headers = ask(kserve.http, "/v2/models/marked/infer", json.dumps(body).encode())
    assert status == 200
    length = int(headers["inference-header-content-length"])
    assert [output["name"] for output in json.loads(content[:length])["outputs"]] == ["doubled"]
    assert np.frombuffer(content[length:], "<f4").tolist() == [2.0, 4.0]


def said(content: bytes) -> dict[str, object]:
    """What the model `asks` was told of a request of one row."""
    outputs = {output["name"]: output["data"] for output in json.loads(content)["outputs"]}
    return json.loads(outputs["said"][0])


ENVOY = "x-envoy-expected-rq-timeout-ms"
ASK = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1], "parameters": {"top_k": 3}}


@pytest.mark.parametrize(
    ("parameters", "headers", "most_s"),
    [
        ({}, {"grpc-timeout": "9S"}, 9.0),
        ({}, {ENVOY: "8000", "Grpc-Timeout": "9S"}, 8.0),
        ({"timeout": 7_000_000}, {ENVOY: "8000"}, 7.0),
    ],
)
def test_a_request_is_known_with_its_terms(kserve, parameters, headers, most_s: float) -> None:
    """The parameters of its tensors, and the shortest of the times that its caller gives it."""
    body = json.dumps({"inputs": [ASK], "parameters": parameters}).encode()
    status, content, _ = ask(kserve.http, "/v2/models/asks/infer", body, headers)
    assert status == 200, content
    told = said(content)
    assert told["tensor_parameters"] == {"x": {"top_k": 3}}
    assert most_s - 1 < told["remaining_s"] < most_s


def test_a_call_over_grpc_is_known_with_its_terms(kserve) -> None:
    """By its messages and its metadata."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"top_k": {"int64_param": 3}}}
    asked = Infer(model_name="asks", inputs=[tensor], raw_input_contents=[np.float32(1).tobytes()])
    response = grpc_infer(kserve, asked, ((ENVOY, "8000"),))
    told = dict(zip([output.name for output in response.outputs], response.raw_output_contents, strict=True))
    told = json.loads(told["said"][4:])
    assert told["tensor_parameters"] == {"x": {"top_k": 3}}
    assert 7 < told["remaining_s"] < 8


@pytest.mark.parametrize("parameters", [{"classification": 1}, {"shared_memory_region": "r"}])
def test_parameters_that_change_a_tensor_are_refused(kserve, parameters: dict[str, object]) -> None:
    """As by torpor's own server."""
    status, content, _ = ask(kserve.http, "/v2/models/marked/infer", v2("x", parameters=parameters))
    assert (status, json.loads(content)["error"].endswith("is not supported")) == (400, True)


def test_a_deadline_that_passes_in_the_queue_is_an_answer(kserve, gate_path: Path) -> None:
    """504, or DEADLINE_EXCEEDED, while the model is busy with another; a field that is none is 400."""
    path = "/v2/models/marked/infer"
    with ThreadPoolExecutor(1) as pool:
        gate = pool.submit(ask, kserve.http, path, v2("x", data=[WAIT, 0]))
        with gate_path.open("wb"):
            status, content, _ = ask(kserve.http, path, v2("x"), {"grpc-timeout": "20m"})
            assert (status, b"the deadline passed" in content) == (504, True)
            status, content, _ = ask(kserve.http, path, v2("x"), {"grpc-timeout": "soon"})
            assert (status, b"grpc-timeout = 'soon'" in content) == (400, True)
            tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "contents": {"fp32_contents": [1, 2]}}
            with pytest.raises(grpc.RpcError) as error:
                grpc_infer(kserve, Infer(model_name="marked", inputs=[tensor]), ((ENVOY, "20"),))
            assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert "the deadline passed" in error.value.details()
        assert gate.result()[0] == 200


def test_a_model_that_hangs_ends_the_server(kserve_server, gate_path: Path) -> None:
    """By the SDK's own stop, after the answer: whoever runs it starts another."""
    with kserve_server(MARKED, GATE=str(gate_path), TORPOR_MODEL_TIMEOUT_S="0.1") as server:
        status, content, _ = ask(server.http, "/v2/models/marked/infer", v2("x", data=[WAIT, 0]))
        assert (status, b"the model hangs" in content) == (503, True)
        server.process.wait(30)
    assert "ending, so that a new process can take over: the model hangs" in "".join(server.log)


BROKEN = """
import asyncio, signal, sys
import kserve
from kserve.errors import ModelNotReady
from torpor.predictors.kserve_model import KServeModel

signals = []
signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
model = KServeModel("marked", sys.argv[1])
model.load()
assert model.ready

async def main():
    try:
        await model.predict({"instances": [[1006, 0]]})
    except ModelNotReady as error:
        assert "the model hangs" in str(error)
    assert not model.ready
    try:
        model.load()
    except ModelNotReady as error:
        assert "the model hangs" in error.reason
    assert not model.ready
    assert signals == [signal.SIGTERM]

asyncio.run(main())
"""


@pytest.mark.skipif(not importlib.util.find_spec("kserve"), reason="needs kserve")
def test_a_broken_model_is_neither_ready_nor_loaded_again(gate_path: Path) -> None:
    """The SDK would load what is not ready with the next call over gRPC."""
    environment = {**os.environ, "GATE": str(gate_path), "TORPOR_MODEL_TIMEOUT_S": "0.1"}
    subprocess.run([sys.executable, "-c", BROKEN, str(MARKED)], env=environment, check=True, timeout=60)
