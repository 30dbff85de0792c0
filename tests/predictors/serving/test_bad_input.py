"""Bad requests and bad models over sockets: a precise error for their caller, and nothing else touched."""

import json
import socket
import struct

import grpc
import numpy as np
import pytest
from torpor.predictors.protocol.messages import message

PATH = "/v2/models/marked/infer"
RAISE, REFUSE, ONE_ROW_LESS, GIVE_NAN, EXIT, GIVE_LATIN_1, WAIT = range(1000, 1007)

FAILURES = [
    pytest.param(RAISE, 500, "INTERNAL", "the model raised RuntimeError", id="raises"),
    pytest.param(REFUSE, 400, "INVALID_ARGUMENT", "x = 1001 is not to this model's taste", id="refuses"),
    pytest.param(ONE_ROW_LESS, 500, "INTERNAL", "output 'doubled': shape = [0, 2], must have 1 rows", id="wrong rows"),
]


def tensor(**changes: object) -> bytes:
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]} | changes
    return json.dumps({"inputs": [entry]}).encode()


def rows(*firsts: float) -> np.ndarray:
    return np.array([[first, 0.5] for first in firsts], "<f4")


@pytest.fixture(autouse=True)
def still_serves(connect, marked):
    """After each of these tests the server answers, on a connection opened before and on a new one."""
    before = connect(marked)
    yield
    for connection in (before, connect(marked)):
        reply = connection.request("POST", PATH, tensor())
        assert reply.json()["outputs"][0]["data"] == [2.0, 4.0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not JSON"),
        (b"\xff\xfe", "the body is not JSON"),
        (b'{"inputs": [{"name": "x", "data": [NaN]}]}', "the body is not JSON"),
        (b'{"inputs":' * 5000, "the body is not JSON"),
        (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": ' + b"[" * 1000 + b"]" * 1000 + b"}]}", "shape = ["),
        (tensor(name="y"), "input 'y' is unknown, must be one of 'x'"),
        (tensor(name="\x00\x1b" * 500), "input '????"),
        (tensor(datatype="FP64"), "input 'x': datatype = FP64, must be FP32"),
        (tensor(datatype="INT64"), "input 'x': datatype = INT64, must be FP32"),
        (tensor(datatype="COMPLEX"), "input 'x': datatype = 'COMPLEX', must be one of BOOL"),
        (tensor(shape=[2, 1]), "input 'x': shape = [2, 1], must be [-1, 2]"),
        (tensor(shape=[2]), "input 'x': shape = [2], must be [-1, 2]"),
        (tensor(shape=[], data=[1]), "shape = []"),
        (tensor(shape=[0, 2], data=[]), "rows = 0, must be at least 1"),
        (tensor(shape=[3, 2]), "shape [3, 2] needs 6 elements, data has 2"),
        (tensor(data=["1", "2"]), "elements must be numbers for FP32"),
        (tensor(data=[1e39, 2]), "for FP32"),
        (tensor(data=[[[[1, 2]]]]), "data is nested as [1, 1, 1, 2]"),
        (tensor()[:-1] + b', "outputs": [{"name": "z"}]}', "output 'z' is unknown, must be one of 'doubled', 'label'"),
        (tensor()[:-1] + b', "parameters": {"timeout": 0}}', "parameter timeout = 0, must be a positive integer"),
    ],
)
def test_bad_v2_requests_are_their_callers_error(connect, marked, body: bytes, message: str) -> None:
    """400 with the field, its value and what it must be, in a small body."""
    reply = connect(marked).request("POST", PATH, body)
    assert reply.status == 400
    assert message in reply.error()


