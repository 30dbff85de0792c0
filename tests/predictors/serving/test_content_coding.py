"""gzip and deflate, of requests and answers, over both HTTP versions and gRPC."""

import asyncio
import gzip
import json
import threading
import zlib
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.predictors.errors import InvalidInput, PayloadTooLarge, Unavailable
from torpor.predictors.protocol.messages import message
from torpor.predictors.serving.content_coding import ContentCoder, Inflation, Result, is_worth_compressing
from torpor.predictors.serving.exchange import Exchange, Head

PATH = "/v2/models/echo/infer"
COMPRESS = {"gzip": gzip.compress, "deflate": zlib.compress}
DECOMPRESS = {"gzip": gzip.decompress, "deflate": zlib.decompress}


def compressible(rows: int) -> np.ndarray:
    return np.arange(rows * 100, dtype="<i8").reshape(rows, 100) % 7


@pytest.mark.parametrize("coding", COMPRESS)
@pytest.mark.parametrize("rows", [1, 10, 1000])
def test_a_compressed_binary_body_is_read(connect, echo, binary_request, coding: str, rows: int) -> None:
    """The length of the JSON object counts in the inflated body; small ones at once, large ones by the thread."""
    array = compressible(rows)
    body, headers = binary_request({"x": array})
    connection = connect(echo)
    for name in (coding, coding.upper()):
        reply = connection.request("POST", PATH, COMPRESS[coding](body), headers | {"content-encoding": name})
        np.testing.assert_array_equal(reply.tensors()["x"], array)


@pytest.mark.parametrize("coding", COMPRESS)
@pytest.mark.parametrize("rows", [30, 1000])
def test_an_answer_is_compressed_for_who_asks(connect, echo, binary_request, coding: str, rows: int) -> None:
    """If it is long and shrinks; who does not ask, or asks for a coding that nobody has, gets it as it is."""
    connection = connect(echo)
    body, headers = binary_request({"x": compressible(rows)})
    plain = connection.request("POST", PATH, body, headers)
    for asked in ("", "br", f"{coding};q=0", f"identity, {coding};q=0.5", f"{coding};q=a"):
        reply = connection.request("POST", PATH, body, headers | {"accept-encoding": asked})
        assert "content-encoding" not in reply.headers, asked
        assert reply.body == plain.body
    for asked in (coding, f"br, {coding}", f"br;q=1.0, {coding};q=0.8, *;q=0.1"):
        reply = connection.request("POST", PATH, body, headers | {"accept-encoding": asked})
        assert reply.headers["content-encoding"] == coding, asked
        assert len(reply.body) < len(plain.body) / 2
        assert DECOMPRESS[coding](reply.body) == plain.body
        length = "inference-header-content-length"
        assert reply.headers[length] == plain.headers[length]


def test_an_answer_that_does_not_shrink_is_not_compressed(connect, echo, binary_request) -> None:
    """Short ones, and numbers without a pattern."""
    connection = connect(echo)
    for array in (np.zeros((1, 100), "<f4"), np.random.default_rng(0).standard_normal((9, 1000)).astype("<f4")):
        body, headers = binary_request({"x": array})
        reply = connection.request("POST", PATH, body, headers | {"accept-encoding": "gzip"})
        assert "content-encoding" not in reply.headers
        np.testing.assert_array_equal(reply.tensors()["x"], array)


def test_gzip_is_preferred(connect, echo, binary_request) -> None:
    """Unless the caller likes deflate better."""
    connection = connect(echo)
    body, headers = binary_request({"x": compressible(30)})
    for asked, coding in (("deflate, gzip", "gzip"), ("deflate, gzip;q=0.9", "deflate")):
        reply = connection.request("POST", PATH, body, headers | {"accept-encoding": asked})
        assert reply.headers["content-encoding"] == coding


