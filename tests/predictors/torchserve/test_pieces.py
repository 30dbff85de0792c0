"""Answers in pieces, as `send_intermediate_predict_response` sends them: chunks by HTTP, messages by TorchServe's gRPC."""

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from archives import entry, manifest, write_mar, write_storage
from connection_bench import Transport
from h2.events import StreamReset
from torpor.predictors.protocol.messages import message
from torpor.predictors.torchserve import frames
from torpor.predictors.torchserve.process import WorkerProcess
from virtual_time import run_virtually

TELLER = """
import os, struct, sys

def sized(data):
    return struct.pack("!i", len(data)) + data

def send(context, pieces):
    # What ts.handler_utils.utils.send_intermediate_predict_response writes; here of some rows, by their place.
    message = struct.pack("!i", 200) + sized(b"Intermediate")
    for place, piece in pieces.items():
        message += sized(context.request_ids[place].encode()) + sized(b"") + struct.pack("!i", 200) + sized(b"")
        message += struct.pack("!i", 0) + sized(piece)
    for place in pieces:
        context.set_response_header(place, "ts_stream_next", "true")
    context.cl_socket.sendall(message + struct.pack("!i", -1))

def words(row):
    body = row.get("body", b"") if isinstance(row, dict) else row
    return (body if isinstance(body, str) else bytes(body).decode()).split()

def handle(data, context):
    if data is None:
        return None
    asked = [words(row) for row in data]
    for place, (count, *more) in enumerate(asked):
        if "headed" in more:
            context.set_response_status(201, "", place)
            context.set_response_header(place, "X-Own", "seen")
        if "teapot" in more:
            context.set_response_status("teapot", "", place)
        if "wrong" in more:
            context.set_response_header(place, "x own", "")
        if "nothing" in more:
            context.set_response_status(204, "", place)
    for number in range(max(int(count) for count, *_ in asked)):
        send(context, {place: b"%d " % number for place, (count, *_) in enumerate(asked) if number < int(count)})
    for place, (count, *more) in enumerate(asked):
        if "raise" in more:
            raise ValueError("midway")
        if "memory" in more:
            raise MemoryError
        if "exit" in more:
            sys.exit(3)
        if "open" in more:
            open(more[-1]).read()
    if any("few" in more for more in asked):
        return []
    return [f"{os.getpid()} of {len(data)}" for _ in data]
"""
TEXT = {"content-type": "text/plain"}
SERVICE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"


@pytest.fixture(scope="module")
def server(serve, tmp_path_factory: pytest.TempPathFactory):
    """Two models of the handler, one of them with several requests a batch, on one worker each."""
    root = tmp_path_factory.mktemp("pieces")
    write_mar(root / "model-store/teller.mar", {"teller.py": TELLER}, manifest("teller", "teller.py"))
    settings = {"teller": entry("teller.mar"), "batched": entry("teller.mar", batchSize=4, maxBatchDelay=1000)}
    return serve(write_storage(root, {name: {"1.0": said} for name, said in settings.items()}))


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A handler that opens it waits until the test does."""
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


Said = Callable[..., http.client.HTTPResponse]


@pytest.fixture
def said() -> Iterator[Said]:
    """The answer to a text, of which the head has come; its connection closes with the test."""
    with contextlib.ExitStack() as connections:

        def ask(server, text: str, model: str = "teller") -> http.client.HTTPResponse:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            connections.callback(connection.close)
            connection.request("POST", f"/predictions/{model}", text.encode(), {**TEXT, "connection": "close"})
            answer = connection.getresponse()
            connections.callback(answer.close)
            return answer

        yield ask


def test_an_answer_comes_in_chunks_and_the_connection_goes_on(connect, server) -> None:
    """With status and headers of the first piece, and no length; by HTTP/2 too."""
    client = connect(server)
    for _ in range(2):
        reply = client.request("POST", "/predictions/teller", b"3 headed", TEXT)
        assert reply.status == 201
        assert reply.body.startswith(b"0 1 2 ")
        assert reply.body.endswith(b" of 1")
        assert reply.headers["x-own"] == "seen"
        assert not {"content-length", "ts_stream_next"} & set(reply.headers)
        assert "date" in reply.headers
        if client.version == "HTTP/1.1":
            assert reply.headers["transfer-encoding"] == "chunked"
    assert "content-length" in client.request("POST", "/predictions/teller", b"0", TEXT).headers


def test_a_piece_comes_while_the_handler_is_at_work(server, said: Said, gate: Path) -> None:
    """The caller has it before there is an answer."""
    answer = said(server, f"1 open {gate}")
    assert answer.read1() == b"0 "
    gate.write_text("")
    assert answer.read().endswith(b" of 1")


def test_http10_has_the_pieces_until_the_connection_ends(server) -> None:
    """It knows no chunks. One that breaks off is reset: its end would be taken for the answer's."""

    def ask(text: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), 30) as caller:
            head = b"POST /predictions/teller HTTP/1.0\r\nConnection: keep-alive\r\nContent-Type: text/plain\r\n"
            caller.sendall(head + b"Content-Length: %d\r\n\r\n%b" % (len(text), text))
            return b"".join(iter(lambda: caller.recv(65536), b""))

    head, _, body = ask(b"2").partition(b"\r\n\r\n")
    assert body.startswith(b"0 1 ")
    assert b"\r\nconnection: close" in head
    assert b"chunked" not in head


