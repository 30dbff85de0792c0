"""Whole connections on a transport that writes to memory: any bytes, in any pieces, and what must hold whatever they are.

Nothing is raised, every answer is well-formed HTTP, what is held stays bounded, the server's counters are right when the
connection has ended, and the same bytes in other pieces get the same answers.
"""

import asyncio
import contextlib
import re
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

from choices import Choices
from torpor.predictors.errors import NotFound, TorporError, Unavailable
from torpor.predictors.serving import http1, http2
from torpor.predictors.serving.exchange import Exchange, Fields
from torpor.predictors.serving.http1 import Http1
from torpor.predictors.serving.http2 import Http2, Stream
from torpor.predictors.serving.http2_fields import encode_field
from torpor.predictors.serving.server import HttpServer, Port

MAX_BODY_BYTES = 300
MAX_UNFINISHED_BYTES = 600
MAX_HEAD_BYTES = 400
MOST_PIPELINED_BYTES = 200
SEVERAL_YEARS_S = 1e8


class App:
    """Answers `/echo` at once and `/later` when asked to; refuses `/full` with its body still to come, and the rest."""

    def __init__(self) -> None:
        self.asked: deque[Exchange] = deque()
        self.opened: list[Exchange] = []

    def open(self, exchange: Exchange) -> bool:
        self.opened.append(exchange)
        path = exchange.head.path
        if path in ("/echo", "/later"):
            exchange.handler = self.asked.append if path == "/later" else _echo
            return True
        self.refuse(exchange, Unavailable("full") if path == "/full" else NotFound("none"))
        return False

    def answer(self, exchange: Exchange) -> None:
        assert exchange.handler is not None
        assert len(exchange.body) <= MAX_BODY_BYTES
        exchange.handler(exchange)

    def refuse(self, exchange: Exchange, error: TorporError) -> None:
        exchange.respond(error.http_status, str(error).encode(), ((b"content-type", b"text/plain"),))

    def malformed(self, error: TorporError) -> tuple[bytes, Fields]:
        return str(error).encode(), ()


def _echo(exchange: Exchange) -> None:
    exchange.respond(200, exchange.body)


class Transport:
    """Keeps what is written. With `room`, it asks for a pause when so many bytes were written since the caller read."""

    def __init__(self, room: int | None = None) -> None:
        self.written = b""
        self.is_closed = False
        self.has_ended = False
        self.is_reading = True
        self.protocol: Any = None
        self._room = room
        self._unread = 0

    def write(self, data: bytes) -> None:
        assert not self.has_ended, "written after the end"
        self.written += data
        if self._room is None:
            return
        self._unread += len(data)
        if self._unread > self._room >= self._unread - len(data):
            self.protocol.pause_writing()

    def read(self) -> None:
        """The caller takes what was written."""
        was_full = self._room is not None and self._unread > self._room
        self._unread = 0
        if was_full and not self.is_closed:
            self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self._unread

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_ended = True

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True


class Loop:
    """What a connection wants of an event loop."""

    def __init__(self) -> None:
        self.due: deque[Callable[[], object]] = deque()

    def call_soon(self, call: Callable[[], object]) -> None:
        self.due.append(call)

    def time(self) -> float:
        return 0.0

    def run(self) -> None:
        while self.due:
            self.due.popleft()()


async def _make_server() -> HttpServer:
    return HttpServer(App(), Port("", 0, None), MAX_BODY_BYTES, 0)


SERVER = asyncio.run(_make_server())
"""One for all connections, so that what one leaves behind is found at the next."""


@contextlib.contextmanager
def limits(module: Any, **values: int) -> Iterator[None]:
    """Small limits, for short inputs to reach them."""
    kept = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(kept)