@pytest.mark.parametrize("coding", COMPRESS)
def test_a_bomb_is_refused_and_costs_nobody_else(connect, echo, coding: str) -> None:
    """A body that fits the limit and inflates beyond it is 413; the connection and the server go on."""
    bomb = COMPRESS[coding](bytes(64 << 20))
    connection = connect(echo)
    reply = connection.request("POST", PATH, bomb, {"content-encoding": coding})
    assert reply.status == 413
    assert reply.error() == "body = 1048577 bytes or more inflated, must be in [0, 1048576]"
    assert connection.request("GET", "/v2/health/live").status == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body ends inside its gzip"),
        (gzip.compress(b"{}")[:-1], "the body ends inside its gzip"),
        (gzip.compress(bytes(1 << 19))[:-9], "the body ends inside its gzip"),
        (gzip.compress(b"{}") + b"{}", "2 bytes follow the end of the body's gzip"),
        (gzip.compress(b"{}")[:-8] + bytes(8), "the body is not gzip: "),
        (gzip.compress(bytes(1 << 19))[:-8] + bytes(8), "the body is not gzip: "),
        (gzip.compress(b"["), "the body is not JSON"),
    ],
    ids=["empty", "cut", "cut and large", "followed", "checksum", "checksum and large", "inside"],
)
def test_a_broken_body_is_refused_in_words(connect, echo, body: bytes, message: str) -> None:
    """Cut, longer than itself, of a wrong checksum, or not what it should be inside."""
    reply = connect(echo).request("POST", PATH, body, {"content-encoding": "gzip"})
    assert (reply.status, message in reply.error()) == (400, True), reply


def test_v1_is_read_and_answered_compressed(connect, echo) -> None:
    """As v2, with JSON."""
    rows = compressible(40).tolist()
    body = gzip.compress(json.dumps({"instances": rows}).encode())
    headers = {"content-encoding": "x-gzip", "accept-encoding": "gzip"}
    reply = connect(echo).request("POST", "/v1/models/echo:predict", body, headers)
    assert json.loads(gzip.decompress(reply.body)) == {"predictions": rows}


def test_a_caller_that_leaves_is_forgotten(connect_http2, echo) -> None:
    """While its body is being inflated: the connection goes on."""
    connection = connect_http2(echo)
    bomb = gzip.compress(bytes(900 << 10))
    stream = connection.send("POST", PATH, bomb, {"content-encoding": "gzip"})
    connection.cancel(stream)
    assert connection.request("GET", "/v2/health/live").status == 200


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize("rows", [10, 1000])
def test_grpc_messages_are_compressed_both_ways(grpc_infer, echo, compression, rows: int) -> None:
    """grpcio reads what it gets for what it sent; a method with small messages takes compressed ones too."""
    request = message("inference.ModelInferRequest")(model_name="echo")
    request.inputs.add(name="x", datatype="INT64", shape=[rows, 100])
    request.raw_input_contents.append(compressible(rows).tobytes())
    response, call = grpc_infer(echo).with_call(request, compression=compression)
    assert response.raw_output_contents[0] == request.raw_input_contents[0]
    assert dict(call.initial_metadata()).get("grpc-encoding", compression.name.lower()) == compression.name.lower()


def frame(data: bytes, coding: str) -> tuple[bytes, dict[str, str]]:
    headers = {"content-type": "application/grpc", "te": "trailers", "grpc-encoding": coding}
    return b"\1" + len(data).to_bytes(4, "big") + data, headers | {"grpc-accept-encoding": "identity, gzip"}


def test_a_grpc_answer_is_compressed_as_its_request_was(connect_http2, echo) -> None:
    """The frame says so, and the field which coding."""
    request = message("inference.ModelInferRequest")(model_name="echo")
    request.inputs.add(name="x", datatype="INT64", shape=[30, 100])
    request.raw_input_contents.append(compressible(30).tobytes())
    data = request.SerializeToString()
    connection = connect_http2(echo)
    reply = connection.request(
        "POST", "/inference.GRPCInferenceService/ModelInfer", *frame(gzip.compress(data), "gzip")
    )
    assert (reply.headers["grpc-encoding"], reply.body[0]) == ("gzip", 1)
    response = message("inference.ModelInferResponse").FromString(gzip.decompress(reply.body[5:]))
    assert response.raw_output_contents[0] == request.raw_input_contents[0]
    reply = connection.request(
        "POST", "/inference.GRPCInferenceService/ModelInfer", *frame(zlib.compress(data), "deflate")
    )
    assert "grpc-encoding" not in reply.headers  # it is not what the caller accepts
    assert reply.body[0] == 0


