"""HTTP/2 (RFC 9113) frame by frame over sockets, gRPC included: the rules, the limits, and what attackers send.

Where the RFC leaves a choice (an error of the stream or of the connection, an answer 400 or a reset), each is accepted.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import hpack
import numpy as np
import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torpor.predictors.protocol.messages import message

TIMEOUT_S = 10
INFER, LIVE = "/v2/models/marked/infer", "/v2/health/live"
ALIVE = b'{"live":true}'

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, WITH_PRIORITY = 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = range(1, 6)
MOST = (1 << 31) - 1

PROTOCOL = ErrorCodes.PROTOCOL_ERROR
FLOW = ErrorCodes.FLOW_CONTROL_ERROR
CLOSED = ErrorCodes.STREAM_CLOSED
SIZE = ErrorCodes.FRAME_SIZE_ERROR
REFUSED = ErrorCodes.REFUSED_STREAM
COMPRESSION = ErrorCodes.COMPRESSION_ERROR
CALM = ErrorCodes.ENHANCE_YOUR_CALM

Fields = list[tuple[str | bytes, str | bytes]]


def frame(kind: int, stream: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    """Any frame, valid or not."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def u32(number: int) -> bytes:
    return struct.pack(">I", number)


def setting(name: int, value: int) -> bytes:
    return struct.pack(">HI", name, value)


def fields(method: str = "GET", path: str = LIVE, *more: tuple[str | bytes, str | bytes]) -> Fields:
    return [(":method", method), (":scheme", "http"), (":path", path), (":authority", "torpor"), *more]


def block(names_and_values: Fields) -> bytes:
    """A header block; each of its own encoder, which is valid since entries of the table count from the newest."""
    return hpack.Encoder().encode(names_and_values)


def head(stream: int, names_and_values: Fields, flags: int = END_HEADERS | END_STREAM) -> bytes:
    return frame(HEADERS, stream, block(names_and_values), flags)


def get(stream: int, path: str = LIVE) -> bytes:
    return head(stream, fields("GET", path))


def post(stream: int, *more: tuple[str, str], path: str = INFER) -> bytes:
    """The head of a request with a body."""
    return head(stream, fields("POST", path, *more), END_HEADERS)


def tensor(first: float) -> bytes:
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [first, 0.5]}
    return json.dumps({"inputs": [entry], "outputs": [{"name": "doubled"}]}).encode()


def infer(stream: int, first: float) -> bytes:
    return post(stream) + frame(DATA, stream, tensor(first), END_STREAM)


@dataclass
class Reply:
    """What came on a stream: a response, as much of it as came, or a reset."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    reset: int | None = None
    data_frames: int = 0

    def doubled(self) -> list[float]:
        assert self.status == 200, self
        return json.loads(self.body)["outputs"][0]["data"]


class Peer:
    """A connection on which the test writes its own frames; what comes is checked against the rules and kept.

    window: what the server may send on a stream; grant: on the connection, beyond the 65535 bytes of the beginning.
    """

    def __init__(self, server, window: int = 1 << 20, grant: int = 1 << 30, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(("127.0.0.1", server.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self.socket.makefile("rb")
        self._other = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)
        self.decoder = hpack.Decoder()
        self._block: tuple[int, int, bytes] | None = None
        self.window = window
        self._room = defaultdict(lambda: self.window, {0: 65535 + grant})
        self.hello = PREFACE + frame(SETTINGS, 0, setting(INITIAL_WINDOW_SIZE, window))
        self.hello += frame(WINDOW_UPDATE, 0, u32(grant)) if grant else b""
        self.settings: dict[int, int] | None = None
        self.acknowledged = 0
        self.pongs: list[bytes] = []
        self.sent: dict[int, int] = defaultdict(int)  # DATA, by stream; 0 is the connection
        self.credit: dict[int, int] = defaultdict(int)  # what WINDOW_UPDATE frames added up to
        self.replies: dict[int, Reply] = defaultdict(Reply)
        self.goaway: int | None = None
        self.last_stream = 0
        self.closed = False

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._other.close()
        self._file.close()
        self.socket.close()

    def greet(self) -> "Peer":
        """Exchange the first settings."""
        self.send(self.hello)
        self.read_until(lambda: self.settings is not None and self.acknowledged)
        return self

    def send(self, *pieces: bytes) -> None:
        self.socket.sendall(b"".join(pieces))

    def send_apart(self, pieces: Iterable[bytes]) -> None:
        """Send the pieces so that the server reads them one at a time."""
        for piece in pieces:
            self.socket.sendall(piece)
            self.settle()

    def send_anyway(self, *pieces: bytes, timeout_s: float = TIMEOUT_S) -> bool:
        """Send what the server may not want to read; whether it took all."""
        self.socket.settimeout(timeout_s)
        try:
            self.socket.sendall(b"".join(pieces))
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            return False
        finally:
            self.socket.settimeout(TIMEOUT_S)
        return True

    def settle(self) -> None:
        """Return when the server has read what was sent: a later request, on another connection, is answered."""
        self._other.request("GET", LIVE)
        assert self._other.getresponse().read() == ALIVE

    def allow(self, stream: int, size: int) -> None:
        """Let the server send more on a stream, or on the connection."""
        self._room[stream] += size
        self.send(frame(WINDOW_UPDATE, stream, u32(size)))

    def change_window(self, window: int) -> None:
        """Change the window of streams, those that are open included; returns when the server has taken note."""
        for stream in self.replies:
            self._room[stream] += window - self.window
        self.window = window
        acknowledged = self.acknowledged
        self.send(frame(SETTINGS, 0, setting(INITIAL_WINDOW_SIZE, window)))
        self.read_until(lambda: self.acknowledged > acknowledged)

    def ping(self) -> None:
        """Return when all has come that the server had to say to what was sent before."""
        pongs = len(self.pongs)
        self.send(frame(PING, 0, b"tell me."))
        self.read_until(lambda: len(self.pongs) > pongs)

    def answered(self) -> set[int]:
        """The streams that have their whole answer."""
        return {stream for stream, reply in self.replies.items() if reply.ended}

    def read_body(self, stream: int, size: int) -> None:
        """Read until so much of a response's body has come, and no more."""
        self.read_until(lambda: len(self.replies[stream].body) >= size)
        assert len(self.replies[stream].body) == size

    def hears(self, word: bytes) -> bool:
        """Whether the word comes before the end, among whatever."""
        last = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := self._file.read1(1 << 16):
                if word in last + piece:
                    return True
                last = piece[-len(word) :]
        self.closed = True
        return False

    def reply(self, stream: int) -> Reply:
        """The whole response on a stream."""
        reply = self.replies[stream]
        self.read_until(lambda: reply.ended or reply.reset is not None)
        assert reply.ended, f"the stream was reset: {reply.reset}"
        return reply

    def read_until(self, condition: Callable[[], object]) -> None:
        while not condition():
            assert not self.closed, f"the server closed the connection: {self.goaway}"
            self.read()

    def read(self) -> None:
        """Read one frame, or the end."""
        try:
            start = self._file.read(9)
            if not start:
                self.closed = True
                return
            got, length = Frame.parse_frame_header(memoryview(start))
            assert length <= 16384
            payload = self._file.read(length)
            assert len(payload) == length
        except ConnectionResetError:
            self.closed = True
            return
        got.parse_body(memoryview(payload))
        self._take(got)

    def _take(self, got: Frame) -> None:
        if self.settings is None:
            assert isinstance(got, SettingsFrame)
            assert "ACK" not in got.flags
        stream = got.stream_id
        assert (self._block is not None) == isinstance(got, ContinuationFrame)
        assert not isinstance(got, PushPromiseFrame)
        match got:
            case SettingsFrame() if "ACK" in got.flags:
                self.acknowledged += 1
            case SettingsFrame():
                self.settings = (self.settings or {}) | got.settings
                self.send_anyway(frame(SETTINGS, flags=ACK))
            case HeadersFrame():
                self._block = (stream, "END_STREAM" in got.flags, got.data)
            case ContinuationFrame():
                assert self._block[0] == stream
                self._block = (*self._block[:2], self._block[2] + got.data)
            case DataFrame():
                reply = self.replies[stream]
                assert reply.status
                assert not reply.ended
                reply.body += got.data
                reply.data_frames += 1
                reply.ended = "END_STREAM" in got.flags
                for window in (0, stream):
                    self._room[window] -= got.flow_controlled_length
                    assert not got.flow_controlled_length or self._room[window] >= 0
            case RstStreamFrame():
                self.replies[stream].reset = got.error_code
            case WindowUpdateFrame():
                self.credit[stream] += got.window_increment
            case GoAwayFrame():
                self.goaway, self.last_stream = got.error_code, got.last_stream_id
            case PingFrame():
                assert "ACK" in got.flags
                self.pongs.append(got.opaque_data)
        if isinstance(got, HeadersFrame | ContinuationFrame) and "END_HEADERS" in got.flags:
            self._take_block(*self._block)
            self._block = None

    def _take_block(self, stream: int, ended: bool, data: bytes) -> None:
        decoded = self.decoder.decode(data)
        names = [name for name, _ in decoded]
        assert len(set(names)) == len(names)
        assert not {name.lower() for name in names} & {"connection", "keep-alive", "transfer-encoding", "upgrade"}
        assert all(name == name.lower() for name in names)
        reply = self.replies[stream]
        assert not reply.ended
        if reply.status:
            assert ended
            reply.trailers = dict(decoded)
        else:
            assert names[0] == ":status"
            status = int(decoded[0][1])
            if status < 200:
                assert not ended
                return
            reply.status, reply.headers = status, dict(decoded[1:])
        reply.ended = ended


def refuses_connection(peer: Peer, *codes: ErrorCodes) -> None:
    """The server ends the connection; if it says why, with one of these codes."""
    answered = peer.answered()
    while not peer.closed:
        peer.read()
        assert peer.answered() == answered, peer.replies
    assert peer.goaway is None or peer.goaway in codes, peer.goaway


def refuses(peer: Peer, stream: int, *codes: ErrorCodes, answers: tuple[int, ...] = ()) -> None:
    """The server resets the stream with one of these codes, or answers so, and goes on; or it ends the connection."""
    reply = peer.replies[stream]
    while not peer.closed and reply.reset is None and not reply.ended and peer.goaway is None:
        peer.read()
    if reply.reset is not None or reply.ended:
        assert reply.reset in codes or reply.status in answers, reply
        peer.send(get(1001))
        assert peer.reply(1001).body == ALIVE
    else:
        refuses_connection(peer, *codes)