def test_a_layout_is_refused_as_often_as_it_comes(connect, marked, binary_request) -> None:
    """What is checked once for all requests of a layout is what fits: the same misfit is refused again and again."""
    connection = connect(marked)
    for _ in range(3):
        reply = connection.request("POST", PATH, *binary_request({"x": np.zeros((1, 3), "<f4")}))
        assert reply.status == 400
        assert "shape = [1, 3], must be [-1, 2]" in reply.error()
        assert connection.request("POST", PATH, *binary_request({"x": rows(1.0)})).status == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not JSON"),
        (b'{"instances": []}', "instances must be a non-empty list of rows"),
        (b'{"instances": [[1, "a"]]}', "elements must be numbers for FP32"),
        (b'{"instances": [[1, 2, 3]]}', "input 'x': shape = [1, 3], must be [-1, 2]"),
        (b'{"instances": [{"y": [1, 2]}]}', "input 'y' is unknown, must be one of 'x'"),
    ],
)
def test_bad_v1_requests_are_their_callers_error(connect, marked, body: bytes, message: str) -> None:
    """The same errors as in v2, and the same form."""
    reply = connect(marked).request("POST", "/v1/models/marked:predict", body)
    assert reply.status == 400
    assert message in reply.error()


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_truncated_binary_data_are_their_callers_error(connect, marked, binary_request, cut: int) -> None:
    """A body that is whole for HTTP and too short for its tensors."""
    body, headers = binary_request({"x": rows(1)})
    reply = connect(marked).request("POST", PATH, body[:-cut], headers)
    assert reply.status == 400
    assert f"add up to 8 bytes, {8 - cut} follow the JSON object" in reply.error()


@pytest.mark.parametrize(("mark", "status", "code", "message"), FAILURES)
def test_a_bad_row_costs_only_its_own_request(
    connect, marked, gated, binary_request, mark: int, status: int, code: str, message: str
) -> None:
    """In one batch with a request that the model fails on, every other request gets its right answer."""
    with gated(marked) as gate:
        connections = [connect(marked) for _ in range(8)]
        firsts = [1, 2, 3, mark, 4, 5, 6, 7]
        streams = [
            connection.send("POST", PATH, *binary_request({"x": rows(first)}, outputs=[
                {"name": "doubled"}, {"name": "batch_rows"}
            ]))
            for connection, first in zip(connections, firsts, strict=True)
        ]  # fmt: skip
        gate.wait_for_rows(8)
    replies = [connection.receive(stream) for connection, stream in zip(connections, streams, strict=True)]
    assert replies[3].status == status
    assert message in replies[3].error()
    assert "secret" not in replies[3].error()
    batch_rows = []
    for first, reply in zip(firsts, replies, strict=True):
        if first != mark:
            np.testing.assert_array_equal(reply.tensors()["doubled"], rows(first) * 2)
            batch_rows += reply.tensors()["batch_rows"].tolist()
    assert max(batch_rows) == 4  # eight were halved, and the good half ran whole


def test_a_model_that_exits_costs_its_batch_and_not_the_server(connect, marked) -> None:
    """SystemExit out of a model is a failure of the model."""
    reply = connect(marked).request("POST", PATH, tensor(data=[EXIT, 0]))
    assert reply.status == 500
    assert reply.error().startswith("the model raised SystemExit")


@pytest.mark.parametrize(
    ("mark", "output", "message"),
    [(GIVE_NAN, "doubled", "output 'doubled' holds NaN"), (GIVE_LATIN_1, "label", "a BYTES tensor is no UTF-8")],
)
def test_an_answer_that_json_cannot_hold(connect, marked, mark: int, output: str, message: str) -> None:
    """500 with the way out as JSON, fine as binary data."""
    connection = connect(marked)
    reply = connection.request("POST", PATH, tensor(data=[mark, 0]))
    assert reply.status == 500
    assert message in reply.error()
    assert "ask for it as binary data" in reply.error()
    outputs = [{"name": output, "parameters": {"binary_data": True}}]
    body = tensor(data=[mark, 0])[:-1] + b', "outputs": ' + json.dumps(outputs).encode() + b"}"
    assert connection.request("POST", PATH, body).status == 200
    v1 = json.dumps({"instances": [[mark, 0]]}).encode()
    assert message in connection.request("POST", "/v1/models/marked:predict", v1).error()


def test_a_full_queue_refuses_with_the_time_to_come_back(connect, marked, gated, binary_request) -> None:
    """503 and Retry-After for the seventeenth row, right answers for the sixteen before it."""
    with gated(marked) as gate:
        waiting = connect(marked)
        stream = waiting.send("POST", PATH, *binary_request({"x": rows(*range(16))}))
        gate.wait_for_rows(16)
        for path, body in ((PATH, tensor()), ("/v1/models/marked:predict", b'{"instances": [[1, 2]]}')):
            reply = connect(marked).request("POST", path, body)
            assert reply.status == 503
            assert reply.error() == "queued rows = 16, must stay within 16"
            assert int(reply.headers["retry-after"]) >= 1
        assert connect(marked).request("GET", "/v2/health/ready").status == 200
    length = int(waiting.receive(stream).headers["inference-header-content-length"])
    assert length


