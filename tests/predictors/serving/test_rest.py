"""The REST protocols over sockets, by both HTTP versions."""

import json
import re
from collections import Counter

import grpc
import numpy as np
import pytest
from torpor.predictors.errors import InvalidInput, QueueFull, TorporError, Unavailable
from torpor.predictors.protocol.messages import message
from torpor.predictors.serving.data_plane import DataPlane
from torpor.predictors.serving.exchange import Exchange, Fields, Head
from torpor.predictors.serving.rest import Rest, error_body, error_text

ECHO = "/v2/models/echo"
MARKED = "/v2/models/marked"


def json_request(**fields: object) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    return json.dumps({"inputs": [tensor], **fields}).encode()


@pytest.mark.parametrize(
    ("path", "status", "content"),
    [
        ("/", 200, {"status": "alive"}),
        ("/v1/models", 200, {"models": ["echo"]}),
        ("/v1/models/echo", 200, {"name": "echo", "ready": True}),
        ("/v2/health/live", 200, {"live": True}),
        ("/v2/health/ready", 200, {"ready": True}),
        ("/v2/models", 200, {"models": ["echo"]}),
        ("/v2/models/echo/ready", 200, {"name": "echo", "ready": True}),
        ("/v2/models/echo/versions/1/ready", 200, {"name": "echo", "ready": True}),
        ("/v2/models/echo/ready/?verbose=1", 200, {"name": "echo", "ready": True}),
        ("/v2/models/%65cho/ready", 200, {"name": "echo", "ready": True}),
    ],
)
def test_readings_answer(connect, echo, path: str, status: int, content: dict[str, object]) -> None:
    """Health and the lists of both protocols; HEAD is GET without a body, and leaves the connection in step."""
    connection = connect(echo)
    reply = connection.request("GET", path)
    assert (reply.status, reply.json()) == (status, content)
    head = connection.request("HEAD", path)
    assert (head.status, head.body) == (status, b"")
    assert connection.request("GET", path).json() == content


def test_server_metadata_names_the_extensions(connect, echo) -> None:
    """The server says who it is and that it reads binary tensors."""
    metadata = connect(echo).request("GET", "/v2").json()
    assert metadata["name"] == "torpor"
    assert metadata["extensions"] == ["binary_tensor_data", "model_repository"]


@pytest.mark.parametrize("path", [MARKED, MARKED + "/versions/1"])
def test_model_metadata_tells_the_declaration(connect, marked, path: str) -> None:
    """Names, datatypes and shapes, -1 for rows."""
    assert connect(marked).request("GET", path).json() == {
        "name": "marked",
        "versions": ["1"],
        "platform": "torpor",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [
            {"name": "doubled", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "batch_rows", "datatype": "INT64", "shape": [-1]},
        ],
    }


@pytest.mark.parametrize("path", [ECHO + "/infer", ECHO + "/versions/1/infer"])
def test_v2_json_is_answered_with_json(connect, echo, path: str) -> None:
    """The tensor, the model, its version and the caller's id come back."""
    reply = connect(echo).request("POST", path, json_request(id="42"))
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
    assert reply.json() == {"model_name": "echo", "model_version": "1", "id": "42", "outputs": [tensor]}
    assert "inference-header-content-length" not in reply.headers


@pytest.mark.parametrize("dtype", ["?", "u1", "<u2", "<u4", "<u8", "i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8"])
@pytest.mark.parametrize("shape", [(1,), (3, 2), (2, 0, 3)])
def test_v2_binary_is_answered_with_binary(connect, echo, binary_request, dtype: str, shape: tuple[int, ...]) -> None:
    """Every datatype, bit for bit, through the model and back."""
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    reply = connect(echo).request("POST", ECHO + "/infer", *binary_request({"a": array, "b": array}))
    assert reply.status == 200, reply
    assert reply.headers["content-type"] == "application/octet-stream"
    for output in reply.tensors().values():
        assert output.dtype == array.dtype
        np.testing.assert_array_equal(output, array)