def resident_bytes(server) -> int:
    with open(f"/proc/{server.process.pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.fixture
def meet() -> Iterator[Callable[..., Peer]]:
    """Open connections, greeted; closed with the test."""
    with contextlib.ExitStack() as peers:
        yield lambda server, **options: peers.enter_context(Peer(server, **options)).greet()


@pytest.fixture(autouse=True)
def still_serves(marked) -> Iterator[None]:
    """After each of these tests the server answers, on a connection opened before and on a new one; nothing crashed."""
    logged = len(marked.log)
    with Peer(marked) as before:
        before.greet()
        yield
        with Peer(marked) as after:
            for peer in (before, after.greet()):
                peer.send(infer(1, 1))
                assert peer.reply(1).doubled() == [2.0, 1.0]
    assert "Traceback" not in "".join(marked.log[logged:])


# 3: the beginning


def test_the_server_begins_with_its_settings(meet, marked) -> None:
    """Then it acknowledges the caller's; a bound on streams and on headers is among its own."""
    peer = meet(marked)
    assert peer.acknowledged == 1
    assert 1 <= peer.settings[MAX_CONCURRENT_STREAMS] <= 1 << 16
    assert 1 << 14 <= peer.settings.get(MAX_FRAME_SIZE, 1 << 14) < 1 << 24
    assert peer.settings.get(ENABLE_PUSH, 0) == 0


def test_the_beginning_may_come_byte_by_byte(marked) -> None:
    """It is HTTP/2 as soon as it can be nothing else."""
    with Peer(marked) as peer:
        peer.send_apart(bytes([byte]) for byte in peer.hello)
        peer.send(get(1))
        assert peer.reply(1).body == ALIVE


@pytest.mark.parametrize(
    "start",
    [
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r",
        b"PRI * HTTP/2.0\r\n\r\nSM\n\r\n\r",
        b"PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n",
        b"PRI / HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\nHost: a\r\n\r\nSM\r\n\r\n",
    ],
)
def test_a_bad_preface_is_refused(marked, start: bytes) -> None:
    """The connection ends without an answer, or with an error of either version."""
    with Peer(marked) as peer:
        peer.send(start, frame(SETTINGS), get(1), b"\0" * 30)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := peer.socket.recv(1 << 16):
                answer += piece
    assert not answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 1"))
    assert ALIVE not in answer


@pytest.mark.parametrize(
    "first",
    [frame(PING, 0, b"x" * 8), frame(SETTINGS, flags=ACK), get(1), frame(0x16, 0, b"x"), frame(GOAWAY, 0, b"x" * 8)],
)
def test_the_caller_must_begin_with_settings(marked, first: bytes) -> None:
    """Any other first frame is no preface."""
    with Peer(marked) as peer:
        peer.send(PREFACE, first, frame(SETTINGS), get(3))
        refuses_connection(peer, PROTOCOL, SIZE)


# 4 to 6: frames


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(frame(0x16, 0, b"x" * 100), id="unknown type"),
        pytest.param(frame(0xFF, 7, b"", 0xFF), id="unknown type of an idle stream"),
        pytest.param(frame(0x10, 0, u32(1) + b"u=1"), id="priority update"),
        pytest.param(frame(0x0A, 1, b"\0\0"), id="alternative service"),
        pytest.param(frame(PING, 0, b"x" * 8, 0xFE), id="undefined flags"),
        pytest.param(frame(PING, 0, b"nobody's", ACK), id="acknowledgement of no ping"),
        pytest.param(frame(SETTINGS), id="empty settings"),
        pytest.param(frame(SETTINGS, flags=ACK), id="acknowledgement of no settings"),
        pytest.param(frame(SETTINGS, 0, setting(0xFF, 1) + setting(0, 1)), id="unknown settings"),
        pytest.param(frame(SETTINGS, 0, setting(ENABLE_PUSH, 0) + setting(ENABLE_PUSH, 1)), id="a setting twice"),
        pytest.param(frame(SETTINGS, 0, setting(INITIAL_WINDOW_SIZE, MOST)), id="largest window"),
        pytest.param(frame(SETTINGS, 0, setting(MAX_FRAME_SIZE, (1 << 24) - 1)), id="largest frames"),
        pytest.param(frame(SETTINGS, 0, setting(MAX_CONCURRENT_STREAMS, 0)), id="no streams of the server"),
        pytest.param(frame(SETTINGS, 0, setting(6, 100)), id="short header lists"),
        pytest.param(frame(PRIORITY, 3, u32(1) + b"\x10"), id="priority of an idle stream"),
        pytest.param(frame(PRIORITY, 4, u32(2) + b"\x10"), id="priority of a stream of the server"),
        pytest.param(frame(RST_STREAM | 0x20, 1, u32(8)), id="type that looks like another"),
        pytest.param(frame(WINDOW_UPDATE, 0, u32(1 << 31 | 1)), id="reserved bit of an increment"),
        pytest.param(frame(PING, 1 << 31, b"x" * 8), id="reserved bit of a stream"),
    ],
)
def test_what_means_nothing_is_ignored(meet, marked, frames: bytes) -> None:
    """Requests before and after it on the connection are answered."""
    peer = meet(marked)
    peer.send(get(1), frames, frames, infer(9, 2))
    assert peer.reply(1).body == ALIVE
    assert peer.reply(9).doubled() == [4.0, 1.0]


@pytest.mark.parametrize(
    ("frames", "codes"),
    [
        pytest.param(frame(DATA, 1, b"x"), [PROTOCOL, CLOSED], id="5.1 DATA of an idle stream"),
        pytest.param(frame(RST_STREAM, 1, u32(8)), [PROTOCOL], id="5.1 RST_STREAM of an idle stream"),
        pytest.param(frame(WINDOW_UPDATE, 1, u32(8)), [PROTOCOL], id="5.1 WINDOW_UPDATE of an idle stream"),
        pytest.param(frame(CONTINUATION, 1, block(fields()), 4), [PROTOCOL], id="5.1 CONTINUATION of an idle stream"),
        pytest.param(get(2), [PROTOCOL], id="5.1.1 even id"),
        pytest.param(post(5) + get(3), [PROTOCOL, CLOSED], id="5.1.1 decreasing id"),
        pytest.param(frame(DATA, 0, b"x"), [PROTOCOL], id="6.1 DATA of no stream"),
        pytest.param(post(1) + frame(DATA, 1, b"\x06xxxxx", PADDED), [PROTOCOL], id="6.1 padding as long as the payload"),
        pytest.param(post(1) + frame(DATA, 1, b"\xff", PADDED), [PROTOCOL], id="6.1 padding longer than the payload"),
        pytest.param(frame(HEADERS, 0, block(fields()), 5), [PROTOCOL], id="6.2 HEADERS of no stream"),
        pytest.param(frame(HEADERS, 1, b"\xff" + block(fields()), 5 | PADDED), [PROTOCOL], id="6.2 too much padding"),
        pytest.param(frame(HEADERS, 1, b"\x01", 5 | PADDED), [PROTOCOL], id="6.2 padding as long as the payload"),
        pytest.param(frame(HEADERS, 1, b"", 5 | PADDED), [PROTOCOL, SIZE], id="6.2 no length of padding"),
        pytest.param(frame(HEADERS, 1, b"\0\0", 5 | WITH_PRIORITY), [PROTOCOL, SIZE], id="6.2 half a priority"),
        pytest.param(
            frame(HEADERS, 1, block(fields()), 1) + frame(PRIORITY, 1, u32(0) + b"\0"), [PROTOCOL],
            id="6.2 PRIORITY in a header block",
        ),
        pytest.param(frame(HEADERS, 1, block(fields()), 1) + get(3), [PROTOCOL], id="6.2 HEADERS in a header block"),
        pytest.param(
            frame(HEADERS, 1, block(fields()), 1) + frame(HEADERS, 1, b"", 5), [PROTOCOL],
            id="6.2 HEADERS instead of CONTINUATION",
        ),
        pytest.param(
            frame(HEADERS, 1, block(fields()), 1) + frame(PING, 0, b"x" * 8), [PROTOCOL], id="6.2 PING in a header block"
        ),
        pytest.param(
            frame(HEADERS, 1, block(fields()), 1) + frame(DATA, 1, b"x"), [PROTOCOL], id="6.2 DATA in a header block"
        ),
        pytest.param(
            frame(HEADERS, 1, block(fields()), 1) + frame(SETTINGS), [PROTOCOL], id="6.2 SETTINGS in a header block"
        ),
        pytest.param(
            frame(HEADERS, 1, block(fields()), 1) + frame(0x16, 1), [PROTOCOL], id="5.5 unknown frame in a header block"
        ),
        pytest.param(frame(PRIORITY, 0, u32(1) + b"\0"), [PROTOCOL], id="6.3 PRIORITY of no stream"),
        pytest.param(frame(RST_STREAM, 0, u32(8)), [PROTOCOL], id="6.4 RST_STREAM of no stream"),
        pytest.param(post(1) + frame(RST_STREAM, 1, b"\0\0\0"), [SIZE], id="6.4 short RST_STREAM"),
        pytest.param(post(1) + frame(RST_STREAM, 1, u32(8) + b"\0"), [SIZE], id="6.4 long RST_STREAM"),
        pytest.param(frame(SETTINGS, 0, setting(0xFF, 1), ACK), [SIZE], id="6.5 acknowledgement with settings"),
        pytest.param(frame(SETTINGS, 1), [PROTOCOL], id="6.5 SETTINGS of a stream"),
        pytest.param(frame(SETTINGS, 0, b"\0" * 5), [SIZE], id="6.5 short SETTINGS"),
        pytest.param(frame(SETTINGS, 0, b"\0" * 7), [SIZE], id="6.5 long SETTINGS"),
        pytest.param(frame(SETTINGS, 0, setting(ENABLE_PUSH, 2)), [PROTOCOL], id="6.5.2 ENABLE_PUSH of 2"),
        pytest.param(
            frame(SETTINGS, 0, setting(INITIAL_WINDOW_SIZE, 1 << 31)), [FLOW], id="6.5.2 window of 2 GiB"
        ),
        pytest.param(frame(SETTINGS, 0, setting(MAX_FRAME_SIZE, (1 << 14) - 1)), [PROTOCOL], id="6.5.2 small frames"),
        pytest.param(frame(SETTINGS, 0, setting(MAX_FRAME_SIZE, 1 << 24)), [PROTOCOL], id="6.5.2 large frames"),
        pytest.param(
            frame(SETTINGS, 0, setting(0xFF, 1) + setting(ENABLE_PUSH, 7)), [PROTOCOL], id="6.5.2 bad second setting"
        ),
        pytest.param(frame(PUSH_PROMISE, 1, u32(2) + block(fields()), 4), [PROTOCOL], id="6.6 PUSH_PROMISE"),
        pytest.param(
            post(1) + frame(PUSH_PROMISE, 1, u32(2) + block(fields()), 4), [PROTOCOL],
            id="6.6 PUSH_PROMISE of an open stream",
        ),
        pytest.param(frame(PING, 1, b"x" * 8), [PROTOCOL], id="6.7 PING of a stream"),
        pytest.param(frame(PING, 0, b"x" * 7), [SIZE], id="6.7 short PING"),
        pytest.param(frame(PING, 0, b"x" * 9), [SIZE], id="6.7 long PING"),
        pytest.param(frame(PING, 0, b"", ACK), [SIZE], id="6.7 empty acknowledgement"),
        pytest.param(frame(GOAWAY, 1, b"\0" * 8), [PROTOCOL], id="6.8 GOAWAY of a stream"),
        pytest.param(frame(GOAWAY, 0, b"\0" * 7), [SIZE], id="6.8 short GOAWAY"),
        pytest.param(frame(WINDOW_UPDATE, 0, u32(0)), [PROTOCOL], id="6.9 connection's window by 0"),
        pytest.param(frame(WINDOW_UPDATE, 0, b"\0\0\1"), [SIZE], id="6.9 short WINDOW_UPDATE"),
        pytest.param(frame(WINDOW_UPDATE, 0, u32(1) + b"\0"), [SIZE], id="6.9 long WINDOW_UPDATE"),
        pytest.param(post(1) + frame(WINDOW_UPDATE, 1, b"\0\0\1"), [SIZE], id="6.9 short WINDOW_UPDATE of a stream"),
        pytest.param(frame(WINDOW_UPDATE, 0, u32(MOST)), [FLOW], id="6.9.1 connection's window over 2 GiB"),
        pytest.param(
            post(1) + frame(WINDOW_UPDATE, 1, u32(MOST - (1 << 20)))
            + frame(SETTINGS, 0, setting(INITIAL_WINDOW_SIZE, (1 << 20) + 1)),
            [FLOW], id="6.9.2 stream's window over 2 GiB by a setting",
        ),
        pytest.param(frame(CONTINUATION, 0, block(fields()), 4), [PROTOCOL], id="6.10 CONTINUATION of no stream"),
        pytest.param(
            post(1) + frame(CONTINUATION, 1, block([("a", "b")]), 4), [PROTOCOL],
            id="6.10 CONTINUATION after the end of a header block",
        ),
        pytest.param(
            frame(HEADERS, 1, block(fields("POST", INFER))) + frame(CONTINUATION, 1, b"", 4)
            + frame(CONTINUATION, 1, block([("a", "b")]), 4),
            [PROTOCOL], id="6.10 CONTINUATION after the last one",
        ),
        pytest.param(
            frame(HEADERS, 1, block(fields("POST", INFER))) + frame(CONTINUATION, 3, block([("a", "b")]), 4),
            [PROTOCOL], id="6.10 CONTINUATION of another stream",
        ),
        pytest.param(
            post(1) + frame(DATA, 1, b"{") + frame(CONTINUATION, 1, block([("a", "b")]), 4), [PROTOCOL],
            id="6.10 CONTINUATION after DATA",
        ),
    ],
)  # fmt: skip
def test_frames_that_break_the_connection(meet, marked, frames: bytes, codes: list[ErrorCodes]) -> None:
    """GOAWAY with the right code and the end, or just the end; requests behind it are not answered."""
    peer = meet(marked)
    peer.send(frames)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        peer.send(get(1001))
    refuses_connection(peer, *codes)