@pytest.mark.parametrize(
    ("data", "coding", "status", "text"),
    [
        (b"abc", "snappy", "12", "coding 'snappy' is not supported, must be gzip or deflate"),
        (b"abc", "gzip", "3", "the body is not gzip"),
        (gzip.compress(bytes(64 << 20)), "gzip", "8", "body = 1048577 bytes or more inflated"),
    ],
    ids=["unknown", "broken", "bomb"],
)
def test_grpc_messages_that_do_not_inflate(
    connect_http2, echo, data: bytes, coding: str, status: str, text: str
) -> None:
    """Each in gRPC's own form."""
    connection = connect_http2(echo)
    reply = connection.request("POST", "/inference.GRPCInferenceService/ModelInfer", *frame(data, coding))
    assert reply.trailers["grpc-status"] == status
    assert text in reply.trailers["grpc-message"]


def test_small_grpc_messages_may_be_compressed(connect_http2, echo) -> None:
    """Those of the other methods, within a bound of their own."""
    path, request = "/inference.GRPCInferenceService/ModelReady", message("inference.ModelReadyRequest")(name="echo")
    connection = connect_http2(echo)
    reply = connection.request("POST", path, *frame(gzip.compress(request.SerializeToString()), "gzip"))
    assert reply.trailers["grpc-status"] == "0"
    reply = connection.request("POST", path, *frame(gzip.compress(bytes(1 << 17)), "gzip"))
    assert reply.trailers["grpc-status"] == "8"


@given(st.binary(max_size=2000), st.integers(1, 4000), st.integers(1, 300), st.sampled_from(sorted(COMPRESS)))
def test_what_is_compressed_comes_out(data: bytes, limit: int, most: int, coding: str) -> None:
    """In steps of any size, and never more than the limit."""
    inflation = Inflation(COMPRESS[coding](data), coding.encode(), limit)
    try:
        while (content := inflation.run(most)) is None:
            pass
        assert content == data
    except PayloadTooLarge:
        assert len(data) > limit
    else:
        assert len(data) <= limit


@given(st.binary(max_size=200), st.sampled_from(sorted(COMPRESS)))
def test_any_bytes_inflate_or_are_refused(data: bytes, coding: str) -> None:
    """With InvalidInput and nothing else."""
    for body in (data, COMPRESS[coding](data)[:-1] + data[:1]):
        try:
            Inflation(body, coding.encode(), 1000).run_to_end()
        except InvalidInput:
            continue


def test_what_is_worth_compressing() -> None:
    """JSON and token ids from four kilobytes on, random floats never."""
    text = json.dumps(np.random.default_rng(0).random(1000).tolist()).encode()
    assert is_worth_compressing(text)
    assert is_worth_compressing(text[:4096])
    assert not is_worth_compressing(text[:4095])
    assert not is_worth_compressing(np.random.default_rng(0).random(2000, np.float32).tobytes())


def begin(way: str, coder: ContentCoder, size: int, then: Callable[[Result], object]) -> Exchange:
    """Inflate to, or compress, so many bytes."""
    exchange = Exchange(Head("POST", "/", {}, None))
    if way == "inflate":
        coder.inflate(exchange, gzip.compress(bytes(size)), b"gzip", then)
    else:
        coder.compress(exchange, bytes(size), b"gzip", then)
    return exchange


async def whole(way: str, coder: ContentCoder, size: int) -> bytes:
    future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
    begin(way, coder, size, future.set_result)
    return (await future)()