@pytest.mark.parametrize("method", ["HEAD", "POST"])
def test_an_answer_without_a_body_has_no_pieces(connect_http1, server, method: str) -> None:
    """What comes next on the connection is the next answer."""
    client = connect_http1(server)
    text = b"2" if method == "HEAD" else b"2 nothing"
    assert client.request(method, "/predictions/teller", text, TEXT).body == b""
    assert client.request("POST", "/predictions/teller", b"1", TEXT).body.startswith(b"0 ")


@pytest.mark.parametrize("fault", ["raise", "memory", "exit", "few"])
def test_an_answer_that_fails_midway_breaks_off(connect, server, fault: str) -> None:
    """Its caller sees that it is not whole, by either version of HTTP; it is not asked for again, and the model goes on."""
    client = connect(server)
    assert is_cut(client, f"1 {fault}")
    assert connect(server).request("POST", "/predictions/teller", b"1", TEXT).status == 200


def is_cut(client: Any, text: str) -> bool:
    """Whether the answer to a text is not whole."""
    try:
        client.request("POST", "/predictions/teller", text.encode(), TEXT)
    except http.client.IncompleteRead:
        return True
    return client.version == "HTTP/2" and any(isinstance(end, StreamReset) for end in client._ended.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 teapot", "the handler set status = 'teapot', must be in [200, 599]"),
        ("1 wrong", "the handler set the header 'x own' = '', which an answer cannot have"),
    ],
)
def test_a_first_piece_that_cannot_be_sent_fails_the_request(connect_http1, server, text: str, message: str) -> None:
    """As an answer would, and once."""
    reply = connect_http1(server).request("POST", "/predictions/teller", text.encode(), TEXT)
    assert (reply.status, json.loads(reply.body)["message"]) == (500, message)


@pytest.fixture
def together(server, connect_http1, said: Said, gate: Path) -> Callable[..., dict[str, bytes]]:
    """Ask the batched model so that the texts are one batch; the bodies by text, "cut" for one that breaks off."""

    def ask(text: str) -> bytes:
        try:
            return said(server, text, "batched").read()
        except http.client.IncompleteRead:
            return b"cut"

    def run(*texts: str) -> dict[str, bytes]:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            first = pool.submit(ask, f"0 open {gate}")
            with gate.open("w"):  # opens when the handler has
                asked = {text: pool.submit(ask, text) for text in texts}
                metrics = connect_http1(server)
                wanted = rf'torpor_queued_rows{{[^}}]*"batched"[^}}]*}} {len(texts)}\.0'
                while not re.search(wanted, metrics.request("GET", "/metrics").body.decode()):
                    pass
            first.result()
            return {text: future.result() for text, future in asked.items()}

    return run


def test_requests_of_a_batch_have_their_own_pieces(together) -> None:
    """Whether the handler sends to all of them or to some."""
    bodies = together("3", "0", "1", "2 headed")
    begins = {"3": b"0 1 2 ", "0": b"", "1": b"0 ", "2 headed": b"0 1 "}
    for text, begin in begins.items():
        pid, _, end = bodies[text].removeprefix(begin).partition(b" of ")
        assert (pid.isdigit(), end) == (True, b"4")


@pytest.mark.parametrize("fault", ["raise", "exit", "few", "memory"])  # the last makes batches smaller for good
def test_a_fault_breaks_off_what_has_begun_and_nothing_else(together, fault: str) -> None:
    """Others of the batch run again, alone."""
    bodies = together(f"1 {fault}", "0", "2")
    assert bodies[f"1 {fault}"] == bodies["2"] == b"cut"
    assert bodies["0"].endswith(b" of 1")


def test_a_caller_that_leaves_midway_costs_nobody_else(server, said: Said, gate: Path) -> None:
    """The handler is not told, and works on for nobody; its worker answers the next."""
    answer = said(server, f"1 open {gate}")
    assert answer.read1() == b"0 "
    answer.close()
    gate.write_text("")
    before = said(server, "0").read()
    assert said(server, "0").read() == before