def post_of(more: int) -> bytes:
    """The head of a request that says its body is so many bytes longer than it is."""
    return post(1, ("content-length", str(len(tensor(1)) + more)))


ALL = frame(DATA, 1, tensor(1))


@pytest.mark.parametrize(
    ("frames", "codes"),
    [
        pytest.param(post(3) + frame(DATA, 1, b"x"), [PROTOCOL, CLOSED], id="5.1.1 DATA of a skipped id"),
        pytest.param(post(1) + frame(DATA, 1, b"", PADDED), [PROTOCOL, SIZE], id="6.1 no length of padding"),
        pytest.param(post(1) + frame(WINDOW_UPDATE, 1, u32(0)), [PROTOCOL], id="6.9 window by 0"),
        pytest.param(post(1) + frame(WINDOW_UPDATE, 1, u32(MOST)), [FLOW], id="6.9.1 window over 2 GiB"),
        pytest.param(post(1) + frame(PRIORITY, 1, b"\0\0\0\0"), [SIZE], id="6.3 short PRIORITY"),
        pytest.param(
            post(1) + ALL + head(1, [("x-sum", "1")], END_HEADERS), [PROTOCOL, CLOSED], id="8.1 trailers without an end"
        ),
        pytest.param(
            post(1) + head(1, [("x-sum", "1")], END_HEADERS) + frame(DATA, 1, tensor(1), 1), [PROTOCOL, CLOSED],
            id="8.1 DATA after trailers",
        ),
        pytest.param(post(1) + ALL + head(1, [(":method", "POST")]), [PROTOCOL], id="8.1 pseudo header in trailers"),
        pytest.param(post(1) + ALL + head(1, [("X-Sum", "1")]), [PROTOCOL], id="8.2 upper case in trailers"),
        pytest.param(post(1) + ALL + head(1, [("connection", "te")]), [PROTOCOL], id="8.2.2 connection in trailers"),
        pytest.param(post_of(+1) + frame(DATA, 1, tensor(1), 1), [PROTOCOL], id="8.1.1 body shorter than its length"),
        pytest.param(post_of(-1) + frame(DATA, 1, tensor(1), 1), [PROTOCOL], id="8.1.1 body longer than its length"),
        pytest.param(post_of(+1) + ALL + frame(DATA, 1, b"", 1), [PROTOCOL], id="8.1.1 short body in two frames"),
        pytest.param(post_of(-1) + ALL + frame(DATA, 1, b"", 1), [PROTOCOL], id="8.1.1 long body in two frames"),
        pytest.param(post_of(0) + ALL + frame(DATA, 1, b" ", 1), [PROTOCOL], id="8.1.1 one byte too much"),
        pytest.param(post_of(+1) + ALL + head(1, [("x-sum", "1")]), [PROTOCOL], id="8.1.1 short body with trailers"),
        pytest.param(
            post_of(+1) + frame(DATA, 1, b"\0" + tensor(1), PADDED | END_STREAM), [PROTOCOL],
            id="8.1.1 short body with padding",
        ),
    ],
)  # fmt: skip
def test_frames_that_break_their_stream(meet, marked, frames: bytes, codes: list[ErrorCodes]) -> None:
    """The stream is reset, or answered 400 if it is the request that is malformed; others go on."""
    peer = meet(marked)
    peer.send(frames)
    refuses(peer, 1, *codes, answers=(400,))


@pytest.mark.parametrize(
    ("frames", "codes"),
    [
        pytest.param(frame(DATA, 1, b"x", 1), [CLOSED], id="DATA"),
        pytest.param(head(1, [("x-sum", "1")]), [CLOSED, PROTOCOL], id="HEADERS"),
        pytest.param(frame(CONTINUATION, 1, b"", 4), [CLOSED, PROTOCOL], id="CONTINUATION"),
    ],
)
def test_who_has_ended_its_half_says_no_more(meet, marked, gated, frames: bytes, codes: list[ErrorCodes]) -> None:
    """5.1, half-closed (remote): after END_STREAM, while the answer is awaited."""
    peer = meet(marked)
    with gated(marked) as gate:
        peer.send(infer(1, 1))
        gate.wait_for_rows(1)
        peer.send(frames)
        refuses(peer, 1, *codes)


@pytest.mark.parametrize("end", [b"", frame(RST_STREAM, 1, u32(8))], ids=["answered", "reset"])
@pytest.mark.parametrize(
    ("frames", "must_refuse"),
    [
        pytest.param(frame(DATA, 1, b"x"), False, id="DATA"),
        pytest.param(frame(DATA, 1, b"", 1), False, id="empty DATA"),
        pytest.param(get(1), True, id="HEADERS"),
        pytest.param(frame(CONTINUATION, 1, block(fields()), 5), True, id="CONTINUATION"),
        pytest.param(frame(RST_STREAM, 1, u32(8)), False, id="RST_STREAM"),
        pytest.param(frame(WINDOW_UPDATE, 1, u32(8)), False, id="WINDOW_UPDATE"),
        pytest.param(frame(WINDOW_UPDATE, 1, u32(MOST)), False, id="WINDOW_UPDATE over 2 GiB"),
        pytest.param(frame(PRIORITY, 1, u32(0) + b"\0"), False, id="PRIORITY"),
    ],
)
def test_frames_of_closed_streams(meet, marked, end: bytes, frames: bytes, must_refuse: bool) -> None:
    """5.1, closed: an id is not used twice; what may have been under way is ignored, or an error where that is allowed."""
    peer = meet(marked)
    peer.send(get(1))
    peer.reply(1)
    peer.send(end, frames, get(3))
    answered = peer.replies[3]
    while not peer.closed and not answered.ended:
        peer.read()
    assert peer.goaway in (None, CLOSED, PROTOCOL)
    if answered.ended:
        assert answered.body == ALIVE
        assert not must_refuse or peer.replies[1].reset in (CLOSED, PROTOCOL)
    elif frames[3] in (PRIORITY, WINDOW_UPDATE, RST_STREAM) and not end:
        pytest.fail("the caller may have sent it before it saw the end")