@pytest.mark.parametrize(("way", "most"), [("inflate", (256 << 10) - 1), ("compress", 64 << 10)])
def test_what_takes_long_is_done_beside_the_loop(way: str, most: int) -> None:
    """And what does not, at once: a thread would cost it more."""

    async def run() -> None:
        coder, came = ContentCoder(1 << 20, 16 << 20), []
        begin(way, coder, most, came.append)
        assert len(came) == 1
        begin(way, coder, most + 2, came.append)
        assert len(came) == 1
        await whole(way, coder, most + 2)
        assert len(came) == 2

    asyncio.run(run())


@pytest.mark.parametrize("way", ["inflate", "compress"])
def test_nothing_is_done_with_the_content_for_a_caller_that_left(way: str) -> None:
    """The model would run for nobody."""

    async def run() -> None:
        errors: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
        coder, came = ContentCoder(1 << 20, 16 << 20), []
        exchange = begin(way, coder, 1 << 20, came.append)
        assert exchange.on_leave is not None
        exchange.on_leave()
        assert await whole(way, coder, 1 << 20)  # the one thread has been through with the other then
        assert not came
        assert not errors

    asyncio.run(run())


def test_large_bodies_take_one_core_together() -> None:
    """However many come: they wait for one another, in one thread."""

    async def run() -> None:
        before = {*threading.enumerate()}
        coder, came = ContentCoder(1 << 20, 16 << 20), []
        body = gzip.compress(bytes(1 << 20))
        for _ in range(8):
            coder.inflate(Exchange(Head("POST", "/", {}, None)), body, b"gzip", came.append)
        await whole("inflate", coder, 1 << 20)
        assert [len(content()) for content in came] == [1 << 20] * 8
        assert len({*threading.enumerate()} - before) == 1

    asyncio.run(run())


@pytest.mark.parametrize(("size", "most", "count"), [(100, 300, 3), (1 << 20, 3 << 20, 3), (100, 1, 2)])
@pytest.mark.parametrize("more", [1, 1 << 20])
def test_what_came_of_few_bytes_has_a_bound_together(size: int, most: int, count: int, more: int) -> None:
    """Two of the largest at least; what comes on top is refused, until one of those before it has gone."""

    async def kept(coder: ContentCoder, size: int) -> Exchange:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        exchange = begin("inflate", coder, size, future.set_result)
        assert len((await future)()) == size
        return exchange

    async def run() -> None:
        coder = ContentCoder(size, most)
        exchanges = [await kept(coder, size) for _ in range(count)]
        with pytest.raises(Unavailable, match="the server holds as much of inflated bodies as it may"):
            await kept(coder, min(more, size))
        exchanges.pop()
        assert await kept(coder, size)

    asyncio.run(run())


def test_inflated_bodies_that_wait_have_a_bound(start, connect, gated, gate_path) -> None:
    """Those on top are told to come again; each counts until it has its answer, and no longer."""
    server = start("marked", "--max-body-bytes", str(1 << 20), "--max-unfinished-bytes", "1", GATE=str(gate_path))
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    body = gzip.compress(json.dumps({"inputs": [tensor]}).encode().ljust(1 << 20))
    request = ("POST", "/v2/models/marked/infer", body, {"content-encoding": "gzip"})
    waiting = [connect(server) for _ in range(2)]
    with gated(server) as gate:
        streams = [connection.send(*request) for connection in waiting]
        gate.wait_for_rows(2)
        refused = connect(server).request(*request)
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert [c.receive(stream).status for c, stream in zip(waiting, streams, strict=True)] == [200, 200]
    for _ in range(3):
        assert waiting[0].request(*request).status == 200


def test_content_may_be_as_large_as_the_limit() -> None:
    """One byte more is too large, at once or by the thread."""
    for limit in (100, 1 << 20):
        coder = ContentCoder(limit, limit)
        assert asyncio.run(whole("inflate", coder, limit)) == bytes(limit)
        with pytest.raises(PayloadTooLarge, match=f"body = {limit + 1} bytes or more inflated"):
            asyncio.run(whole("inflate", coder, limit + 1))