def test_a_request_larger_than_the_queue_is_its_callers_error(connect, marked, binary_request) -> None:
    """It would never fit: 400, not 503."""
    reply = connect(marked).request("POST", PATH, *binary_request({"x": rows(*range(17))}))
    assert reply.status == 400
    assert reply.error() == "rows = 17, must be in [1, 16]"


@pytest.mark.parametrize("path", ["/v1/models/marked:predict", "/v2/models/marked/infer"])
def test_a_full_queue_refuses_before_it_reads_the_body(connect, marked, gated, binary_request, path: str) -> None:
    """Refusing is cheapest before decoding: even a body that is no JSON gets 503, not 400."""
    with gated(marked) as gate:
        filling = connect(marked)
        stream = filling.send("POST", "/v2/models/marked/infer", *binary_request({"x": np.zeros((16, 2), "<f4")}))
        gate.wait_for_rows(16)
        assert connect(marked).request("POST", path, b"{").status == 503
    assert filling.receive(stream).status == 200
    assert connect(marked).request("POST", path, b"{").status == 400


def test_a_deadline_that_passes_in_the_queue_is_answered_at_once(connect, marked, gated) -> None:
    """504 while the model is still busy with others."""
    with gated(marked):
        for body, headers in (
            (tensor()[:-1] + b', "parameters": {"timeout": 1000}}', {}),
            (tensor(), {"grpc-timeout": "10m"}),
            (tensor(), {"x-envoy-expected-rq-timeout-ms": "10"}),
            (tensor(), {"grpc-timeout": "1H", "x-envoy-expected-rq-timeout-ms": "10"}),
        ):
            reply = connect(marked).request("POST", PATH, body, headers)
            assert reply.status == 504
            assert "the deadline passed" in reply.error()
        reply = connect(marked).request("POST", "/v1/models/marked:predict", b'{"instances": [[1, 2]]}', headers)
        assert reply.status == 504


def test_a_caller_that_leaves_takes_its_rows_along(connect_http2, marked, gated) -> None:
    """A stream that is reset while it waits frees its place in the queue."""
    with gated(marked) as gate:
        connection = connect_http2(marked)
        stream = connection.send("POST", PATH, tensor())
        gate.wait_for_rows(1)
        connection.cancel(stream)
        gate.wait_for_rows(0)


def test_a_connection_that_closes_takes_its_rows_along(connect, marked, gated) -> None:
    """On either HTTP version nobody runs rows for a caller that is gone."""
    leaving = connect(marked)
    with gated(marked) as gate:
        leaving.send("POST", "/v2/models/marked/infer", tensor())
        gate.wait_for_rows(1)
        leaving.close()
        gate.wait_for_rows(0)


def test_a_body_over_the_limit_is_refused(connect, echo) -> None:
    """413 with the limit, on a connection that has sent a third of it only or all of it."""
    connection = connect(echo)
    reply = connection.request("POST", "/v2/models/echo/infer", b" " * (3 << 20))
    assert reply.status == 413
    assert reply.error() == "body = 3145728 bytes, must be in [0, 1048576]"


def exchange(server, data: bytes, *, ends: bool = True) -> bytes:
    """Send bytes, then end the connection's sending half if asked; what comes back until the server ends its own."""
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.sendall(data)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        pieces = []
        try:
            while piece := connection.recv(1 << 16):
                pieces.append(piece)
        except ConnectionResetError:
            pass
        return b"".join(pieces)