@pytest.mark.parametrize("kind", [DATA, HEADERS, SETTINGS, PING, 0x16])
def test_frames_are_as_large_as_allowed(meet, marked, kind: int) -> None:
    """4.2: one byte over SETTINGS_MAX_FRAME_SIZE is too large, and said to be so."""
    peer = meet(marked)
    size = peer.settings.get(MAX_FRAME_SIZE, 1 << 14) + 1
    if kind == DATA:
        peer.send(post(1))
    payload = block(fields()).ljust(size, b"\0")
    stream = 1 if kind in (DATA, HEADERS) else 0
    peer.send_anyway(frame(kind, stream, payload), get(1001))
    if kind in (DATA, 0x16):
        refuses(peer, 1, SIZE)
    else:
        refuses_connection(peer, SIZE)


def test_a_frame_of_16_kib_is_taken(meet, marked) -> None:
    """Every server takes this much, in DATA and in a header block."""
    peer = meet(marked)
    peer.send(post(1), frame(DATA, 1, tensor(3).ljust(1 << 14), END_STREAM))
    assert peer.reply(1).doubled() == [6.0, 1.0]
    encode = hpack.Encoder().encode
    overhead = len(hpack.Encoder().encode([*fields(), ("cookie", "~" * 16000)], huffman=False)) - 16000
    data = encode([*fields(), ("cookie", "~" * ((1 << 14) - overhead))], huffman=False)
    assert len(data) == 1 << 14
    peer.send(frame(HEADERS, 3, data, END_HEADERS | END_STREAM))
    assert peer.reply(3).body == ALIVE


BAD_BLOCKS = {
    "index 0": b"\x80",
    "index beyond the table": b"\xfe",
    "index beyond all tables": b"\xff\xff\xff\xff\xff\x07",
    "integer without end": b"\xff" * 30,
    "cut integer": b"\xff\x80",
    "name beyond the table": b"\x7f\xff\x01\x01a",
    "cut literal": b"\x40\x05abc",
    "cut length": b"\x40",
    "literal without a value": b"\x40\x01a",
    "larger table than allowed": b"\x3f" + b"\xff" * 3 + b"\x0f",
    "Huffman code cut": b"\x40\x01a\x81\xff",
    "Huffman padding of zeros": b"\x40\x01a\x81\x18",
    "Huffman padding of 8 bits": b"\x40\x01a\x82\x1f\xff",
    "Huffman end of string": b"\x40\x01a\x84\xff\xff\xff\xff",
}


@pytest.mark.parametrize("bad", BAD_BLOCKS.values(), ids=BAD_BLOCKS)
@pytest.mark.parametrize("place", ["request", "trailers", "continuation"])
def test_a_header_block_that_cannot_be_decoded_breaks_the_connection(meet, marked, bad: bytes, place: str) -> None:
    """4.3: nothing behind it can be decoded either."""
    peer = meet(marked)
    if place == "request":
        peer.send(frame(HEADERS, 1, block(fields()) + bad, 5), get(1001))
    elif place == "trailers":
        peer.send(post(1), frame(HEADERS, 1, bad, 5), get(1001))
    else:
        peer.send(frame(HEADERS, 1, block(fields()), 1), frame(CONTINUATION, 1, bad, 4), get(1001))
    refuses_connection(peer, COMPRESSION)


def test_a_change_of_the_table_stands_at_the_beginning(meet, marked) -> None:
    """RFC 7541, 4.2: behind a field it is an error, before the first it is obeyed."""
    peer = meet(marked)
    peer.send(frame(HEADERS, 1, b"\x20\x3f\xe1\x1f" + block(fields()), 5))
    assert peer.reply(1).body == ALIVE
    peer.send(frame(HEADERS, 3, block(fields()) + b"\x20", 5), get(1001))
    while not peer.closed:
        peer.read()
    assert peer.goaway in (None, COMPRESSION)
    assert not peer.replies[3].ended


@pytest.mark.parametrize("size", [0, 100, 4096, 1 << 16, (1 << 32) - 1])
def test_the_server_obeys_the_size_of_the_callers_table(meet, marked, size: int) -> None:
    """A smaller one than before is confirmed at the next block, as nghttp2's clients insist on."""
    peer = meet(marked)
    peer.send(get(1))
    peer.reply(1)
    acknowledged = peer.acknowledged
    peer.send(frame(SETTINGS, 0, setting(HEADER_TABLE_SIZE, size)))
    peer.read_until(lambda: peer.acknowledged > acknowledged)
    peer.decoder.max_allowed_table_size = size
    for stream in (3, 5, 7):
        peer.send(infer(stream, 1))
        assert peer.reply(stream).doubled() == [2.0, 1.0]


def test_the_table_of_the_caller_is_kept(meet, marked) -> None:
    """Fields that were sent once are named by their index afterwards, also those of requests that were refused."""
    peer = meet(marked)
    encoder = hpack.Encoder()
    seen: list[int] = []
    for stream in range(1, 41, 2):
        names_and_values = fields("GET", f"/none/{stream % 8}", ("x-token", "a" * 30), ("x-number", str(stream % 6)))
        if stream % 8 == 3:
            names_and_values.append(("Connection", "close"))
        data = encoder.encode(names_and_values)
        seen.append(len(data))
        peer.send(frame(HEADERS, stream, data, 5))
        if stream % 8 != 3:
            assert f"/none/{stream % 8}" in peer.reply(stream).body.decode()
    assert min(seen) < 12


# 5.1.2: how many streams


def test_streams_beyond_the_limit_are_refused(meet, marked) -> None:
    """REFUSED_STREAM, which callers may send again; those within the limit go on, and each end makes room for one."""
    peer = meet(marked)
    limit = peer.settings[MAX_CONCURRENT_STREAMS]
    streams = range(1, 2 * limit, 2)
    for at in range(0, limit, 100):
        peer.send(*(post(stream) for stream in streams[at : at + 100]))
    over = streams[-1] + 2
    peer.send(get(over))
    peer.read_until(lambda: peer.replies[over].reset is not None)
    assert peer.replies[over].reset in (REFUSED, PROTOCOL)
    assert not any(peer.replies[stream].reset for stream in streams)
    peer.send(frame(DATA, 1, tensor(1), END_STREAM))
    assert peer.reply(1).doubled() == [2.0, 1.0]
    peer.send(get(over + 2))
    assert peer.reply(over + 2).body == ALIVE
    peer.send(frame(RST_STREAM, 3, u32(8)), get(over + 4), get(over + 6))
    assert peer.reply(over + 4).body == ALIVE


# 6.7: pings and settings are acknowledged


def test_pings_are_answered_with_their_own_data(meet, marked) -> None:
    """In order."""
    peer = meet(marked)
    data = [bytes([number]) * 8 for number in range(200)]
    peer.send(*(frame(PING, 0, ping) for ping in data))
    peer.read_until(lambda: len(peer.pongs) == len(data))
    assert peer.pongs == data


def test_every_settings_frame_is_acknowledged(meet, marked) -> None:
    """Also an empty one."""
    peer = meet(marked)
    peer.send(*(frame(SETTINGS, 0, setting(ENABLE_PUSH, 0) * (number % 3)) for number in range(10)))
    peer.read_until(lambda: peer.acknowledged == 11)
    peer.ping()
    assert peer.acknowledged == 11


# 8: requests

GOOD_REQUESTS = {
    "without body": get(1),
    "an empty body": head(1, fields(), END_HEADERS) + frame(DATA, 1, b"", END_STREAM),
    "padded": frame(HEADERS, 1, b"\x05" + block(fields()) + b"\0" * 5, 5 | PADDED),
    "padding of 0 bytes": frame(HEADERS, 1, b"\0" + block(fields()), 5 | PADDED),
    "with a priority": frame(HEADERS, 1, u32(1 << 31) + b"\xff" + block(fields()), 5 | WITH_PRIORITY),
    "padded with a priority": frame(HEADERS, 1, b"\1" + u32(0) + b"\0" + block(fields()) + b"\0", 5 | PADDED | WITH_PRIORITY),
    "undefined flags": head(1, fields(), END_HEADERS | END_STREAM | 0xD2),
    "in two frames": frame(HEADERS, 1, block(fields())[:5], 1) + frame(CONTINUATION, 1, block(fields())[5:], 4),
    "byte by byte": frame(HEADERS, 1, b"", 1)
    + b"".join(frame(CONTINUATION, 1, bytes([byte])) for byte in block(fields()))
    + frame(CONTINUATION, 1, b"", 4),
    "without Huffman's code": frame(HEADERS, 1, hpack.Encoder().encode(fields(), huffman=False), 5),
    "te: trailers": head(1, fields("GET", LIVE, ("te", "trailers"))),
    "length of 0": head(1, fields("GET", LIVE, ("content-length", "0"))),
    "host too": head(1, fields("GET", LIVE, ("host", "torpor"))),
    "host instead": head(1, [*fields()[:3], ("host", "torpor")]),
    "bytes beyond ASCII": head(1, fields("GET", LIVE, ("x-note", b"caf\xc3\xa9 \xff"))),
    "cookies in crumbs": head(1, fields("GET", LIVE, ("cookie", "a=1"), ("cookie", "b=2"))),
    "an empty value": head(1, fields("GET", LIVE, ("x-note", ""))),
    "pseudo headers in another order": head(1, fields()[::-1]),
    "a query": get(1, LIVE + "?a=http://b/c"),
    "https": head(1, [(name, value.replace("http", "https")) for name, value in fields()]),
    "a hundred headers": head(1, fields("GET", LIVE, *((f"x-{number}", "a" * 100) for number in range(100)))),
}  # fmt: skip


@pytest.mark.parametrize("frames", GOOD_REQUESTS.values(), ids=GOOD_REQUESTS)
def test_requests_in_all_forms(meet, marked, frames: bytes) -> None:
    """However it is put into frames, it is one request."""
    peer = meet(marked)
    peer.send(frames)
    assert peer.reply(1).body == ALIVE
    peer.send(get(3))
    assert peer.reply(3).body == ALIVE


