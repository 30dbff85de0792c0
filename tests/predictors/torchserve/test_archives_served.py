"""Archives served by `torpor serve`: what their handlers get, by each path and protocol, and what callers get back."""

import concurrent.futures
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from archives import entry, manifest, write_mar, write_storage
from torpor.predictors.protocol.messages import message
from torpor.predictors.runtime.cores import usable_cores

ECHO = """
import os
from pathlib import Path

class Echo:
    def initialize(self, context):
        import sibling
        self.said = Path("labels.txt").read_text()
        self.loaded = {"cwd": os.getcwd() == context.system_properties["model_dir"], "name": context.model_name,
                       "version": context.manifest["model"]["modelVersion"], "yaml": context.model_yaml_config,
                       "batch": context.system_properties["batch_size"], "gpu": context.system_properties["gpu_id"]}
        self.batches = 0

    def handle(self, data, context):
        self.batches += 1
        return [self.answer(row, context, place, len(data)) for place, row in enumerate(data)]

    def answer(self, row, context, place, rows):
        if row == {"body": "loaded"}:
            return self.loaded
        if row == {"body": "nothing"} or row == {"body": "odd"}:
            context.set_response_status(204 if row["body"] == "nothing" else 299, "", place)
            return "what nobody gets"
        if row == {"body": "status"}:
            context.set_response_status(418, "short and stout", place)
            context.set_response_content_type(place, "text/plain")
            context.set_response_header(place, "X-Pot", "tea")
            context.metrics.add_counter("pots", 1, place)
            return "I am a teapot"
        return {"row": repr(row), "rows": rows, "explain": context.get_request_header(place, "explain"),
                "mine": context.get_request_header(place, "X-Mine"), "url_path": context.get_request_header(place, "url_path")}
"""
FILES = {"handler.py": ECHO, "labels.txt": "a", "sibling.py": ""}

LINEAR = """
def handle(data, context):
    if data is None:
        return None
    return [sum(x) if isinstance(x, list) else [sum(row) for row in x["data"]] for x in data]
"""

FUNCTION = """
LOADED = []
def answer(data, context):
    if data is None:
        LOADED.append(context.model_name)
        return None
    kinds = {"bytes": b"\\x00\\xff", "text": "gr\\u00fc\\u00df", "loaded": LOADED,
             "object": {"a": ["gr\\u00fc\\u00df", float("nan")]}}
    return [kinds[row["body"]] for row in data]
"""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """KServe's storage folder with a handler that tells what it gets, under two envelopes' worth of models."""
    root = tmp_path_factory.mktemp("storage")
    write_mar(root / "model-store/echo.mar", FILES, manifest("echo", version="1.0"))
    write_mar(root / "model-store/echo2.mar", FILES, manifest("echo", version="2.0"))
    write_mar(root / "model-store/linear.mar", {"linear.py": LINEAR}, manifest("linear", "linear.py"))
    write_mar(root / "model-store/kinds.mar", {"kinds.py": FUNCTION}, manifest("kinds", "kinds:answer"))
    snapshot = {
        "echo": {"1.0": entry("echo.mar"), "2.0": entry("echo2.mar", defaultVersion=False)},
        "linear": {"1.0": entry("linear.mar", batchSize=8, maxBatchDelay=5000)},
        "kinds": {"1.0": entry("kinds.mar")},
    }
    return write_storage(root, snapshot)


@pytest.fixture(scope="module")
def server(serve, storage: Path):
    return serve(storage)


@pytest.fixture
def client(connect_http1, server):
    return connect_http1(server)


TEXT, JSON = {"content-type": "text/plain"}, {"content-type": "application/json"}


def test_a_handler_has_its_folder_its_siblings_and_its_context(client) -> None:
    """Relative opens, bare imports, and what the context says at load."""
    loaded = json.loads(client.request("POST", "/predictions/echo", b"loaded", TEXT).body)
    assert loaded == {"cwd": True, "name": "echo", "version": "1.0", "yaml": {}, "batch": 1, "gpu": None}