def test_a_server_that_drains_lets_an_answer_come_to_its_end(start, said: Said, gate: Path, tmp_path: Path) -> None:
    """What has begun is in flight."""
    server = start(
        write_mar(tmp_path / "teller.mar", {"handler.py": TELLER}), "--drain-quiet-s", "0", "--drain-timeout-s", "20"
    )
    answer = said(server, f"1 open {gate}")
    assert answer.read1() == b"0 "
    server.process.send_signal(signal.SIGTERM)
    gate.write_text("")
    assert answer.read().endswith(b" of 1")
    assert server.wait() == 0


def test_v1_has_the_pieces_before_its_document(connect_http1, server) -> None:
    """As TorchServe's own path of that name; tensors have no place for them."""
    reply = connect_http1(server).request("POST", "/v1/models/teller:predict", b'{"instances": ["1", "2"]}')
    begin, _, document = reply.body.partition(b"{")
    assert begin == b"0 0 1 "
    assert document.startswith(b'"predictions":')


@pytest.fixture
def call(server, grpc_channel) -> Callable[..., Any]:
    """Ask TorchServe's own service: the messages' contents, or with one the content."""
    request, response = (
        message(f"org.pytorch.serve.grpc.inference.{name}") for name in ("PredictionsRequest", "PredictionResponse")
    )
    channel = grpc_channel(server)

    def ask(method: str, text: str) -> list[bytes]:
        kind = channel.unary_unary if method == "Predictions" else channel.unary_stream
        invoke = kind(f"/{SERVICE}/{method}", lambda one: one.SerializeToString(), response.FromString)
        answer = invoke(request(model_name="teller", input={"body": text.encode()}), timeout=30)
        return [answer.prediction] if method == "Predictions" else [one.prediction for one in answer]

    return ask


def test_a_grpc_stream_has_a_message_a_piece(call) -> None:
    """And one for an answer at once, which ends TorchServe's worker."""
    *pieces, end = call("StreamPredictions", "2")
    assert pieces == [b"0 ", b"1 "]
    assert end.endswith(b" of 1")
    (end,) = call("StreamPredictions", "0")
    assert end.endswith(b" of 1")


def test_a_unary_grpc_call_has_the_pieces_in_one_message(call) -> None:
    """As the body of an HTTP caller who does not look until the end."""
    (answer,) = call("Predictions", "2")
    assert answer.startswith(b"0 1 ")


@pytest.mark.parametrize(
    ("method", "text", "code"),
    [
        ("StreamPredictions", "1 raise", "INTERNAL"),
        ("StreamPredictions", "0 raise", "INTERNAL"),
        ("Predictions", "1 raise", "INTERNAL"),
        ("StreamPredictions2", "1", "UNIMPLEMENTED"),
    ],
)
def test_a_grpc_answer_that_fails_ends_with_a_status(call, method: str, text: str, code: str) -> None:
    """After its pieces, if there were any. Sequences, which StreamPredictions2 is for, are not there."""
    with pytest.raises(grpc.RpcError) as error:
        call(method, text)
    assert error.value.code().name == code


class _Reading(Transport):
    def pause_reading(self) -> None:
        self.is_paused = True


def test_a_caller_that_is_behind_holds_its_worker_up() -> None:
    """Nothing is read from it meanwhile, and it is not late; when it goes on, it has all of its time."""

    async def scenario() -> tuple[list[Any], list[float]]:
        loop = asyncio.get_running_loop()
        expired: list[float] = []
        worker = WorkerProcess("m", 0, lambda *_: None, lambda _: None)
        worker.kill = lambda: expired.append(loop.time())  # type: ignore[method-assign]
        worker._transport = transport = _Reading()  # type: ignore[assignment]
        transport.writelines = lambda parts: None  # type: ignore[attr-defined]
        seen: list[Any] = []
        began_s = loop.time()
        worker.run(
            {}, [], lambda replies, blobs: seen.append(replies), lambda said, piece: seen.append(bytes(piece)), 10.0
        )
        await asyncio.sleep(8)
        worker.data_received(b"".join(frames.pack({"batch": 1, "piece": 0}, [[b"x"]])))
        await asyncio.sleep(8)  # its time has begun anew
        worker.hold("a caller")
        worker.hold("another")
        await asyncio.sleep(100)
        worker.let_go("a caller")
        seen.append(transport.is_paused)
        worker.let_go("another")
        seen.append(transport.is_paused)
        await asyncio.sleep(20)
        return seen, [at - began_s for at in expired]

    seen, expired = run_virtually(scenario())
    assert seen == [b"x", True, False]
    assert expired == [126.0]