GOOD_BODIES = {
    "in one frame": frame(DATA, 1, tensor(5), END_STREAM),
    "byte by byte": b"".join(frame(DATA, 1, bytes([byte])) for byte in tensor(5)) + frame(DATA, 1, b"", END_STREAM),
    "padded": frame(DATA, 1, b"\xff" + tensor(5) + b"\0" * 255, END_STREAM | PADDED),
    "padding of 0 bytes": frame(DATA, 1, b"\0" + tensor(5), END_STREAM | PADDED),
    "only padding at the end": frame(DATA, 1, tensor(5)) + frame(DATA, 1, b"\3\0\0\0", END_STREAM | PADDED),
    "undefined flags": frame(DATA, 1, tensor(5), END_STREAM | 0xF6),
    "with trailers": frame(DATA, 1, tensor(5)) + head(1, [("x-sum", "1")]),
    "with trailers in two frames": frame(DATA, 1, tensor(5))
    + frame(HEADERS, 1, block([("x-sum", "1")])[:2], END_STREAM)
    + frame(CONTINUATION, 1, block([("x-sum", "1")])[2:], END_HEADERS),
    "with empty trailers": frame(DATA, 1, tensor(5)) + head(1, []),
    "between other frames": frame(PING, 0, b"x" * 8) + frame(DATA, 1, tensor(5)[:9]) + get(3) + frame(SETTINGS)
    + frame(0x16, 1, b"x") + frame(PRIORITY, 1, u32(0) + b"\0") + frame(DATA, 1, tensor(5)[9:], END_STREAM),
}  # fmt: skip


@pytest.mark.parametrize("more", [[], [("content-length", str(len(tensor(5))))]], ids=["no length", "length"])
@pytest.mark.parametrize("frames", GOOD_BODIES.values(), ids=GOOD_BODIES)
def test_bodies_in_all_forms(meet, marked, frames: bytes, more: Fields) -> None:
    """Padding is no part of it and doesn't count in its length, trailers are passed over."""
    peer = meet(marked)
    peer.send(post(1, *more), frames)
    assert peer.reply(1).doubled() == [10.0, 1.0]


@pytest.mark.parametrize("path", [LIVE, "/v2/models/marked", "/none", INFER])
@pytest.mark.parametrize("ended", [True, False], ids=["HEADERS", "DATA"])
def test_head_is_answered_without_data(meet, marked, path: str, ended: bool) -> None:
    """The headers are those of GET; no byte follows them."""
    peer = meet(marked)
    end = END_STREAM if ended else 0
    peer.send(head(1, fields("HEAD", path), END_HEADERS | end), b"" if ended else frame(DATA, 1, b"", END_STREAM))
    peer.send(get(3, path))
    answer, other = peer.reply(1), peer.reply(3)
    assert (answer.status, answer.body) == (other.status, b"")
    if answer.status == 200:
        assert answer.headers["content-length"] == other.headers["content-length"] == str(len(other.body))


def changed(name: str, *values: str) -> Fields:
    """The fields of a GET with other values of a pseudo header, or without it."""
    names_and_values = []
    for known, value in fields():
        names_and_values += [(name, value) for value in values] if known == name else [(known, value)]
    return names_and_values


@pytest.mark.parametrize(
    "names_and_values",
    [
        *(
            pytest.param(fields("GET", LIVE, (name, "1")), id=f"name {name!r}")
            for name in (
                "X-Note", "x-Note", b"x note", b"x\0note", b"x\nnote", b"x\rnote", b"x\x7fnote", b"x\xe9note", b" x",
                b"x ", b"x:note", b"", b":",
            )
        ),
        *(
            pytest.param(fields("GET", LIVE, ("x-note", value)), id=f"value {value!r}")
            for value in (b"a\0b", b"a\nb", b"a\rb", b"a\r\nb: c", b"a\n", b"\0", b" a", b"a ", b"\ta", b"a\t", b" ")
        ),
        pytest.param([*fields()[:3], ("x-note", "1"), fields()[3]], id="pseudo header behind another"),
        pytest.param([("x-note", "1"), *fields()], id="pseudo headers at the end"),
        pytest.param([*fields(), (":other", "1")], id="unknown pseudo header"),
        pytest.param([*fields(), (":status", "200")], id="pseudo header of a response"),
        pytest.param([*fields(), (":protocol", "websocket")], id="pseudo header of RFC 8441"),
        *(
            pytest.param(changed(name), id=f"no {name}") for name in (":method", ":scheme", ":path")
        ),
        *(
            pytest.param([*fields(), (name, value)], id=f"two {name}") for name, value in fields()
        ),
        pytest.param(changed(":path", LIVE, "/none"), id="two different :path"),
        pytest.param(changed(":path", ""), id="empty :path"),
        pytest.param(changed(":path", "v2/health/live"), id="relative :path"),
        pytest.param(changed(":path", "/a\r\nb: c"), id="line end in :path"),
        pytest.param(changed(":method", ""), id="empty :method"),
        pytest.param(changed(":method", "GET /x HTTP/1.1\r\na:"), id="request line in :method"),
        pytest.param([], id="no headers"),
        *(
            pytest.param(fields("GET", LIVE, (name, value)), id=f"{name}: {value}")
            for name, value in (
                ("connection", "close"), ("connection", "te"), ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"), ("transfer-encoding", "chunked"), ("upgrade", "h2c"), ("te", "gzip"),
                ("te", "trailers, gzip"), ("content-length", "5"), ("content-length", "x"), ("content-length", "-1"),
                ("content-length", "+0"), ("content-length", ""), ("content-length", "9" * 30),
            )
        ),
        pytest.param(fields("GET", LIVE, ("content-length", "0"), ("content-length", "5")), id="two lengths"),
    ],
)  # fmt: skip
def test_malformed_requests_are_refused(meet, marked, names_and_values: Fields) -> None:
    """8.1 to 8.3: a reset with PROTOCOL_ERROR or an answer 400; other streams go on."""
    peer = meet(marked)
    peer.send(head(1, names_and_values))
    refuses(peer, 1, PROTOCOL, answers=(400,))


def test_a_malformed_request_is_refused_before_its_body(meet, marked) -> None:
    """At its head, also if a body is to follow; what comes of it then harms nobody."""
    peer = meet(marked)
    peer.send(post(1, ("connection", "close")))
    refuses(peer, 1, PROTOCOL, answers=(400,))
    if not peer.closed:
        peer.send(frame(DATA, 1, tensor(1), END_STREAM), get(1003))
        while not peer.closed and not peer.replies[1003].ended:
            peer.read()
        assert peer.goaway in (None, CLOSED)


ODD_REQUESTS = {
    "CONNECT": ([(":method", "CONNECT"), (":authority", "torpor:80")], (400, 404, 405, 501)),
    "CONNECT of RFC 8441": ([*fields("CONNECT"), (":protocol", "websocket")], (400, 404, 405, 426, 501)),
    "CONNECT with a path": (fields("CONNECT"), (400, 404, 405, 501)),
    "OPTIONS *": (fields("OPTIONS", "*"), (200, 204, 400, 404, 405, 501)),
    "GET *": (fields("GET", "*"), (400, 404)),
    "space in :path": (fields("GET", "/a b"), (400, 404)),
    "space in :method": (fields("G T"), (400, 405, 501)),
    "unknown method": (fields("BREW"), (400, 405, 501)),
    "method in lower case": (fields("get"), (400, 405, 501)),
    "long method": (fields("M" * 300), (400, 405, 501)),
    "another scheme": (changed(":scheme", "ftp"), (200, 400, 404)),
    "no authority": (changed(":authority"), (200, 400)),
    "empty authority": (changed(":authority", ""), (200, 400)),
    "another host": (fields("GET", LIVE, ("host", "other")), (200, 400)),
    "two hosts": (fields("GET", LIVE, ("host", "torpor"), ("host", "torpor")), (200, 400)),
}


@pytest.mark.parametrize(("names_and_values", "statuses"), ODD_REQUESTS.values(), ids=ODD_REQUESTS)
def test_odd_requests_get_an_answer_or_a_reset(meet, marked, names_and_values: Fields, statuses: tuple[int]) -> None:
    """None opens a tunnel, and the connection goes on."""
    peer = meet(marked)
    peer.send(head(1, names_and_values))
    refuses(peer, 1, PROTOCOL, REFUSED, ErrorCodes.CONNECT_ERROR, answers=statuses)


# Many streams


def test_streams_are_answered_independently(meet, marked, gated) -> None:
    """Readings overtake inferences that wait, a stream that was begun first may end last."""
    peer = meet(marked)
    with gated(marked) as gate:
        peer.send(post(1), *(infer(stream, stream) for stream in range(3, 19, 2)), get(19), get(21, "/none"))
        assert peer.reply(19).body == ALIVE
        assert peer.reply(21).status == 404
        gate.wait_for_rows(8)
        assert not any(peer.replies[stream].status for stream in range(1, 19, 2))
    for stream in range(17, 1, -2):
        assert peer.reply(stream).doubled() == [2.0 * stream, 1.0]
    peer.send(frame(DATA, 1, tensor(1), END_STREAM))
    assert peer.reply(1).doubled() == [2.0, 1.0]


def test_a_thousand_streams_one_after_the_other(meet, marked) -> None:
    """What a stream took is given back: a connection lasts, with bodies and with requests that are refused early."""
    peer = meet(marked)
    for stream in range(1, 2001, 8):
        peer.send(get(stream), infer(stream + 2, 1), get(stream + 4, "/none"))
        peer.send(post(stream + 6, path="/none"), frame(DATA, stream + 6, b"x" * 5000, END_STREAM))
        replies = [peer.reply(stream + number) for number in (0, 2, 4)]
        assert [reply.status for reply in replies] == [200, 200, 404]
        late = peer.replies[stream + 6]
        peer.read_until(lambda late=late: late.ended or late.reset is not None)
        assert late.status == 404


def test_who_resets_its_waiting_request_takes_it_along(meet, marked, gated) -> None:
    """Its place in the queue is free at once; its neighbours on the connection get their answers."""
    peer = meet(marked)
    with gated(marked) as gate:
        peer.send(*(infer(stream, stream) for stream in (1, 3, 5, 7)))
        gate.wait_for_rows(4)
        peer.send(frame(RST_STREAM, 3, u32(8)), frame(RST_STREAM, 5, u32(0xFFFF)))
        gate.wait_for_rows(2)
    assert peer.reply(1).doubled() == [2.0, 1.0]
    assert peer.reply(7).doubled() == [14.0, 1.0]
    assert not peer.replies[3].status
    assert not peer.replies[5].status


@pytest.mark.parametrize("way", ["close", "reset"])
def test_who_leaves_takes_its_waiting_requests_along(meet, marked, gated, way: str) -> None:
    """The end of a connection is the end of all its streams."""
    peer, other = meet(marked), meet(marked)
    with gated(marked) as gate:
        peer.send(*(infer(stream, stream) for stream in (1, 3, 5, 7)))
        gate.wait_for_rows(4)
        other.send(infer(1, 1))
        gate.wait_for_rows(5)
        if way == "reset":
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.__exit__()
        gate.wait_for_rows(1)
    assert other.reply(1).doubled() == [2.0, 1.0]