def test_predictions_go_by_any_method_and_to_any_version(client) -> None:
    """The default version without one; what follows it is the handler's."""
    reply = client.request("GET", "/predictions/echo/2.0/more/still", b"\x00", {"X-Mine": "1"})
    answer = json.loads(reply.body)
    assert answer == {
        "row": "{'body': bytearray(b'\\x00')}",
        "rows": 1,
        "explain": "False",
        "mine": "1",
        "url_path": "more/still",
    }
    assert json.loads(client.request("POST", "/predictions/echo/2.0", b"loaded", TEXT).body)["version"] == "2.0"
    assert json.loads(client.request("PUT", "/predictions/echo", b"[1]", JSON).body)["row"] == "{'body': [1]}"
    assert json.loads(client.request("POST", "/explanations/echo", b"", {"explain": "False"}).body)["explain"] == "True"


def test_an_answer_is_written_as_torchserve_writes_it(client) -> None:
    """No content type unless the handler sets one; bytes, text, and indented JSON with escapes and NaN."""
    expected = {b"bytes": b"\x00\xff", b"text": "grüß".encode(), b"loaded": b'[\n  "kinds"\n]',
                b"object": b'{\n  "a": [\n    "gr\\u00fc\\u00df",\n    NaN\n  ]\n}'}  # fmt: skip
    for kind, body in expected.items():
        reply = client.request("POST", "/predictions/kinds", kind, TEXT)
        assert (reply.status, reply.body) == (200, body)
        assert "content-type" not in reply.headers
        assert reply.headers["x-request-id"]


def test_a_handler_sets_status_and_headers(client) -> None:
    """Of its request alone."""
    reply = client.request("POST", "/predictions/echo", b"status", TEXT)
    assert (reply.status, reply.body, reply.headers["x-pot"]) == (418, b"I am a teapot", "tea")
    assert reply.headers["content-type"] == "text/plain"


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_an_answer_without_a_body_ends_where_it_ends(server, connect_http1, connect_http2, version: str) -> None:
    """A 204 has no body whatever the handler returned, and what comes next on the connection is the next answer."""
    client = (connect_http1 if version == "HTTP/1.1" else connect_http2)(server)
    reply = client.request("POST", "/predictions/echo", b"nothing", TEXT)
    assert (reply.status, reply.body) == (204, b"")
    assert "content-length" not in reply.headers
    assert client.request("POST", "/predictions/echo", b"odd", TEXT).status == 299
    assert client.request("POST", "/predictions/echo", b"status", TEXT).body == b"I am a teapot"


def test_v1_gives_the_instances(client) -> None:
    """As the data, and answers by what the handler returns; errors are v1's."""
    reply = client.request("POST", "/v1/models/echo:predict", b'{"instances": [{"data": "x"}, 1.5]}')
    rows = [answer["row"] for answer in reply.json()["predictions"]]
    assert rows == ["{'data': 'x'}", "1.5"]
    assert reply.json()["predictions"][0]["rows"] == 2
    assert reply.headers["torpor-model-version"] == "1.0"
    explained = client.request("POST", "/v1/models/echo/versions/2.0:explain", b'{"instances": [1]}').json()
    assert explained["explanations"][0]["explain"] == "True"
    assert client.request("POST", "/v1/models/echo:predict", b"{").error().startswith("the body is not JSON")
    assert client.request("POST", "/v1/models/echo:predict", b'{"instances": 1}').error() == "instances must be a list"