HEAD = b"POST /v2/models/marked/infer HTTP/1.1\r\nHost: torpor\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (HEAD + b"Content-Length: 100\r\n\r\n" + tensor()[:20], b""),
        (HEAD + b"Content-Length: 3\r\n\r\n" + tensor(), b"400"),
        (HEAD + b"Content-Length: -1\r\n\r\n" + tensor(), b"400"),
        (HEAD + b"Content-Length: ten\r\n\r\n" + tensor(), b"400"),
        (HEAD + b"Content-Length: %s\r\n\r\n" % (b"9" * 30), b"400"),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + tensor(), b"400"),
        (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b""),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", b""),
        (HEAD + b"".join(b"X-%d: 1\r\n" % n for n in range(500)) + b"\r\n", b"431"),
        (b"GET /v2 HTTP/1.1\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01", b""),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64, b""),
        (b"", b""),
    ],
)
def test_http1_that_lies_about_itself_ends_its_own_connection(marked, data: bytes, status: bytes) -> None:
    """Truncated bodies, lying lengths and what is no HTTP at all: refused or dropped, never answered with 200."""
    answer = exchange(marked, data)
    first_line = answer.split(b"\r\n")[0]
    assert first_line.startswith(b"HTTP/1.1 " + status) if status else not answer.startswith(b"HTTP/1.1 200")


def test_an_announced_length_over_the_limit_is_refused_before_the_body(marked) -> None:
    """413 while not one byte of the body has been sent."""
    with socket.create_connection(("127.0.0.1", marked.port), 20) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (1 << 50))
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"must be in [0, 67108864]" in answer


def test_http1_chunks_are_put_together(marked) -> None:
    """A body without a length, in pieces of one byte, is a body."""
    body = tensor()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    answer = exchange(marked, HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks, ends=False)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"data":[2.0,4.0]' in answer


@pytest.mark.parametrize("length", [len(tensor()) - 1, len(tensor()) + 1, "x", "-1", "9" * 30])
def test_http2_that_lies_about_its_length_resets_its_own_stream(connect_http2, marked, length: object) -> None:
    """The stream ends with a protocol error; the next one on the connection is answered."""
    connection = connect_http2(marked)
    with pytest.raises(ConnectionResetError):
        connection.request("POST", PATH, tensor(), {"content-length": str(length)})
    assert connection.request("POST", PATH, tensor()).status == 200


GRPC = {"content-type": "application/grpc", "te": "trailers"}
INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (INFER, b"", 3, "gRPC frame has 0 bytes, must have 5 or more"),
        (INFER, b"\0\0\0", 3, "gRPC frame has 3 bytes, must have 5 or more"),
        (INFER, b"\0" + struct.pack(">I", 100) + b"abc", 3, "gRPC frame says 100 bytes, 3 came"),
        (INFER, b"\0" + struct.pack(">I", 0) + b"abc", 3, "gRPC frame says 0 bytes, 3 came"),
        (
            INFER,
            b"\1" + struct.pack(">I", 3) + b"abc",
            12,
            "a message is compressed, and grpc-encoding does not say how",
        ),
        (INFER, b"\2" + struct.pack(">I", 3) + b"abc", 3, "gRPC frame begins with 2, must be 0 or 1"),
        (INFER, b"\0" + struct.pack(">I", 3) + b"\xff\xff\xff", 3, "is not a valid inference.ModelInferRequest"),
        (INFER, b"\0" + struct.pack(">I", 4) + b"\x0a\x02\xff\xfe", 3, "is not a valid inference.ModelInferRequest"),
        ("/inference.GRPCInferenceService/None", b"\0\0\0\0\0", 12, "is unknown"),
        ("/grpc.health.v1.Health/Watch", b"", 3, "the call ended without a message"),
        ("/grpc.health.v1.Health/Watch", b"\0" + struct.pack(">I", 100) + b"abc", 3, "the call ended inside a message"),
        ("/grpc.health.v1.Health/Watch", b"\0" + b"\xff" * 4, 8, "must be in [0,"),
    ],
)
def test_grpc_frames_that_lie_are_their_callers_error(
    connect_http2, marked, path: str, body: bytes, status: int, message: str
) -> None:
    """HTTP stays 200, the trailers say what was wrong."""
    reply = connect_http2(marked).request("POST", path, body, GRPC)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/grpc")
    assert reply.trailers["grpc-status"] == str(status)
    assert message in reply.trailers["grpc-message"]


def test_grpc_without_te_is_answered_without_trailers(connect_http2, marked) -> None:
    """A proxy that strips `te` would strip trailers as well: the status comes in the header."""
    reply = connect_http2(marked).request("POST", INFER, b"\0\0\0\0\0", {"content-type": "application/grpc"})
    assert (reply.status, reply.headers["grpc-status"]) == (200, "3")
    assert reply.headers["grpc-message"] == "header te must be trailers"