@pytest.mark.parametrize("code", [0, 2, 0xDEAD], ids=["NO_ERROR", "INTERNAL_ERROR", "unknown"])
def test_goaway_of_the_caller_lets_its_streams_end(meet, marked, gated, code: int) -> None:
    """Without an error at least: it only says that it wants no pushes. With one, the server may hang up."""
    peer = meet(marked)
    with gated(marked) as gate:
        peer.send(infer(1, 4))
        gate.wait_for_rows(1)
        peer.send(frame(GOAWAY, 0, u32(0) + u32(code) + b"because"))
        peer.settle()
    reply = peer.replies[1]
    while not reply.ended and not (code and peer.closed):
        assert not peer.closed
        peer.read()
    assert not reply.ended or reply.doubled() == [8.0, 1.0]


# 6.9: flow control


@pytest.fixture
def echo_request(binary_request) -> tuple[bytes, Callable[[int], bytes]]:
    """300 kB of tensor and a function that asks on a stream to have them back."""
    values = np.arange(37_500, dtype="<f8").reshape(1, -1)
    body, headers = binary_request({"x": values})

    def make(stream: int) -> bytes:
        start = post(stream, *headers.items(), path="/v2/models/echo/infer")
        pieces = [frame(DATA, stream, body[at : at + 16384]) for at in range(0, len(body), 16384)]
        return b"".join([start, *pieces, frame(DATA, stream, b"", END_STREAM)])

    return values.tobytes(), make


def split_frames(frames: bytes) -> Iterator[bytes]:
    while frames:
        size = 9 + int.from_bytes(frames[:3], "big")
        yield frames[:size]
        frames = frames[size:]


def send_within_windows(peer: Peer, frames: bytes) -> None:
    """Send DATA as the server's windows allow; all DATA of the connection must go this way."""
    for piece in split_frames(frames):
        stream = int.from_bytes(piece[5:9], "big")
        if piece[3] == DATA:
            first = {0: 65535, stream: peer.settings.get(INITIAL_WINDOW_SIZE, 65535)}
            size = len(piece) - 9
            peer.read_until(lambda f=first, n=size: all(f[w] + peer.credit[w] >= peer.sent[w] + n for w in f))
            for window in first:
                peer.sent[window] += size
        peer.send(piece)


@pytest.mark.parametrize("narrow", ["stream", "connection"])
def test_answers_wait_for_the_window(meet, echo, echo_request, narrow: str) -> None:
    """No byte more than allowed comes, exactly the rest after WINDOW_UPDATE; other callers don't wait."""
    data, make = echo_request
    peer = meet(echo, window=20_000) if narrow == "stream" else meet(echo, grant=0)
    window, room = (1, 20_000) if narrow == "stream" else (0, 65_535)
    send_within_windows(peer, make(1))
    reply = peer.replies[1]
    peer.read_body(1, room)
    for more in (1, 10, 100_000):
        peer.ping()
        assert len(reply.body) == room
        peer.allow(window, more)
        room += more
        peer.read_body(1, room)
    other = meet(echo)
    other.send(get(1))
    assert other.reply(1).body == ALIVE
    peer.allow(window, 1 << 20)
    assert peer.reply(1).body.endswith(data)
    peer.send(get(3))
    assert peer.reply(3).body == ALIVE


def test_a_stream_without_window_holds_up_no_other(meet, marked) -> None:
    """On the same connection, as long as that one's window is open."""
    peer = meet(marked, window=1000)
    for stream in (1, 3, 5):
        peer.send(head(stream, fields("GET", "/metrics")))
    peer.send(get(7))
    assert peer.reply(7).body == ALIVE
    for stream in (5, 1, 3):
        assert not peer.replies[stream].ended
        peer.allow(stream, 1 << 20)
        assert b"torpor_queued_rows" in peer.reply(stream).body


def test_a_change_of_the_window_applies_to_open_streams(meet, marked) -> None:
    """6.9.2: an answer waits at 0, goes on when the setting grows, and at a negative window waits until it is positive."""
    peer = meet(marked, window=0)
    peer.send(get(1, "/metrics"), get(3))
    reply = peer.replies[1]
    peer.read_until(lambda: reply.status and peer.replies[3].status)
    peer.ping()
    assert reply.body == peer.replies[3].body == b""
    peer.change_window(1000)
    peer.read_body(1, 1000)
    assert peer.reply(3).body == ALIVE
    peer.change_window(200)
    peer.allow(1, 800)
    peer.ping()
    assert len(reply.body) == 1000
    peer.allow(1, 1)
    peer.read_body(1, 1001)
    peer.ping()
    assert len(reply.body) == 1001
    peer.change_window(1 << 20)
    assert b"torpor_queued_rows" in peer.reply(1).body


def test_the_last_of_two_windows_in_one_frame_counts(meet, marked) -> None:
    """6.5.3: settings are processed in their order."""
    peer = meet(marked, window=0)
    peer.send(get(1), frame(SETTINGS, 0, setting(INITIAL_WINDOW_SIZE, 100) + setting(INITIAL_WINDOW_SIZE, 1)))
    peer.window = 1
    peer.read_until(lambda: peer.replies[1].body)
    peer.ping()
    assert peer.replies[1].body == ALIVE[:1]


def test_data_frames_are_as_small_as_the_caller_wants(meet, echo, echo_request) -> None:
    """16 KiB unless the caller allows more; here the reader itself checks it."""
    data, make = echo_request
    peer = meet(echo)
    send_within_windows(peer, make(1))
    assert peer.reply(1).body.endswith(data)
    assert peer.replies[1].data_frames >= len(data) // 16384


def test_a_window_of_one_byte_is_served_byte_by_byte(meet, marked) -> None:
    """Slowly, whole, and without holding up anybody."""
    peer, other = meet(marked, window=1), meet(marked)
    peer.send(get(1), get(3, "/metrics"))
    for size in range(1, len(ALIVE) + 1):
        peer.read_body(1, size)
        other.send(get(2 * size - 1))
        assert other.reply(2 * size - 1).body == ALIVE
        peer.allow(1, 1)
    assert peer.reply(1).body == ALIVE


def test_the_server_keeps_its_own_windows_open(meet, echo, echo_request) -> None:
    """Bodies larger than the first windows come through, on three streams at a time."""
    data, make = echo_request
    peer = meet(echo)
    for streams in ((1, 3, 5), (7, 9, 11)):
        turns = zip(*(split_frames(make(stream)) for stream in streams), strict=True)
        send_within_windows(peer, b"".join(piece for turn in turns for piece in turn))
        for stream in streams:
            assert peer.reply(stream).body.endswith(data)