def test_v2_gives_the_inputs_in_their_shape(client) -> None:
    """As objects; of BYTES the first element; each item that comes back is an output, flat."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [-1, 2], "data": [1, 2.5, 3, 4]}
    answer = client.request(
        "POST", "/v2/models/linear/infer", json.dumps({"id": "7", "inputs": [tensor]}).encode()
    ).json()
    output = {"name": "x", "datatype": "FP64", "shape": [2], "data": [3.5, 7.0]}
    assert answer == {"id": "7", "model_name": "linear", "model_version": "1.0", "outputs": [output]}
    texts = {"name": "t", "datatype": "BYTES", "shape": [2], "data": ["YQ==", "b"]}
    answer = client.request("POST", "/v2/models/echo/infer", json.dumps({"inputs": [texts, tensor]}).encode()).json()
    assert [output["datatype"] for output in answer["outputs"]] == ["BYTES", "BYTES"]
    assert "'data': 'YQ=='" in answer["outputs"][0]["data"][0]["row"]
    assert "'data': [[1.0, 2.5], [3.0, 4.0]]" in answer["outputs"][1]["data"][0]["row"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"[1]", "the body is a JSON list, must be an object"),
        (b"{}", "inputs must be a non-empty list of tensors"),
        (b'{"inputs": [1]}', "inputs[0] is a int, must be an object"),
        (b'{"inputs": [{"name": 1}]}', "inputs[0].name must be a str"),
        (
            b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [3], "data": [1]}]}',
            "inputs[0]: data do not fit shape = [3]",
        ),
    ],
)
def test_a_wrong_v2_request_is_named(client, body: bytes, reason: str) -> None:
    """400, with the field; TorchServe has 503 without a word."""
    reply = client.request("POST", "/v2/models/echo/infer", body)
    assert reply.status == 400
    assert reply.error().startswith(reason)


def test_v2_binary_and_grpc_are_tensors_both_ways(client, server, grpc_infer, binary_request) -> None:
    """The handler gets the same objects; of BYTES the first element in base64, as KServe's server has it."""
    data = np.array([[1, 2], [3, 4]], np.float32)
    body, fields = binary_request({"x": data})
    assert client.request("POST", "/v2/models/linear/infer", body, fields).tensors()["x"].tolist() == [3.0, 7.0]
    infer = grpc_infer(server)
    request = message("inference.ModelInferRequest")(model_name="linear", id="9")
    request.inputs.add(name="x", datatype="FP32", shape=[2, 2])
    request.raw_input_contents.append(data.tobytes())
    response = infer(request, timeout=20)
    assert np.frombuffer(response.raw_output_contents[0]).tolist() == [3.0, 7.0]
    assert (response.id, response.outputs[0].datatype) == ("9", "FP64")
    request = message("inference.ModelInferRequest")(model_name="echo")
    request.inputs.add(name="t", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"a")
    (answer,) = infer(request, timeout=20).outputs[0].contents.bytes_contents
    assert "'data': 'YQ=='" in json.loads(answer)["row"]


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_requests_that_come_together_are_one_batch_of_an_envelope(server, connect_http1, protocol: str) -> None:
    """Each gets its own rows; TorchServe answers 503 to all of them."""

    def ask(number: int) -> Any:
        if protocol == "v1":
            body: Any = {"instances": [[number, 1], [number, 2]]}
            path, key = "/v1/models/linear:predict", "predictions"
        else:
            body = {"inputs": [{"name": "x", "datatype": "INT64", "shape": [2, 2], "data": [number, 1, number, 2]}]}
            path, key = "/v2/models/linear/infer", "outputs"
        answer = connect_http1(server).request("POST", path, json.dumps(body).encode()).json()[key]
        return answer if protocol == "v1" else answer[0]["data"]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert [*pool.map(ask, range(32))] == [[number + 1, number + 2] for number in range(32)]


def test_what_is_not_there_is_answered_in_the_paths_own_words(client) -> None:
    """TorchServe's object on its paths, KServe's elsewhere."""
    for path, status, kind in (
        ("/predictions/none", 404, "ModelNotFoundException"),
        ("/predictions/echo/9", 404, "ModelVersionNotFoundException"),
        ("/explanations/none", 404, "ModelNotFoundException"),
    ):
        reply = client.request("POST", path, b"x")
        assert (reply.status, reply.json()["code"], reply.json()["type"]) == (status, status, kind)
        assert reply.json()["message"].startswith("model '")
    assert client.request("POST", "/v1/models/none:predict", b"{}").error().startswith("model 'none' is unknown")