def converse(
    version: type[Http1] | type[Http2], pieces: list[bytes], holds: Callable[[Any], int], room: int | None = None
) -> tuple[App, Transport]:
    """A connection from its first byte to its last; `holds` says what it keeps for its caller."""
    app, loop, transport = App(), Loop(), Transport(room)
    SERVER.app, SERVER.loop, SERVER.now_s = app, loop, 1000.0  # type: ignore[assignment]
    SERVER.max_unfinished_bytes = MAX_UNFINISHED_BYTES if room else 1 << 30  # what is unfinished depends on the pieces
    transport.protocol = connection = version(SERVER)
    connection.connection_made(transport)  # type: ignore[arg-type]
    assert len(SERVER.connections) == 1
    waiting, is_over = deque(pieces), False
    while not (transport.is_closed or is_over):
        loop.run()
        is_over = True
        if waiting and transport.is_reading:
            connection.data_received(waiting.popleft())
            assert holds(connection) <= 3 * (MAX_BODY_BYTES + MAX_HEAD_BYTES + MOST_PIPELINED_BYTES)
            assert SERVER.unfinished_bytes <= SERVER.max_unfinished_bytes
            is_over = False
            continue
        if room is not None:
            transport.read()
            is_over = is_over and not (waiting and transport.is_reading)
        if app.asked:
            _echo(app.asked.popleft())
            is_over = False
    loop.run()
    if not transport.is_closed:
        SERVER.now_s += SEVERAL_YEARS_S
        connection.sweep()
        loop.run()
        assert app.asked or transport.is_closed or transport.has_ended or version is Http2 or transport.written
        connection.eof_received()
    connection.connection_lost(None)
    while app.asked:
        _echo(app.asked.popleft())  # to a caller that has left: goes nowhere
    loop.run()
    assert SERVER.in_flight == 0
    assert not SERVER.connections
    assert not SERVER.unfinished_bytes
    return app, transport


ANSWER = re.compile(rb"HTTP/1\.1 ([1-5]\d\d) [A-Za-z -]+\r\n((?:[a-z-]+: [ -~]*\r\n)*)\r\n")


def _answers(app: App, transport: Transport) -> list[tuple[int, bytes]]:
    """Status and body of each; a refused one's status is rounded, for what is found first may depend on the pieces."""
    written, answers = transport.written, []
    methods = [exchange.head.method for exchange in app.opened]
    while written:
        match = ANSWER.match(written)
        assert match is not None, written
        status, written = int(match[1]), written[match.end() :]
        if status == 100:
            continue
        length = re.search(rb"(?m)^content-length: (\d+)\r$", match[2])
        assert length is not None
        size = 0 if methods[len(answers) : len(answers) + 1] == ["HEAD"] else int(length[1])
        assert size <= len(written)
        answers.append((status if status < 400 else 400, written[:size] if status < 400 else b""))
        written = written[size:]
    assert len(answers) <= len(methods) + 1
    return answers


def http1_connection(data: bytes) -> None:
    choices = Choices(data)
    room = choices.pick((None, None, None, 64))
    cuts = Choices(choices.take(7))
    stream = choices.rest()
    with limits(http1, MAX_HEAD_BYTES=MAX_HEAD_BYTES, _MOST_PIPELINED_BYTES=MOST_PIPELINED_BYTES):
        several = _answers(*converse(Http1, cuts.pieces(stream), _http1_holds, room))
        whole = _answers(*converse(Http1, [stream] if stream else [], _http1_holds))
    if room is None and b"expect" not in stream.lower():  # who awaits "100 Continue" is answered by what has come
        assert several == whole


def _http1_holds(connection: Any) -> int:
    return len(connection._waiting) + sum(map(len, connection._body))


BLOCKS = (
    ("POST", "/echo"), ("POST", "/later"), ("GET", "/echo"), ("HEAD", "/later"), ("POST", "/full"), ("GET", "/none"),
    ("GET", ""),
)  # fmt: skip


def _block(choices: Choices) -> bytes:
    method, path = choices.pick(BLOCKS)
    fields = [(b":method", method.encode()), (b":scheme", b"http"), (b":path", path.encode())]
    block = b"".join(encode_field(name, value) for name, value in fields)
    extra = choices.below(8)
    if extra == 7:
        block += encode_field(b"content-length", b"%d" % choices.below(256))
    elif extra == 6:
        block += choices.take(choices.below(16))
    return block


NUMBERS = (1, 2, 0, 5, 16384, 65535, (1 << 31) - 1, 1 << 31, 16777215)
STREAMS = (1, 3, 5, 7, 0, 2, 9, 255)