def test_who_exceeds_the_servers_window_is_stopped_or_let(meet, echo) -> None:
    """FLOW_CONTROL_ERROR, unless the window had been opened for it meanwhile."""
    peer = meet(echo)
    window = peer.settings.get(INITIAL_WINDOW_SIZE, 65535)
    over = max(window, 65535 + peer.credit[0]) + 16384
    watch = post(1, ("te", "trailers"), ("content-type", "application/grpc"), path="/grpc.health.v1.Health/Watch")
    message_frame = frame(DATA, 1, b"\0\0\0\0\0")
    fill = frame(DATA, 1, b"\0\0\0\0\0" + b"\0" * (16384 - 5))
    taken = peer.send_anyway(watch, message_frame, *[fill] * (over // 16384 + 1), frame(PING, 0, b"x" * 8))
    reply = peer.replies[1]
    while not peer.closed and reply.reset is None and not reply.ended and not peer.pongs:
        peer.read()
    if peer.closed or reply.reset is not None:
        assert peer.goaway in (None, FLOW)
        assert reply.reset in (None, FLOW)
    elif not reply.ended:
        assert taken
        assert window + peer.credit[1] >= over
        assert 65535 + peer.credit[0] >= over


def test_a_body_over_the_limit_is_refused_while_it_comes(connect_http2, echo) -> None:
    """413 on the stream, or 404 where nobody wants it; the connection has window left for others, ten times."""
    connection = connect_http2(echo)
    for _ in range(10):
        assert connection.request("POST", "/v2/models/echo/infer", b" " * (3 << 20)).status == 413
        assert connection.request("POST", "/none", b" " * (1 << 20)).status == 404
    assert connection.request("GET", LIVE).body == ALIVE


def test_a_body_over_the_limit_without_a_length(meet, echo) -> None:
    """It is refused when it has grown too large; what was under way is passed over."""
    peer = meet(echo)
    peer.send(post(1, path="/v2/models/echo/infer"))
    reply = peer.replies[1]
    piece = frame(DATA, 1, b" " * 16384)
    for _ in range(80):
        first = {0: 65535, 1: peer.settings.get(INITIAL_WINDOW_SIZE, 65535)}
        while not reply.ended and any(first[w] + peer.credit[w] < peer.sent[w] + 16384 for w in first):
            peer.read()
        if reply.ended:
            break
        peer.send(piece)
        for window in first:
            peer.sent[window] += 16384
    peer.read_until(lambda: reply.ended)
    assert reply.status == 413
    assert "must be in [0, 1048576]" in json.loads(reply.body)["error"]
    peer.send(get(3))
    assert peer.reply(3).body == ALIVE


# 6.8: the end


@pytest.mark.parametrize("waits_for", ["model", "window", "body"])
def test_streams_in_flight_are_answered_at_the_end(meet, serve, gated, gate_path, waits_for: str) -> None:
    """At SIGTERM, whatever they wait for; then come GOAWAY without an error and the end, also to idle connections."""
    server = serve("marked", "--drain-quiet-s", "0", "--drain-timeout-s", "20", GATE=str(gate_path))
    peer, idle = meet(server, window=0 if waits_for == "window" else 1 << 20), meet(server)
    with gated(server) if waits_for == "model" else contextlib.nullcontext() as gate:
        if waits_for == "body":
            peer.send(post(1), frame(DATA, 1, tensor(4)[:9]))
            peer.ping()
        else:
            peer.send(infer(1, 4))
        if waits_for == "model":
            gate.wait_for_rows(1)
        elif waits_for == "window":
            peer.read_until(lambda: peer.replies[1].status)
        server.process.send_signal(signal.SIGTERM)
        wait_until_unready(server)
        if waits_for == "body":
            peer.send(frame(DATA, 1, tensor(4)[9:], END_STREAM))
        elif waits_for == "window":
            peer.allow(1, 1 << 20)
    assert peer.reply(1).doubled() == [8.0, 1.0]
    for connection in (peer, idle):
        while not connection.closed:
            connection.read()
        assert connection.goaway == ErrorCodes.NO_ERROR
    assert peer.last_stream >= 1
    assert server.wait() == 0


def wait_until_unready(server) -> None:
    """Return when the server has noticed its signal, or has closed its port already."""
    with contextlib.suppress(OSError), Peer(server) as peer:
        peer.greet()
        for stream in range(1, 20001, 2):
            peer.send(get(stream, "/v2/health/ready"))
            while not peer.replies[stream].ended and not peer.closed:
                peer.read()
            if peer.closed or peer.replies[stream].status == 503:
                return
        pytest.fail("it stayed ready")


# Attacks


def many(count: int, make: Callable[[int], bytes]) -> bytes:
    """The frames of so many streams."""
    return b"".join(make(stream) for stream in range(1, 2 * count, 2))


CANCEL = u32(ErrorCodes.CANCEL)
OPEN = frame(HEADERS, 1, block(fields("POST", INFER)))  # its header block goes on

FLOODS = {
    "rapid reset": lambda: many(5000, lambda stream: get(stream) + frame(RST_STREAM, stream, CANCEL)),
    "rapid reset of inferences": lambda: many(
        3000, lambda stream: infer(stream, 1) + frame(RST_STREAM, stream, CANCEL)
    ),
    "rapid reset of bodies": lambda: many(3000, lambda stream: post(stream) + frame(RST_STREAM, stream, CANCEL)),
    "provoked resets": lambda: many(3000, lambda stream: post(stream) + frame(WINDOW_UPDATE, stream, u32(0))),
    "provoked resets by DATA": lambda: many(3000, lambda stream: get(stream) + frame(DATA, stream, b"x")),
    "malformed requests": lambda: many(3000, lambda stream: head(stream, fields("GET", LIVE, ("upgrade", "a")))),
    "answers that nobody reads": lambda: many(10_000, lambda stream: get(stream, "/v2/models/marked")),
    "pings": lambda: frame(PING, 0, b"x" * 8) * 1_000_000,
    "settings": lambda: frame(SETTINGS, 0, setting(INITIAL_WINDOW_SIZE, 9)) * 300_000,
    "empty settings": lambda: frame(SETTINGS) * 500_000,
    "settings with streams open": lambda: many(90, post) + frame(SETTINGS, 0, setting(INITIAL_WINDOW_SIZE, 9)) * 50_000,
    "priorities": lambda: frame(PRIORITY, 1, u32(0) + b"\0") * 300_000,
    "priorities of idle streams": lambda: many(100_000, lambda stream: frame(PRIORITY, stream, u32(0) + b"\0")),
    "small windows": lambda: frame(WINDOW_UPDATE, 0, u32(1)) * 300_000,
    "unknown frames": lambda: frame(0x16, 0, b"x") * 300_000,
    "empty DATA": lambda: post(1) + frame(DATA, 1) * 300_000,
    "padding": lambda: post(1) + frame(DATA, 1, b"\xff" + b"\0" * 255, PADDED) * 20_000,
    "empty CONTINUATION": lambda: OPEN + frame(CONTINUATION, 1) * 300_000,
    "CONTINUATION": lambda: OPEN + frame(CONTINUATION, 1, block([("x-note", "~" * 16000)])[:16000]) * 1000,
    "small CONTINUATION": lambda: OPEN + frame(CONTINUATION, 1, b"\x8f") * 300_000,
    "goodbyes": lambda: frame(GOAWAY, 0, u32(0) + u32(0)) * 300_000,
}


@pytest.mark.parametrize("make", FLOODS.values(), ids=FLOODS)
def test_floods_harm_nobody_else(meet, marked, make: Callable[[], bytes]) -> None:
    """Sent as fast as they are taken, and nothing is read: they end or are processed, others are answered meanwhile."""
    data = make()
    peer = meet(marked, receive_buffer=4096)
    before = resident_bytes(marked)
    took_all = peer.send_anyway(data, frame(PING, 0, b"the end!"), timeout_s=2)
    other = meet(marked)
    other.send(get(1), infer(3, 2))
    assert other.reply(1).body == ALIVE
    assert other.reply(3).doubled() == [4.0, 1.0]
    assert resident_bytes(marked) - before < 32 << 20
    assert not took_all or peer.hears(b"the end!") or peer.closed


def test_answers_that_nobody_reads_are_bounded(meet, echo) -> None:
    """Two hundred megabytes of answers do not come to lie in the server."""
    size = 900_000
    peer = meet(echo, window=MOST, receive_buffer=4096)
    before = resident_bytes(echo)
    body = b'{"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": ["%s"]}]}' % (b"x" * size)
    for stream in range(1, 400, 2):
        if peer.closed or not send_a_body(peer, stream, body):
            break
    other = meet(echo)
    other.send(get(1))
    assert other.reply(1).body == ALIVE
    assert resident_bytes(echo) - before < 128 << 20


def send_a_body(peer: Peer, stream: int, body: bytes) -> bool:
    """Send a request whose answer is not read until the server takes no more; whether it took all."""
    pieces = [post(stream, path="/v2/models/echo/infer")]
    pieces += [frame(DATA, stream, body[at : at + 16384]) for at in range(0, len(body), 16384)]
    return peer.send_anyway(*pieces, frame(DATA, stream, b"", END_STREAM), timeout_s=1)


ENTRY = b"\x40\x01x\x7f" + bytes([(4000 - 127) & 0x7F | 0x80, (4000 - 127) >> 7]) + b"a" * 4000

BOMBS = {
    "a long entry of the table, often": ENTRY + b"\xbe" * 12_000,
    "a short entry of the table, often": b"\x40\x01x\x01y" + b"\xbe" * 16_000,
    "an entry of the static table, often": b"\x8f" * 16_000,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_small_blocks_of_large_header_lists_are_refused(meet, marked, bomb: bytes) -> None:
    """By the size of the list and not of the block, before it takes memory."""
    before = resident_bytes(marked)
    for _ in range(3):
        peer = meet(marked)
        peer.send(frame(HEADERS, 1, block(fields()) + bomb, 5))
        refuses(peer, 1, PROTOCOL, REFUSED, COMPRESSION, CALM, ErrorCodes.INTERNAL_ERROR, answers=(400, 431))
    assert resident_bytes(marked) - before < 32 << 20


def test_header_lists_of_more_than_64_kib_are_refused(meet, marked) -> None:
    """431, a reset or the end; 50 KiB are fine."""
    peer = meet(marked)
    for stream, size in ((1, 50_000), (3, 70_000)):
        data = hpack.Encoder().encode([*fields(), ("cookie", "~" * size)], huffman=False)
        pieces = [data[at : at + 16384] for at in range(0, len(data), 16384)]
        last = len(pieces) - 1
        peer.send(
            frame(HEADERS, stream, pieces[0], END_STREAM),
            *(frame(CONTINUATION, stream, p, END_HEADERS * (n == last)) for n, p in enumerate(pieces) if n),
        )
        if size == 50_000:
            assert peer.reply(stream).body == ALIVE
    refuses(peer, 3, PROTOCOL, REFUSED, COMPRESSION, CALM, ErrorCodes.INTERNAL_ERROR, answers=(431,))


def test_a_header_block_without_end_is_refused(meet, marked) -> None:
    """When it has more than 64 KiB, not when it ends."""
    peer = meet(marked)
    peer.send_anyway(OPEN, frame(CONTINUATION, 1, b"\0\1a\x7f\x81\x7c" + b"~" * 16000) * 16)
    reply = peer.replies[1]
    while not peer.closed and not reply.ended and reply.reset is None:
        peer.read()
    assert reply.status in (0, 431)
    assert peer.goaway in (None, PROTOCOL, CALM, COMPRESSION, ErrorCodes.INTERNAL_ERROR)


def test_callers_that_take_little_or_say_little_hold_up_nobody(meet, marked) -> None:
    """Windows of one byte on a hundred streams, and a hundred connections that have only begun."""
    peer = meet(marked, window=1)
    streams = range(1, 2 * min(100, peer.settings[MAX_CONCURRENT_STREAMS]), 2)
    peer.send(*(get(stream, "/metrics") for stream in streams))
    for stream in streams:
        peer.read_until(lambda stream=stream: peer.replies[stream].body)
    with contextlib.ExitStack() as stack:
        for number in range(100):
            stack.enter_context(Peer(marked)).send((PREFACE + frame(SETTINGS) + get(1))[: number % 60])
        other = meet(marked)
        other.send(infer(1, 1))
        assert other.reply(1).doubled() == [2.0, 1.0]


# gRPC

GRPC = (("content-type", "application/grpc"), ("te", "trailers"))
WATCH, CHECK = "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/Check"
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


def grpc_message(data: bytes = b"") -> bytes:
    return b"\0" + u32(len(data)) + data


def grpc_infer_message(first: float) -> bytes:
    values = {"name": "x", "datatype": "FP32", "shape": [1, 2], "contents": {"fp32_contents": [first, 0.5]}}
    return grpc_message(
        message("inference.ModelInferRequest")(model_name="marked", inputs=[values]).SerializeToString()
    )


def grpc_doubled(reply: Reply) -> list[float]:
    assert (reply.status, reply.headers["content-type"]) == (200, "application/grpc")
    assert reply.trailers["grpc-status"] == "0"
    assert reply.body[:5] == b"\0" + u32(len(reply.body) - 5)
    return list(message("inference.ModelInferResponse").FromString(reply.body[5:]).outputs[0].contents.fp32_contents)


CALL = grpc_infer_message(3)


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(frame(DATA, 1, CALL, END_STREAM), id="one frame"),
        pytest.param(frame(DATA, 1, CALL) + frame(DATA, 1, b"", END_STREAM), id="an empty frame at the end"),
        pytest.param(
            b"".join(frame(DATA, 1, bytes([byte])) for byte in CALL) + frame(DATA, 1, b"", END_STREAM),
            id="byte by byte",
        ),
        pytest.param(frame(DATA, 1, CALL[:3]) + frame(DATA, 1) + frame(DATA, 1, CALL[3:], END_STREAM), id="cut length"),
        pytest.param(frame(DATA, 1, CALL[:5]) + frame(DATA, 1, CALL[5:], END_STREAM), id="after the length"),
        pytest.param(frame(DATA, 1, b"\x09" + CALL + b"\0" * 9, PADDED | END_STREAM), id="padded"),
    ],
)
def test_grpc_messages_may_be_cut_anywhere(meet, marked, frames: bytes) -> None:
    """DATA frames have nothing to do with messages."""
    peer = meet(marked)
    peer.send(post(1, *GRPC, path=MODEL_INFER), frames)
    assert grpc_doubled(peer.reply(1)) == [6.0, 1.0]


@pytest.mark.parametrize(
    ("path", "body", "more", "status"),
    [
        (MODEL_INFER, CALL + CALL, GRPC, {"3", "12", "13"}),
        (MODEL_INFER, CALL + b"\0", GRPC, {"3", "13"}),
        (MODEL_INFER, CALL[:-1], GRPC, {"3", "13"}),
        (MODEL_INFER, b"", GRPC, {"3", "12", "13"}),
        (MODEL_INFER, b"\1" + CALL[1:], GRPC, {"12", "13"}),
        (CHECK, grpc_message() * 2, GRPC, {"3", "12", "13"}),
        (WATCH, b"", GRPC, {"3", "12", "13"}),
        ("/grpc.health.v1.Health/None", grpc_message(), GRPC, {"12"}),
        (MODEL_INFER, CALL, GRPC[:1], {"3", "13"}),
        (MODEL_INFER, CALL, (*GRPC, ("grpc-timeout", "soon")), {"3", "13"}),
    ],
)  # fmt: skip
def test_grpc_errors_are_a_status(
    meet, marked, path: str, body: bytes, more: tuple[tuple[str, str]], status: set[str]
) -> None:
    """HTTP 200, no message, and the status where gRPC's clients look: in the last header block."""
    peer = meet(marked)
    peer.send(post(1, *more, path=path), frame(DATA, 1, body, END_STREAM), get(3))
    reply = peer.reply(1)
    last = reply.trailers or reply.headers
    assert (reply.status, reply.body, reply.headers["content-type"]) == (200, b"", "application/grpc")
    assert last["grpc-status"] in status
    assert last["grpc-message"]
    assert reply.trailers or not reply.data_frames
    assert peer.reply(3).body == ALIVE


def test_a_grpc_deadline_is_a_status(meet, marked, gated) -> None:
    """While the model is still busy; the connection goes on."""
    peer = meet(marked)
    with gated(marked):
        peer.send(post(1, *GRPC, ("grpc-timeout", "50m"), path=MODEL_INFER), frame(DATA, 1, CALL, END_STREAM))
        assert peer.reply(1).trailers["grpc-status"] == "4"
        peer.send(get(3))
        assert peer.reply(3).body == ALIVE


@pytest.mark.parametrize("ended", [False, True], ids=["open", "half-closed"])
def test_a_watch_ends_by_a_reset(meet, marked, ended: bool) -> None:
    """A caller may go while it watches: the connection goes on, and watches again, many times."""
    peer = meet(marked)
    request = frame(DATA, 1, grpc_message(), END_STREAM if ended else 0)
    for stream in range(1, 201, 2):
        peer.send(post(stream, *GRPC, path=WATCH), request[:8] + bytes([stream]) + request[9:])
        reply = peer.replies[stream]
        peer.read_body(stream, 7)
        assert reply.body == grpc_message(b"\x08\x01")  # SERVING
        peer.send(frame(RST_STREAM, stream, CANCEL))
    peer.send(infer(201, 1))
    assert peer.reply(201).doubled() == [2.0, 1.0]
    assert not any(peer.replies[stream].ended for stream in range(1, 201, 2))


def test_a_watch_goes_on_among_other_streams(meet, marked) -> None:
    """Also with no window for what it tells."""
    peer = meet(marked, window=0)
    peer.send(post(1, *GRPC, path=WATCH), frame(DATA, 1, grpc_message()))
    peer.read_until(lambda: peer.replies[1].status)
    peer.send(get(3))
    peer.allow(3, 100)
    assert peer.reply(3).body == ALIVE
    peer.allow(1, 3)
    peer.allow(1, 100)
    peer.read_body(1, 7)
    assert not peer.replies[1].ended


def test_a_streaming_call_talks_both_ways(meet, marked) -> None:
    """Each message is answered when it is whole, before the next one comes; the end of the caller's half is the end."""
    peer = meet(marked)
    request = grpc_message(message("grpc.reflection.v1.ServerReflectionRequest")(list_services="").SerializeToString())
    request = grpc_message(b"\x3a\x00") if len(request) == 5 else request
    peer.send(post(1, *GRPC, path=REFLECTION))
    reply = peer.replies[1]
    heard = 0
    for cut in (0, 1, 4, 5, 6):
        peer.send(frame(DATA, 1, request[:cut]))
        peer.ping()
        assert len(reply.body) == heard
        peer.send(frame(DATA, 1, request[cut:]))
        peer.read_until(lambda heard=heard: len(reply.body) >= heard + 5)
        size = 5 + int.from_bytes(reply.body[heard + 1 : heard + 5], "big")
        heard += size
        peer.read_body(1, heard)
    peer.send(frame(DATA, 1, request + request, END_STREAM))
    assert peer.reply(1).trailers["grpc-status"] == "0"
    assert reply.body == reply.body[:size] * 7


# Any cuts


@dataclass
class Exchange:
    """A request in pieces, and the check of its answer."""

    fields: Fields
    body: bytes
    check: Callable[[Reply], object]


def answers(status: int, body: bytes) -> Callable[[Reply], bool]:
    return lambda reply: (reply.status, reply.body) == (status, body)


EXCHANGES = [
    Exchange(fields(), b"", answers(200, ALIVE)),
    Exchange(fields("HEAD"), b"", answers(200, b"")),
    Exchange(fields("GET", "/none"), b"", answers(404, b'{"error":"path /none is unknown"}')),
    Exchange(fields("POST", INFER), tensor(1), lambda reply: reply.doubled() == [2.0, 1.0]),
    Exchange(
        fields("POST", INFER, ("content-length", str(len(tensor(2)))), ("x-note", "a" * 40)),
        tensor(2), lambda reply: reply.doubled() == [4.0, 1.0],
    ),
    Exchange(fields("POST", INFER), b"{" * 50, lambda reply: reply.status == 400 and b"not JSON" in reply.body),
    Exchange(fields("POST", MODEL_INFER, *GRPC), CALL, lambda reply: grpc_doubled(reply) == [6.0, 1.0]),
    Exchange(fields("POST", CHECK, *GRPC), grpc_message(), lambda reply: reply.body == grpc_message(b"\x08\x01")),
    Exchange(fields("POST", CHECK, *GRPC), CALL + CALL, lambda reply: reply.trailers["grpc-status"] != "0"),
]  # fmt: skip

NOISE = [b"", frame(PING, 0, b"x" * 8), frame(SETTINGS), frame(0x16, 1, b"x"), frame(WINDOW_UPDATE, 0, u32(1))]


def cut(draw, data: bytes, most: int) -> list[bytes]:
    """The data in up to so many pieces more than one, which may be empty."""
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=most).map(sorted))
    return [data[a:b] for a, b in pairwise([0, *cuts, len(data)])]