def test_nan_goes_through_as_binary(connect, echo, binary_request) -> None:
    """NaN is data like any other where the form has it."""
    array = np.array([[np.nan, np.inf, -np.inf]], "<f4")
    reply = connect(echo).request("POST", ECHO + "/infer", *binary_request({"x": array}))
    np.testing.assert_array_equal(reply.tensors()["x"], array)


def test_outputs_come_in_the_order_and_form_asked_for(connect, marked) -> None:
    """Only what the caller names, JSON and binary mixed."""
    outputs = [{"name": "label"}, {"name": "doubled", "parameters": {"binary_data": True}}]
    reply = connect(marked).request("POST", MARKED + "/infer", json_request(outputs=outputs))
    length = int(reply.headers["inference-header-content-length"])
    assert json.loads(reply.body[:length])["outputs"] == [
        {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["1"]},
        {"name": "doubled", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
    ]
    assert np.frombuffer(reply.body[length:], "<f4").tolist() == [2.0, 4.0]


def test_v1_rows_are_answered_with_rows(connect, marked, echo) -> None:
    """Several outputs give objects by name, one gives rows."""
    body = json.dumps({"instances": [[1, 2], [3, 4]]}).encode()
    rows = connect(marked).request("POST", "/v1/models/marked:predict", body).json()["predictions"]
    assert [(row["doubled"], row["label"]) for row in rows] == [([2.0, 4.0], "1"), ([6.0, 8.0], "3")]
    reply = connect(echo).request("POST", "/v1/models/echo:predict", body)
    assert reply.json() == {"predictions": [[1, 2], [3, 4]]}


def test_a_connection_serves_request_after_request(connect, echo, binary_request) -> None:
    """Good and refused requests alternate on one connection, and each gets its own answer."""
    connection = connect(echo)
    for number in range(20):
        array = np.full((1, 3), number, "<i4")
        reply = connection.request("POST", ECHO + "/infer", *binary_request({"x": array}))
        np.testing.assert_array_equal(reply.tensors()["x"], array)
        assert connection.request("POST", ECHO + "/infer", b"{").status == 400


def test_a_body_of_the_largest_size_is_read_whole(connect, echo, binary_request) -> None:
    """A body of many packets and frames, just under the limit, comes back unharmed."""
    array = np.arange((1 << 20) // 4 - 100, dtype="<i4").reshape(1, -1)
    reply = connect(echo).request("POST", ECHO + "/infer", *binary_request({"x": array}))
    np.testing.assert_array_equal(reply.tensors()["x"], array)


def test_metrics_count_requests_by_protocol_and_status(connect, echo) -> None:
    """Prometheus's text format, with KServe's histogram and torpor's own counters."""
    connection = connect(echo)

    def count(status: int) -> float:
        reply = connection.request("GET", "/metrics")
        assert reply.headers["content-type"].startswith("text/plain")
        name = f'torpor_requests_total{{protocol="rest",status="{status}"}} '
        return sum(float(line.removeprefix(name)) for line in reply.body.decode().splitlines() if line.startswith(name))

    good, bad = count(200), count(400)
    connection.request("POST", ECHO + "/infer", json_request())
    connection.request("POST", ECHO + "/infer", b"{")
    assert (count(200), count(400)) == (good + 1, bad + 1)
    text = connection.request("GET", "/metrics").body.decode()
    for name in ("request_predict_seconds_bucket", "torpor_queue_seconds_sum", "torpor_batch_rows_count"):
        assert f"{name}{{" in text
        assert 'model_name="echo",model_version="1"' in text


def test_failures_are_counted_by_model_and_error(connect, marked, grpc_infer) -> None:
    """Over REST and gRPC, of what the model was asked and of what never reached it; requests of other kinds are none."""
    connection = connect(marked)

    def counted() -> dict[str, float]:
        text = connection.request("GET", "/metrics").body.decode()
        failed = r'^torpor_failures_total\{error="(\w+)",model_name="marked",model_version="1"\} (\S+)$'
        counts = {name: float(value) for name, value in re.findall(failed, text, re.MULTILINE)}
        requests = re.findall(r"^torpor_requests_total\{.*\} (\S+)$", text, re.MULTILINE)
        return Counter(counts | {"requests": sum(map(float, requests))})

    before = counted()
    row = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1000, 0]}
    infer = "/v2/models/marked/infer"
    assert connection.request("POST", infer, json.dumps({"inputs": [row]}).encode()).status == 500
    assert connection.request("POST", infer, b"{").status == 400
    tensor = {"name": "y", "datatype": "FP32", "shape": [1], "contents": {"fp32_contents": [1]}}
    asked = message("inference.ModelInferRequest")(model_name="marked", inputs=[tensor])
    with pytest.raises(grpc.RpcError):
        grpc_infer(marked)(asked)
    assert connection.request("POST", "/v2/models/nobody/infer", b"{}").status == 404
    assert counted() - before == {"ModelFailed": 1, "InvalidInput": 2, "requests": 4}
    assert connection.request("POST", "/v2/repository/models/marked/unload", b"").status == 501
    assert connection.request("POST", "/nowhere", b"").status == 404
    assert counted() - before == {"ModelFailed": 1, "InvalidInput": 2, "requests": 4}


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nowhere", 404, "path /nowhere is unknown"),
        ("GET", "/" + "x" * 600, 404, "x is unknown"),
        ("GET", "/v2/models/echo/" + "x" * 600, 404, "x is unknown"),
        ("GET", "/v2/models/echo/versions", 404, "path /v2/models/echo/versions is unknown"),
        ("GET", "/v2/models/echo/nothing", 404, "path /v2/models/echo/nothing is unknown"),
        ("POST", "/v2/models/other/infer", 404, "model 'other' is unknown, must be one of echo"),
        ("POST", "/v1/models/other:predict", 404, "model 'other' is unknown, must be one of echo"),
        ("GET", "/v1/models/other", 404, "model 'other' is unknown"),
        ("GET", "/v2/models/other/ready", 404, "model 'other' is unknown"),
        ("GET", "/v2/models/%ff%00", 404, "is unknown, must be one of echo"),
        ("GET", "/v2/models/" + "%F0%9F%92%A4" * 400, 404, "model '\U0001f4a4"),
        ("GET", "/v2/models/" + '"' * 600, 404, "model '\""),
        ("POST", "/v2/models/echo/versions/2/infer", 404, "model 'echo' has no version '2', must be 1"),
        ("GET", "/v2/models/echo/versions/2", 404, "has no version '2'"),
        ("GET", "/v2/models/echo/infer", 405, "method GET is not allowed, must be POST"),
        ("PUT", "/v1/models/echo:predict", 405, "method PUT is not allowed, must be POST"),
        ("GET", "/v1/models/echo/versions/1:predict", 405, "method GET is not allowed, must be POST"),
        ("POST", "/v2/health/live", 405, "method POST is not allowed, must be GET"),
        ("DELETE", "/metrics", 405, "method DELETE is not allowed, must be GET"),
        ("POST", "/v1/models/echo:explain", 501, "explain is not supported"),
        ("POST", "/v1/models/echo/versions/1:explain", 501, "this server has no explainers"),
        ("POST", "/v2/models/echo/generate", 501, "generate is not supported: this server does not stream"),
        ("POST", "/v2/models/echo/generate_stream", 501, "generate_stream is not supported"),
        ("POST", "/v2/models/echo/versions/1/infer_stream", 501, "infer_stream is not supported"),
    ],
)
def test_paths_that_are_not_served(connect, echo, method: str, path: str, status: int, message: str) -> None:
    """The status says whose mistake it is, the text what there is instead."""
    reply = connect(echo).request(method, path, b"{}" if method in ("POST", "PUT") else None)
    assert reply.status == status
    assert message in reply.error()


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({"content-encoding": "br"}, 415, "Content-Encoding = br, must be identity, gzip or deflate"),
        ({"content-encoding": "gzip, gzip"}, 415, "Content-Encoding = gzip, gzip, must be identity, gzip or deflate"),
        ({"content-encoding": "gzip"}, 400, "the body is not gzip: "),
        ({"content-encoding": "deflate"}, 400, "the body is not deflate: "),
        ({"grpc-timeout": "1"}, 400, "grpc-timeout = '1', must be 1 to 8 digits and one of H, M, S, m, u, n"),
        (
            {"x-envoy-expected-rq-timeout-ms": "0"},
            400,
            "x-envoy-expected-rq-timeout-ms = '0', must be an integer of at",
        ),
        ({"inference-header-content-length": "-1"}, 400, "Inference-Header-Content-Length = '-1', must be an integer"),
        ({"inference-header-content-length": "x"}, 400, "Inference-Header-Content-Length = 'x', must be an integer"),
        ({"inference-header-content-length": "9" * 5000}, 400, "must be an integer"),
        ({"inference-header-content-length": "1000"}, 400, "Inference-Header-Content-Length = 1000, must be in [0,"),
        ({"inference-header-content-length": "3"}, 400, "the body is not JSON"),
    ],
)
def test_headers_that_lie_about_the_body(connect, echo, headers: dict[str, str], status: int, message: str) -> None:
    """A header that the body does not bear out is the caller's error."""
    reply = connect(echo).request("POST", ECHO + "/infer", json_request(), headers)
    assert reply.status == status
    assert message in reply.error()


