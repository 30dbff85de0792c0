"""What all connections together may hold of bodies that are still coming: over it the newest are told to come again."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from hyperframe.frame import DataFrame, Frame, HeadersFrame, RstStreamFrame, SettingsFrame
from torpor.predictors.errors import TorporError
from torpor.predictors.serving.exchange import Exchange, Fields
from torpor.predictors.serving.http1 import Http1
from torpor.predictors.serving.http2 import Http2
from torpor.predictors.serving.http2_fields import encode_field
from torpor.predictors.serving.server import HttpServer, Port

MOST = 10_000


class Transport:
    """A connection that nobody closes."""

    def write(self, data: bytes) -> None: ...
    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class App:
    """Takes every body; the statuses of the answers, and the bodies that came whole."""

    def __init__(self) -> None:
        self.refused: list[tuple[Exchange, int]] = []
        self.taken: list[bytes] = []

    def open(self, exchange: Exchange) -> bool:
        exchange.handler = lambda exchange: None
        return True

    def answer(self, exchange: Exchange) -> None:
        self.taken.append(exchange.body)
        exchange.respond(200, b"")

    def refuse(self, exchange: Exchange, error: TorporError) -> None:
        self.refused.append((exchange, error.http_status))
        exchange.respond(error.http_status, b"")

    def malformed(self, error: TorporError) -> tuple[bytes, Fields]:
        raise AssertionError


class Caller1:
    """An HTTP/1.1 connection; its body has a length."""

    def __init__(self, server: HttpServer) -> None:
        self.connection = Http1(server)
        self.connection.connection_made(Transport())  # type: ignore[arg-type]
        self.connection.data_received(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4000\r\n\r\n")

    def send(self, data: bytes, *, ends: bool = False) -> None:
        self.connection.data_received(data)

    def reset(self) -> None:
        self.connection.connection_lost(None)

    leave = reset


class ChunkedCaller1(Caller1):
    """An HTTP/1.1 connection; its body comes in chunks."""

    def __init__(self, server: HttpServer) -> None:
        self.connection = Http1(server)
        self.connection.connection_made(Transport())  # type: ignore[arg-type]
        self.connection.data_received(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")

    def send(self, data: bytes, *, ends: bool = False) -> None:
        self.connection.data_received(b"%x\r\n%s\r\n" % (len(data), data) + b"0\r\n\r\n" * ends)


class Caller2:
    """A stream of an HTTP/2 connection."""

    def __init__(self, server: HttpServer) -> None:
        self.connection = Http2(server)
        self.connection.connection_made(Transport())  # type: ignore[arg-type]
        names = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/")]
        block = b"".join(encode_field(name, value) for name, value in names)
        self._say(SettingsFrame(0), HeadersFrame(1, block, flags=["END_HEADERS"]))

    def send(self, data: bytes, *, ends: bool = False) -> None:
        self._say(DataFrame(1, data, flags=["END_STREAM"] if ends else []))

    def reset(self) -> None:
        self._say(RstStreamFrame(1, 8))

    def leave(self) -> None:
        self.connection.connection_lost(None)

    def _say(self, *frames: Frame) -> None:
        self.connection.data_received(b"".join(frame.serialize() for frame in frames))


Caller = Caller1 | Caller2


@pytest.fixture(params=[MOST])
def server(request: pytest.FixtureRequest) -> Iterator[HttpServer]:
    """A server that holds so many bytes, in a loop that only has to exist."""
    loop = asyncio.new_event_loop()

    async def make() -> HttpServer:
        return HttpServer(App(), Port("", 0, None), 4000, request.param)

    yield loop.run_until_complete(make())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@pytest.fixture(params=[Caller1, ChunkedCaller1, Caller2], ids=["length", "chunks", "HTTP/2"])
def call(request: pytest.FixtureRequest, server: HttpServer) -> Callable[[], Caller]:
    """Begin a request whose body is to come."""
    return lambda: request.param(server)


def test_the_newest_is_refused_and_the_others_end_well(server, call) -> None:
    """Not whoever sends the next byte: an old body is worth more than a new one."""
    callers = [call() for _ in range(3)]
    for caller in callers:
        caller.send(b"x" * 3000)
    assert not server.app.refused
    callers[0].send(b"x" * 900)  # 9900 bytes, and what keeping them takes
    assert [status for _, status in server.app.refused] == [503]
    callers[2].send(b"x" * 1000, ends=True)  # nobody listens to it
    assert not server.app.taken
    callers[0].send(b"x" * 100, ends=True)
    callers[1].send(b"y" * 1000, ends=True)
    assert server.app.taken == [b"x" * 4000, b"x" * 3000 + b"y" * 1000]
    assert server.unfinished_bytes == 0


def test_small_pieces_count_for_what_they_take(server, call) -> None:
    """Ten bytes of a body, one at a time, are more than ten bytes of memory."""
    caller = call()
    for _ in range(10):
        caller.send(b"x")
    assert server.unfinished_bytes >= 500


@pytest.mark.parametrize("end", ["leave", "reset"])
def test_who_leaves_gives_its_bytes_back(server, call, end: str) -> None:
    """By closing the connection, or on HTTP/2 by giving up the stream."""
    for _ in range(10):
        caller = call()
        caller.send(b"x" * 3000)
        assert server.unfinished_bytes > 3000
        getattr(caller, end)()
        assert server.unfinished_bytes == 0
    assert not server.app.refused


@pytest.mark.parametrize("ends", [False, True], ids=["goes on", "ends"])
def test_what_is_refused_for_itself_gives_its_bytes_back(server, call, ends: bool) -> None:
    """A body over its own limit, of which more comes or not."""
    if call().__class__ is Caller1:  # its length was refused before it came
        return
    caller = call()
    caller.send(b"x" * 3000)
    caller.send(b"x" * 3000, ends=ends)
    assert [status for _, status in server.app.refused] == [413]
    assert server.unfinished_bytes == 0


def test_a_body_that_comes_whole_is_not_counted(server) -> None:
    """The usual case costs nothing."""
    held: list[int] = []
    server.app.answer = lambda exchange: held.append(server.unfinished_bytes)
    connection = Http1(server)
    connection.connection_made(Transport())  # type: ignore[arg-type]
    connection.data_received(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello")
    caller = Caller2(server)
    caller.send(b"hello", ends=True)
    assert held == [0, 0]


@pytest.mark.parametrize("server", [1], indirect=True)
def test_one_body_of_the_largest_size_is_always_taken(server, call) -> None:
    """However small the common limit is."""
    caller = call()
    for _ in range(4):
        caller.send(b"x" * 999)
    caller.send(b"x" * 4, ends=True)
    assert server.app.taken == [b"x" * 4000]