def draw_data(draw, stream: int, body: bytes, flags: int) -> list[bytes]:
    """The body in DATA frames of any size and padding."""
    pieces = cut(draw, body, 4)
    frames = []
    for number, piece in enumerate(pieces):
        end = flags if number == len(pieces) - 1 else 0
        padding = draw(st.sampled_from([None, None, 0, 1, 255]))
        if padding is None:
            frames.append(frame(DATA, stream, piece, end))
        else:
            frames.append(frame(DATA, stream, bytes([padding]) + piece + b"\0" * padding, end | PADDED))
    return frames


def draw_block(draw, stream: int, data: bytes, flags: int) -> bytes:
    """A header block in HEADERS and CONTINUATION frames."""
    first, *rest = cut(draw, data, 3)
    end = 0 if rest else END_HEADERS
    if draw(st.booleans()):
        first, flags = u32(0) + b"\x10" + first, flags | WITH_PRIORITY
    frames = [frame(HEADERS, stream, first, flags | end)]
    for number, piece in enumerate(rest, start=1):
        frames.append(frame(CONTINUATION, stream, piece, END_HEADERS if number == len(rest) else 0))
    return b"".join(frames)


@st.composite
def conversations(draw) -> tuple[list[Exchange], list[bytes]]:
    """Requests on the streams of one connection, between each other, and their frames in TCP segments."""
    exchanges = draw(st.lists(st.sampled_from(EXCHANGES), min_size=1, max_size=5))
    encoder = hpack.Encoder()
    frames, waiting = [], {}
    opened = 0
    while opened < len(exchanges) or waiting:
        choices = [*waiting, *([None] if opened < len(exchanges) else [])]
        stream = draw(st.sampled_from(choices))
        if stream is None:  # ids must increase, and a block must be encoded when it is sent
            exchange, stream = exchanges[opened], 2 * opened + 1
            opened += 1
            trailers = exchange.body and draw(st.booleans())
            end = END_STREAM if not exchange.body else 0
            frames.append(draw_block(draw, stream, encoder.encode(exchange.fields), end))
            if exchange.body:
                waiting[stream] = draw_data(draw, stream, exchange.body, 0 if trailers else END_STREAM)
                waiting[stream] += [b""] if trailers else []
        elif sent := waiting[stream].pop(0):
            frames.append(sent)
        else:
            frames.append(draw_block(draw, stream, encoder.encode([("x-sum", "1")]), END_STREAM))
        if stream in waiting and not waiting[stream]:
            del waiting[stream]
        frames.append(draw(st.sampled_from(NOISE)))
    with_hello = PREFACE + frame(SETTINGS) + b"".join(frames)
    return exchanges, cut(draw, with_hello, 10)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(conversations())
def test_any_cuts_of_a_conversation_give_the_same_answers(marked, conversation) -> None:
    """Streams between each other, bodies in any DATA frames, blocks in any CONTINUATIONs, in any TCP segments."""
    exchanges, segments = conversation
    with Peer(marked, window=65535, grant=100) as peer:
        peer.send_apart(segments)
        for number, exchange in enumerate(exchanges):
            assert exchange.check(peer.reply(2 * number + 1)), peer.replies
        assert peer.goaway is None