class Answered(Exchange):
    """Keeps its answer."""

    __slots__ = ("answer",)

    def respond(self, status: int, body: bytes, fields: Fields = ()) -> None:
        self.answer = status, body, dict(fields)


@pytest.mark.parametrize(
    ("error", "retry_after"),
    [
        (QueueFull("full", 0), b"1"),
        (QueueFull("full", 0.2), b"1"),
        (QueueFull("full", 1.2), b"2"),
        (Unavailable("not yet"), b"1"),
        (Unavailable("elsewhere", None), None),
        (InvalidInput("no"), None),
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_who_may_come_again_is_told_when(method: str, error: TorporError, retry_after: bytes | None) -> None:
    """In whole seconds, upwards, for the field has no others; errors of inferences are counted."""
    data_plane = DataPlane("0")
    requests = data_plane.metrics.requests
    rest = Rest(data_plane, None, None, None, None)  # type: ignore[arg-type]
    exchange = Answered(Head(method, "/v2/models/nobody/infer", {}, None))
    rest.fail(exchange, error)
    status, body, fields = exchange.answer
    assert (status, json.loads(body)) == (error.http_status, {"error": str(error)})
    assert fields.get(b"retry-after") == retry_after
    assert requests == ({("rest", str(error.http_status)): 1} if method == "POST" else {})


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("a" * 501, "a" * 500),
        ("a" + "\u00e9" * 300, "a" + "\u00e9" * 249),
        ("no \ud800", "no ?"),
        ("a\0b\nc\u200bd", "a?b?c?d"),
    ],
)
def test_error_texts_are_short_and_can_be_read(message: str, text: str) -> None:
    """Whole characters in 500 bytes, and none that a log or a header cannot show."""
    assert error_text(message) == text
    assert json.loads(error_body(message)) == {"error": text}


def test_error_bodies_are_short_in_any_writing() -> None:
    """Quotes take two bytes each."""
    for character in '"\\':
        body = error_body(character * 500)
        assert 500 < len(body) <= 690
        assert set(json.loads(body)["error"]) == {character}