def test_only_grpc_inside_http2_is_grpc(connect, echo) -> None:
    """gRPC's content type on HTTP/1.1, and grpc-web's on either, are REST like everything else."""
    for content_type in ("application/grpc-web", "application/grpc-web+proto", "application/json"):
        reply = connect(echo).request("POST", INFER, b"\0\0\0\0\0", {"content-type": content_type})
        assert reply.status == 404
        assert reply.error() == f"path {INFER} is unknown"
    if connect(echo).version == "HTTP/1.1":
        assert connect(echo).request("POST", INFER, b"\0\0\0\0\0", GRPC).status == 404


Infer = message("inference.ModelInferRequest")


def infer_message(first: float = 1.0, **changes: object):
    values = {"fp32_contents": [first, 0.5]}
    fields = {"name": "x", "datatype": "FP32", "shape": [1, 2], "contents": values} | changes
    return Infer(model_name="marked", inputs=[fields])


@pytest.mark.parametrize(
    ("request_message", "code", "text"),
    [
        (Infer(model_name="other", inputs=infer_message().inputs), "NOT_FOUND",
         "model 'other' is unknown, must be one of marked"),
        (Infer(model_name="marked", model_version="2", inputs=infer_message().inputs), "NOT_FOUND",
         "has no version '2', must be 1"),
        (Infer(model_name="marked"), "INVALID_ARGUMENT", "inputs must not be empty"),
        (infer_message(name="y"), "INVALID_ARGUMENT", "input 'y' is unknown, must be one of 'x'"),
        (infer_message(name="é" * 5000), "INVALID_ARGUMENT", "input 'éé"),
        (infer_message(datatype="FP64", contents={"fp64_contents": [1, 2]}), "INVALID_ARGUMENT", "must be FP32"),
        (infer_message(shape=[2, 1]), "INVALID_ARGUMENT", "input 'x': shape = [2, 1], must be [-1, 2]"),
        (infer_message(shape=[2, 2]), "INVALID_ARGUMENT", "needs 4 elements, fp32_contents has 2"),
        (Infer(model_name="marked", inputs=infer_message().inputs, outputs=[{"name": "z"}]), "INVALID_ARGUMENT",
         "output 'z' is unknown, must be one of 'doubled'"),
        *[(infer_message(p.values[0]), p.values[2], p.values[3]) for p in FAILURES],
        (infer_message(EXIT), "INTERNAL", "the model raised SystemExit"),
    ],
)  # fmt: skip
def test_bad_grpc_requests_are_their_callers_error(grpc_infer, marked, request_message, code: str, text: str) -> None:
    """The status code of the error's class, and the same text as over REST."""
    with pytest.raises(grpc.RpcError) as error:
        grpc_infer(marked)(request_message)
    assert error.value.code().name == code
    assert text in error.value.details()
    assert len(error.value.details()) <= 500


def test_a_message_over_the_limit_is_refused(grpc_infer, echo) -> None:
    """RESOURCE_EXHAUSTED, as gRPC's own servers say it."""
    request = Infer(model_name="echo", raw_input_contents=[b"\0" * (2 << 20)])
    with pytest.raises(grpc.RpcError) as error:
        grpc_infer(echo)(request)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "must be in [0, 1048576]" in error.value.details()


def test_a_full_queue_is_unavailable_over_grpc(grpc_infer, connect, marked, gated, binary_request) -> None:
    """UNAVAILABLE, which clients and meshes retry."""
    with gated(marked) as gate:
        waiting = connect(marked)
        stream = waiting.send("POST", PATH, *binary_request({"x": rows(*range(16))}))
        gate.wait_for_rows(16)
        with pytest.raises(grpc.RpcError) as error:
            grpc_infer(marked)(infer_message())
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    assert waiting.receive(stream).status == 200


@pytest.mark.parametrize("by", ["header", "parameter"])
def test_a_deadline_that_passes_is_exceeded_over_grpc(grpc_infer, marked, gated, by: str) -> None:
    """By gRPC's own deadline or the parameter `timeout`."""
    request = infer_message()
    if by == "parameter":
        request.parameters["timeout"].int64_param = 1000
    with gated(marked), pytest.raises(grpc.RpcError) as error:
        grpc_infer(marked)(request, timeout=0.05 if by == "header" else 20)
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