def test_a_model_that_is_no_archive_has_no_predictions(serve, connect_http1) -> None:
    """It takes tensors, and has names for them."""
    client = connect_http1(serve("echo"))
    assert client.request("POST", "/predictions/echo", b"x").json()["type"] == "ModelNotFoundException"
    assert client.request("GET", "/ping").json() == {"status": "Healthy"}


def test_ping_and_readiness_are_the_models(client) -> None:
    """All have a worker."""
    assert client.request("GET", "/ping").json() == {"status": "Healthy"}
    assert client.request("GET", "/v1/models/echo").json() == {"name": "echo", "ready": True}
    assert client.request("GET", "/v2/models/echo/versions/2.0/ready").status == 200
    assert client.request("GET", "/v2/models/echo").json()["versions"] == ["1.0", "2.0"]


def test_an_envelope_of_the_configuration_is_that_of_predictions(serve, connect_http1, tmp_path: Path) -> None:
    """The path still decides for v1 and v2."""
    write_mar(tmp_path / "model-store/linear.mar", {"linear.py": LINEAR}, manifest("linear", "linear.py"))
    client = connect_http1(serve(write_storage(tmp_path, None, "service_envelope=json\ndefault_workers_per_model=1")))
    reply = client.request("POST", "/predictions/linear", b'{"instances": [[1, 2]]}', JSON)
    assert (reply.body, "content-type" in reply.headers) == (b'{"predictions": [3]}', False)
    assert client.request("POST", "/v1/models/linear:predict", b'{"instances": [[1, 2]]}', JSON).status == 200


def test_a_body_may_be_as_large_as_the_configuration_says(serve, connect_http1, tmp_path: Path) -> None:
    """Unless a flag says otherwise."""
    write_mar(tmp_path / "model-store/kinds.mar", {"kinds.py": FUNCTION}, manifest("kinds", "kinds:answer"))
    root = write_storage(tmp_path, None, "max_request_size=100\ndefault_workers_per_model=1")
    for options, most in (((), 100), (("--max-body-bytes", "200"), 200)):
        server = serve(root, *options)
        for size, status in ((most, 500), (most + 1, 413)):  # a text that the handler does not know
            assert connect_http1(server).request("POST", "/predictions/kinds", b"x" * size, TEXT).status == status


def test_torchserves_older_paths_are_predictions_whose_query_has_fields(client) -> None:
    """Beside the body; on the others a query says nothing."""
    bodies = {
        "/invocations?model_name=echo&a=1": "{'model_name': bytearray(b'echo'), 'a': bytearray(b'1'), 'body': 'x'}",
        "/models/echo/invoke?a=%20+": "{'a': bytearray(b'  '), 'body': 'x'}",
        "/echo/predict": "{'body': 'x'}",
        "/echo/2.0/predict?a": "{'a': bytearray(b''), 'body': 'x'}",
        "/predictions/echo?a=1": "{'body': 'x'}",
    }
    for path, row in bodies.items():
        assert json.loads(client.request("POST", path, b"x", TEXT).body)["row"] == row
    assert json.loads(client.request("POST", "/echo/2.0/predict", b"loaded", TEXT).body)["version"] == "2.0"
    unnamed = client.request("POST", "/invocations", b"x", TEXT).json()
    assert (unnamed["code"], unnamed["type"]) == (400, "BadRequestException")
    assert client.request("POST", "/none/predict", b"x").json()["type"] == "ModelNotFoundException"


def test_an_invocation_of_the_only_model_need_not_name_it(serve, connect_http1, tmp_path: Path) -> None:
    """There is no other."""
    client = connect_http1(
        serve(write_mar(tmp_path / "kinds.mar", {"kinds.py": FUNCTION}, manifest("kinds", "kinds:answer")))
    )
    assert client.request("POST", "/invocations", b"text", TEXT).body == "grüß".encode()