def _frame(choices: Choices) -> bytes:
    """A frame whose length is right, unless it is not meant to be."""
    kind = choices.pick((1, 0, 8, 4, 3, 9, 6, 7, 2, 5, 10, 1, 0))
    stream = choices.pick(STREAMS)
    flags = choices.pick((0x4, 0x5, 0x0, 0x1, 0x9, 0x8, 0x25, 0xD, 0xFF))
    form = choices.below(16)
    if form == 15:
        return choices.take(choices.below(20))
    if form == 14:
        payload = choices.take(choices.below(40))
    elif kind in (1, 9):
        payload = _block(choices)
        if kind == 1 and flags & 0x20:
            payload = bytes(5) + payload
        if flags & 0x8 and kind == 1:
            pad = choices.below(8)
            payload = bytes([pad]) + payload + bytes(pad)
    elif kind == 0:
        payload = bytes(choices.below(200))
    elif kind == 8:
        payload = struct.pack(">L", choices.pick(NUMBERS))
    elif kind == 4:
        count = choices.below(3)
        stream, flags = (stream, flags) if form == 13 else (0, 0)
        payload = b"".join(struct.pack(">HL", choices.below(8), choices.pick(NUMBERS)) for _ in range(count))
    else:
        payload = bytes({3: 4, 6: 8, 7: 8, 2: 5}.get(kind, choices.below(8)))
        stream, flags = (0, flags & 1) if kind in (6, 7) and form != 13 else (stream, flags)
    return struct.pack(">HBBBL", 0, len(payload), kind, flags, stream) + payload if len(payload) < 256 else b""


def _window(stream: bytes) -> tuple[int, Counter[int]]:
    """The largest windows that the frames can have opened: of every stream at first, and by WINDOW_UPDATEs."""
    initial, updates = 65535, Counter[int]()
    while len(stream) >= 9:
        _, length, kind, _, stream_id = struct.unpack(">HBBBL", stream[:9])
        payload, stream = stream[9 : 9 + length], stream[9 + length :]
        if kind == 4 and not len(payload) % 6:
            initial = max([initial, *(value for name, value in struct.iter_unpack(">HL", payload) if name == 4)])
        elif kind == 8 and len(payload) == 4:
            updates[stream_id & 0x7FFFFFFF] += int.from_bytes(payload) & 0x7FFFFFFF
    return initial, updates


def _check_frames(app: App, stream: bytes, written: bytes) -> None:
    """Frames in their order, within the caller's windows; no stream goes on after its end."""
    initial, updates = _window(stream)
    sent: Counter[int] = Counter()
    begun: set[int] = set()
    ended: set[int] = set()
    opened = {exchange.id for exchange in app.opened if isinstance(exchange, Stream)}
    while written:
        high, low, kind, flags, stream_id = struct.unpack(">HBBBL", written[:9])
        length = high << 8 | low
        assert len(written) >= 9 + length
        payload, written = written[9 : 9 + length], written[9 + length :]
        if kind in (0, 1):
            assert stream_id in opened
            assert stream_id not in ended
            assert kind == 1 or stream_id in begun
            begun.add(stream_id)
            if flags & 1:
                ended.add(stream_id)
            sent[stream_id] += length if kind == 0 else 0
        elif kind == 3:
            ended.add(stream_id)
            assert len(payload) == 4
        else:
            assert kind in (4, 6, 7, 8)
    for stream_id, size in sent.items():
        assert size <= initial + updates[stream_id]
    assert sent.total() <= 65535 + updates[0]


MOST_FRAMES = 24


def http2_connection(data: bytes) -> None:
    choices = Choices(data)
    room = choices.pick((None, None, None, 64))
    cuts = Choices(choices.take(7))
    frames = [b"\0\0\0\4\0\0\0\0\0"] if choices.below(16) != 15 else []
    while choices and len(frames) < MOST_FRAMES:
        frames.append(_frame(choices))
    stream = b"".join(frames)
    with limits(http2, MAX_HEADER_LIST_BYTES=MAX_HEAD_BYTES, _CREDIT=20.0, _MAX_STREAMS=3):
        app, transport = converse(Http2, cuts.pieces(stream), _http2_holds, room)
        _check_frames(app, stream, transport.written)
        whole_app, whole = converse(Http2, [stream] if stream else [], _http2_holds)
        _check_frames(whole_app, stream, whole.written)
    if room is None and transport.written != whole.written:  # it was closed between the pieces
        assert transport.is_closed
        assert whole.written.startswith(transport.written)


def _http2_holds(connection: Any) -> int:
    streams = connection._streams.values()
    block = connection._block or ()
    pieces = sum(sum(map(len, stream.pieces)) + len(stream.body) for stream in streams)
    return pieces + sum(map(len, block))