@pytest.fixture
def torchserve_call(grpc_channel, server):
    """Call a method of TorchServe's own gRPC service."""
    package = "org.pytorch.serve.grpc.inference"

    def call(method: str, request: str, response: str, metadata: Any = (), **fields: Any) -> Any:
        invoke = grpc_channel(server).unary_unary(
            f"/{package}.InferenceAPIsService/{method}",
            lambda sent: sent.SerializeToString(),
            message(f"{package}.{response}").FromString,
        )
        return invoke(message(f"{package}.{request}")(**fields), timeout=20, metadata=metadata)

    return call


def test_torchserves_own_grpc_predicts_of_fields(torchserve_call) -> None:
    """They are what a form's fields are, and the answer is HTTP's body."""

    def predict(name: str, version: str = "", metadata: Any = (), **fields: bytes) -> bytes:
        more = {"model_name": name, "model_version": version, "input": fields}
        return torchserve_call("Predictions", "PredictionsRequest", "PredictionResponse", metadata, **more).prediction

    assert json.loads(predict("echo", data=b"\x00"))["row"] == "{'data': bytearray(b'\\x00')}"
    assert json.loads(predict("echo", "2.0", [("x-mine", "1")], body=b""))["mine"] == "1"
    for name, version, metadata, code in (
        ("none", "", (), grpc.StatusCode.NOT_FOUND),
        ("echo", "9", (), grpc.StatusCode.NOT_FOUND),
        ("echo", "1.0", [("torpor-model-version", "2.0")], grpc.StatusCode.INVALID_ARGUMENT),
        ("kinds", "", (), grpc.StatusCode.INTERNAL),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            predict(name, version, metadata, body=b"unknown kind")
        assert refused.value.code() is code


def test_torchserves_own_grpc_says_its_health(torchserve_call) -> None:
    """As /ping does."""
    assert torchserve_call("Ping", "Empty", "TorchServeHealthResponse").health == '{\n  "status": "Healthy"\n}'


UNPICKLING = """
import json, pickle
from collections import Counter, OrderedDict

PICKLED = pickle.dumps([OrderedDict(), Counter()])

def handle(data, context):
    if data is None:
        json.dumps(pickle.loads(pickle.dumps([1])))  # names nothing, runs nothing
        return pickle.loads(PICKLED)
    return ["x" for row in data]
"""


BESIDE = """
import collections, pickle, threading

def handle(data, context):
    thread = threading.Thread(target=pickle.loads, args=(pickle.dumps(collections.OrderedDict()),))
    thread.start()
    thread.join()
"""


def test_a_handler_that_unpickles_is_named_in_the_log(serve, tmp_path: Path) -> None:
    """Once a worker, with the place; one that does not, though a library beside it does, is not."""
    write_mar(tmp_path / "model-store/a.mar", {"handler.py": UNPICKLING})
    log = "".join(serve(write_storage(tmp_path, {"a": {"1.0": entry("a.mar")}})).log)
    (line,) = [line for line in log.splitlines() if " unpickles " in line]
    assert "WARNING torpor.handler a: handler.py:10 unpickles (collections.OrderedDict): a pickle runs what" in line
    log = "".join(serve(write_mar(tmp_path / "b.mar", {"handler.py": BESIDE})).log)
    assert " unpickles " not in log


THREADS = """
import os

def handle(data, context):
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return None if data is None else [{name: os.environ.get(name) for name in names} for row in data]
"""


def test_a_worker_has_its_share_of_the_cores_in_every_library(start, connect_http1, tmp_path: Path) -> None:
    """OpenBLAS and MKL read OpenMP's variable where they have none of their own; the server's number is not its workers'."""
    write_mar(tmp_path / "model-store/m.mar", {"handler.py": THREADS})
    folder = write_storage(
        tmp_path, {"m": {"1.0": entry("m.mar", minWorkers=usable_cores(), maxWorkers=usable_cores())}}
    )
    reply = connect_http1(start(folder)).request("POST", "/predictions/m", b"x")
    assert json.loads(reply.body) == {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": os.environ.get("OPENBLAS_NUM_THREADS"),
        "MKL_NUM_THREADS": os.environ.get("MKL_NUM_THREADS"),
    }


COUNTING = """
class Dimension:
    def __init__(self, name, value):
        self.name, self.value = name, value

def handle(data, context):
    if data is None:
        return None
    metrics = context.metrics
    for place, row in enumerate(data):
        metrics.add_counter("Pots", 2, place)
        metrics.add_time("Brewing", 7, place, dimensions=[Dimension("Kind", row["body"])])
        metrics.add_counter("torpor_requests", 1, place)
        metrics.add_error("Spills", 1)
        seconds = metrics.add_metric_to_cache("1 wait", "s", ["le"], "histogram")
        seconds.add_or_update(0.03, ["x"])
        seconds.add_or_update("much", ["x"])
    return ["x" for row in data]
"""


def test_what_a_handler_counts_is_in_the_metrics(serve, connect_http1, tmp_path: Path) -> None:
    """Added up over its workers, by its names where Prometheus and torpor leave them, with TorchServe's dimensions."""
    write_mar(tmp_path / "model-store/tea.mar", {"handler.py": COUNTING})
    client = connect_http1(
        serve(write_storage(tmp_path, {"tea": {"1.0": entry("tea.mar", minWorkers=2, maxWorkers=2)}}))
    )
    for kind in (b"green", b"black", b"green"):
        assert client.request("POST", "/predictions/tea", kind, TEXT).status == 200
    lines = client.request("GET", "/metrics").body.decode().splitlines()
    model, own = 'model_name="tea",model_version="1.0"', 'ModelName="tea",Level="Model"'
    expected = {
        f"Pots_total{{{own},{model}}} 6.0",
        f'Brewing{{Kind="green",{own},{model}}} 7.0',
        f'Brewing{{Kind="black",{own},{model}}} 7.0',
        f"handler_torpor_requests_total{{{own},{model}}} 3.0",
        f'Spills_total{{Level="Error",{model}}} 3.0',
        f'handler_1_wait_bucket{{handler_le="x",le="0.05",{model}}} 3.0',
    }
    labels = {line: frozenset(re.findall(r'[a-zA-Z_]+="[^"]*"', line)) for line in (*expected, *lines)}
    found = {(line.partition("{")[0], labels[line], line.rpartition(" ")[2]) for line in lines}
    assert {(line.partition("{")[0], labels[line], line.rpartition(" ")[2]) for line in expected} <= found


def test_an_archive_that_is_replaced_while_it_serves_is_read_anew_when_asked(
    serve, connect_http1, tmp_path: Path
) -> None:
    """Not before, though a worker begins anew; one that is damaged then leaves what is served as it is."""
    code = "import os\ndef handle(data, context): return data and [{'said': %r, 'pid': os.getpid()}] * len(data)"
    path = write_mar(tmp_path / "model.mar", {"handler.py": code % "old"})
    client = connect_http1(serve(path, "--model-control-mode", "explicit"))

    def ask() -> dict[str, Any]:
        said: dict[str, Any] = json.loads(client.request("POST", "/predictions/model", b"x", TEXT).body)
        return said

    first = ask()
    path.write_bytes(b"PK")
    os.kill(first["pid"], signal.SIGKILL)
    assert ask()["said"] == "old"
    reply = client.request("POST", "/v2/repository/models/model/load")
    assert reply.status == 500
    assert "model.mar: cannot be read" in reply.error()
    assert ask()["said"] == "old"
    write_mar(path, {"handler.py": code % "new"})
    assert client.request("POST", "/v2/repository/models/model/load").status == 200
    assert ask()["said"] == "new"
