"""HTTP/1.1 (RFC 9112) byte by byte over sockets: what is valid is answered in order, what is doubtful is refused."""

import contextlib
import json
import os
import re
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

TIMEOUT_S = 10
INFER, LIVE = "/v2/models/marked/infer", "/v2/health/live"
ALIVE = b'{"live":true}'
CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER with no time to linger: closing resets the connection


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def doubled(self) -> list[float]:
        assert self.status == 200, self
        return json.loads(self.body)["outputs"][0]["data"]


class Caller:
    """A connection on which the test writes its own bytes, and reads strictly."""

    def __init__(self, server, receive_buffer: int = 0) -> None:
        self.address = ("127.0.0.1", server.port)
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(self.address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self.socket.makefile("rb")
        self._other: Caller | None = None
        self._server = server

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_: object) -> None:
        if self._other is not None:
            self._other.__exit__()
        self._file.close()
        self.socket.close()

    def send(self, *pieces: bytes) -> None:
        self.socket.sendall(b"".join(pieces))

    def send_apart(self, *pieces: bytes) -> None:
        """Send the pieces so that the server reads them one at a time."""
        for piece in pieces:
            self.socket.sendall(piece)
            self.settle()

    def send_anyway(self, data: bytes) -> None:
        """Send what the server may not want to read to its end."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def settle(self) -> None:
        """Return when the server has read what was sent: a later request, on another connection, is answered."""
        if self._other is None:
            self._other = Caller(self._server)
        self._other.send(request("GET", LIVE))
        assert self._other.reply().status == 200

    def reply(self, method: str = "GET") -> Reply:
        """The next response, to a request with this method; the final ones must say their length."""
        line = self._line()
        match = re.fullmatch(rb"HTTP/1\.1 ([1-5]\d\d) [\t\x20-\x7e]*", line)
        assert match, line
        status = int(match[1])
        headers: dict[str, str] = {}
        while line := self._line():
            match = re.fullmatch(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e]*?)[ \t]*", line)
            assert match, line
            name = match[1].decode().lower()
            assert name not in headers, name
            headers[name] = match[2].decode()
        if status in (204, 304) or status < 200:
            return Reply(status, headers, b"")
        length = 0 if method == "HEAD" else int(headers["content-length"])
        body = self._file.read(length)
        assert len(body) == length
        return Reply(status, headers, body)

    def rest(self) -> bytes:
        """What comes until the server ends the connection."""
        pieces = []
        with contextlib.suppress(ConnectionResetError):
            while piece := self._file.read1():
                pieces.append(piece)
        return b"".join(pieces)

    def is_silent(self) -> bool:
        """Whether nothing has come, not even the end."""
        self.socket.setblocking(False)
        try:
            if not self._file.peek():
                self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(TIMEOUT_S)
        return False

    def comes_more(self) -> bool:
        """Wait for the next byte or the end."""
        with contextlib.suppress(ConnectionResetError):
            return bool(self._file.peek())
        return False

    def is_in_step(self) -> bool:
        """Whether the next request gets its own answer. False if the connection was closed, which is fair as well."""
        self.send_anyway(request("GET", LIVE))
        if not self.comes_more():
            return False
        reply = self.reply()
        assert (reply.status, reply.body) == (200, ALIVE), reply
        return True

    def _line(self) -> bytes:
        line = self._file.readline()
        assert line.endswith(b"\r\n"), line
        return line[:-2]


def request(method: str, target: str, body: bytes | None = None, *headers: str, version: str = "1.1") -> bytes:
    """A request with Host and, if it has a body, Content-Length."""
    lines = [f"{method} {target} HTTP/{version}", "Host: torpor", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def tensor(first: float, **fields: object) -> bytes:
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [first, 0.5]}
    return json.dumps({"inputs": [entry], "outputs": [{"name": "doubled"}]} | fields).encode()


def infer(first: float, *headers: str) -> bytes:
    return request("POST", INFER, tensor(first), *headers)


def chunked(pieces: list[bytes], trailers: bytes = b"") -> bytes:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return request("POST", INFER, None, "Transfer-Encoding: chunked") + chunks + b"0\r\n" + trailers + b"\r\n"


def resident_bytes(server) -> int:
    with open(f"/proc/{server.process.pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.fixture
def call() -> Iterator[Callable[..., Caller]]:
    """Open connections, closed with the test."""
    with contextlib.ExitStack() as callers:
        yield lambda server, **options: callers.enter_context(Caller(server, **options))


@pytest.fixture(autouse=True)
def still_serves(marked) -> Iterator[None]:
    """After each of these tests the server answers, on a connection opened before and on a new one; nothing crashed."""
    logged = len(marked.log)
    with Caller(marked) as before:
        yield
        with Caller(marked) as after:
            for caller in (before, after):
                caller.send(infer(1))
                assert caller.reply().doubled() == [2.0, 1.0]
    assert "Traceback" not in "".join(marked.log[logged:])


# One request after the other


def test_a_connection_is_kept(call, marked) -> None:
    """Readings, inferences and errors, one after the other on one connection."""
    caller = call(marked)
    for number in range(3):
        caller.send(request("GET", LIVE))
        assert caller.reply().body == ALIVE
        caller.send(infer(number))
        assert caller.reply().doubled() == [2.0 * number, 1.0]
        caller.send(request("POST", INFER, b"{"))
        assert caller.reply().status == 400
        caller.send(request("GET", "/none"))
        assert caller.reply().status == 404
        caller.send(request("DELETE", LIVE))
        assert caller.reply().status == 405


def test_pipelined_requests_are_answered_in_order(call, marked) -> None:
    """Thirty requests in one segment, each with its own answer."""
    caller = call(marked)
    caller.send(*(infer(number) + request("GET", f"/none/{number}") for number in range(15)))
    for number in range(15):
        assert caller.reply().doubled() == [2.0 * number, 1.0]
        assert f"/none/{number}" in caller.reply().body.decode()


def test_a_later_answer_waits_for_an_earlier_one(call, marked, gated) -> None:
    """A reading behind an inference that waits is not answered before it."""
    caller = call(marked)
    with gated(marked) as gate:
        caller.send(infer(3), request("GET", LIVE))
        gate.wait_for_rows(1)
        caller.settle()
        assert caller.is_silent()
    assert caller.reply().doubled() == [6.0, 1.0]
    assert caller.reply().body == ALIVE


def test_many_pipelined_requests_wait_without_harm(call, marked, gated) -> None:
    """Thousands behind one that waits: all are answered afterwards."""
    caller = call(marked)
    with gated(marked) as gate:
        caller.send(infer(3))
        gate.wait_for_rows(1)
        sending = threading.Thread(target=caller.send, args=[request("GET", LIVE) * 3000])
        sending.start()
        caller.settle()
    assert caller.reply().doubled() == [6.0, 1.0]
    assert all(caller.reply().body == ALIVE for _ in range(3000))
    sending.join(TIMEOUT_S)


def test_what_is_pipelined_behind_a_waiting_request_is_bounded(call, marked, gated) -> None:
    """Sixty megabytes stay where they are, not in the server."""
    caller = call(marked)
    before = resident_bytes(marked)
    with gated(marked) as gate:
        caller.send(infer(3))
        gate.wait_for_rows(1)
        caller.socket.settimeout(1)
        with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
            caller.socket.sendall(request("POST", "/none", b" " * 1_000_000) * 60)
        caller.settle()
        assert resident_bytes(marked) - before < 32 << 20


def test_empty_lines_before_a_request_are_skipped(call, marked) -> None:
    """Old clients send a line end too many after a body."""
    caller = call(marked)
    caller.send(b"\r\n", infer(1), b"\r\n", request("GET", LIVE))
    assert caller.reply().doubled() == [2.0, 1.0]
    assert caller.reply().body == ALIVE


@pytest.mark.parametrize(
    "data",
    [infer(4), chunked([tensor(4)[:7], tensor(4)[7:]], b"X-Sum: 1\r\n")],
    ids=["content-length", "chunked"],
)
def test_a_request_may_come_byte_by_byte(call, marked, data: bytes) -> None:
    """However slowly it comes, it is one request."""
    caller = call(marked)
    caller.send_apart(*(bytes([byte]) for byte in data))
    assert caller.reply().doubled() == [8.0, 1.0]


@pytest.mark.parametrize(
    "data",
    [infer(4), chunked([tensor(4)[:7], tensor(4)[7:]], b"X-Sum: 1\r\n")],
    ids=["content-length", "chunked"],
)
def test_a_request_may_be_cut_anywhere(call, marked, data: bytes) -> None:
    """In two segments, with the next request behind it in the second."""
    caller = call(marked)
    for cut in range(1, len(data)):
        caller.send_apart(data[:cut])
        caller.send(data[cut:], request("GET", LIVE))
        assert caller.reply().doubled() == [8.0, 1.0], cut
        assert caller.reply().body == ALIVE, cut


def test_names_of_headers_have_no_case_and_values_no_margins(call, marked) -> None:
    """Any case, any spaces or tabs around the value, none, and bytes beyond ASCII."""
    body = tensor(5)
    head = b"POST %s HTTP/1.1\r\nhOsT:torpor\r\ncontent-LENGTH: \t %d \t\r\nX-Note: caf\xc3\xa9\r\nX-None:\r\n\r\n"
    caller = call(marked)
    caller.send(head % (INFER.encode(), len(body)), body)
    assert caller.reply().doubled() == [10.0, 1.0]
    assert caller.is_in_step()


# Bodies in chunks

START = request("POST", INFER, None, "Transfer-Encoding: chunked")
BODY = tensor(6)
SIZE = b"%x" % len(BODY)


@pytest.mark.parametrize(
    "body",
    [
        SIZE + b"\r\n" + BODY + b"\r\n0\r\n\r\n",
        SIZE.upper() + b"\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"000" + SIZE + b"\r\n" + BODY + b"\r\n000\r\n\r\n",
        SIZE + b";name\r\n" + BODY + b"\r\n0;last\r\n\r\n",
        SIZE + b';name=value;other="quo;ted \\" 5"\r\n' + BODY + b"\r\n0\r\n\r\n",
        SIZE + b"\r\n" + BODY + b"\r\n0\r\nX-Sum: 1\r\nX-Other: 2\r\n\r\n",
        SIZE + b"\r\n" + BODY + b"\r\n0\r\nContent-Length: 100\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n",
    ],
    ids=["hex", "upper case", "zeros", "extension", "quoted extension", "trailers", "framing in trailers", "bytes"],
)
def test_chunks_are_put_together(call, marked, body: bytes) -> None:
    """Extensions and trailers are passed over, and the connection stays in step."""
    caller = call(marked)
    caller.send(START, body)
    reply = caller.reply()
    if b"gzip" in body and reply.status == 400:  # refusing such trailers is as good as passing over them
        assert caller.rest() == b""
        return
    assert reply.doubled() == [12.0, 1.0]
    assert caller.is_in_step()


@pytest.mark.parametrize("coding", ["chunked", "Chunked", "CHUNKED", " \tchunked \t"])
def test_the_name_of_the_coding_has_no_case(call, marked, coding: str) -> None:
    """As every token of HTTP's own."""
    caller = call(marked)
    body = SIZE + b"\r\n" + BODY + b"\r\n0\r\n\r\n"
    caller.send(request("POST", INFER, None, f"Transfer-Encoding:{coding}"), body)
    assert caller.reply().doubled() == [12.0, 1.0]
    assert caller.is_in_step()


LONG = b"a" * (200 << 10)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"zz\r\n", id="no hex"),
        pytest.param(b"\r\n", id="no size"),
        pytest.param(b";a\r\n", id="only an extension"),
        pytest.param(b"-1\r\n", id="negative"),
        pytest.param(b"+5\r\nhello\r\n", id="plus"),
        pytest.param(b"0x5\r\nhello\r\n", id="0x"),
        pytest.param(b"1_0\r\n0123456789abcdef\r\n", id="underscore"),
        pytest.param(b" 5\r\nhello\r\n", id="space before"),
        pytest.param(b"5 5\r\nhello\r\n", id="two sizes"),
        pytest.param("٥\r\nhello\r\n".encode(), id="another alphabet's digit"),
        pytest.param(b"f" * 16 + b"\r\nhello\r\n", id="64 bits"),
        pytest.param(b"1" + b"0" * 15 + b"5\r\nhello\r\n", id="65 bits"),
        pytest.param(b"f" * 1000 + b"\r\nhello\r\n", id="4000 bits"),
        pytest.param(b"5\r\nhello!\r\n", id="longer than its size"),
        pytest.param(b"5\r\nhello\n0\r\n\r\n", id="bare LF after the data"),
        pytest.param(b"5\r\nhello\r0\r\n\r\n", id="bare CR after the data"),
        pytest.param(b"5\r\nhello0\r\n\r\n", id="no line end after the data"),
        pytest.param(b"5\r\nhelloxx0\r\n\r\n", id="letters for the line end after the data"),
        pytest.param(b"5\r\nhello\n\r0\r\n\r\n", id="LF CR after the data"),
        pytest.param(b"5\nhello\r\n0\r\n\r\n", id="bare LF after the size"),
        pytest.param(b"5;a\nhello\r\n0\r\n\r\n", id="bare LF after an extension"),
        pytest.param(b"5;a\rb\r\nhello\r\n0\r\n\r\n", id="bare CR in an extension"),
        pytest.param(b"5;a\0b\r\nhello\r\n0\r\n\r\n", id="NUL in an extension"),
        pytest.param(b"5\r\nhello\r\n0\n\n", id="bare LF at the end"),
        pytest.param(b"5\r\nhello\r\n0\r\nX : 1\r\n\r\n", id="bad trailer"),
        pytest.param(b"5\r\nhello\r\n0\r\nX\r\n\r\n", id="trailer without colon"),
        pytest.param(b"5\r\nhello\r\n0\r\nX: 1\n\r\n", id="bare LF in the trailers"),
        pytest.param(b"5;" + LONG + b"\r\nhello\r\n0\r\n\r\n", id="endless extension"),
        pytest.param(b"0" * 200_000 + b"\r\n\r\n", id="endless zeros"),
        pytest.param(b"5\r\nhello\r\n0\r\nX: " + LONG + b"\r\n\r\n", id="endless trailer"),
        pytest.param(b"5\r\nhello\r\n0\r\n" + b"X: 1\r\n" * 30_000 + b"\r\n", id="endless trailers"),
    ],
)
def test_bad_chunks_end_the_connection(call, marked, body: bytes) -> None:
    """Refused, and nothing behind them is taken for a request."""
    caller = call(marked)
    caller.send(START)
    caller.send_anyway(body + request("GET", LIVE))
    assert caller.reply().status in (400, 413, 431)
    assert caller.rest() == b""


# Requests that may mean two things

BOTH = "POST /v2/models/marked/infer HTTP/1.1\r\nHost: torpor\r\n"
GET = "GET /v2/health/live HTTP/1.1\r\nHost: torpor\r\n"


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(BOTH + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", id="both lengths"),
        pytest.param(BOTH + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", id="both lengths, reversed"),
        pytest.param(BOTH + "Content-Length: 5\r\nContent-Length: 6\r\n", id="two lengths"),
        pytest.param(BOTH + "Content-Length: 0\r\nContent-Length: 5\r\n", id="two lengths, one of them 0"),
        *(
            pytest.param(BOTH + f"Content-Length: {length}\r\n", id=f"length {length[:9]!r}")
            for length in ("+5", "5 5", "5, 6", "5,", "-5", "-0", "", "0x5", "5;", "1_0", "5.0", "٥", "five", '"5"')
        ),
        pytest.param(GET + "X-A: b\r\n c\r\n", id="folded"),
        pytest.param(GET + "X-A: b\r\n\tc\r\n", id="folded by a tab"),
        pytest.param(GET + "X-A:\r\n \r\n", id="folded and empty"),
        pytest.param(BOTH + "Content-Length: 5\r\n 5\r\n", id="folded length"),
        pytest.param(BOTH + "Content-Length : 5\r\n", id="space before colon"),
        pytest.param(BOTH + "Content-Length\t: 5\r\n", id="tab before colon"),
        pytest.param("GET /v2/health/live HTTP/1.1\r\n Host: torpor\r\nHost: torpor\r\n", id="space before the first"),
        pytest.param(GET + "X-A\r\n", id="no colon"),
        pytest.param(GET + ": b\r\n", id="no name"),
        *(
            pytest.param(GET + f"X{character}A: b\r\n", id=f"{character!r} in a name")
            for character in '\0\x01\r\x7f "(),/;<=>?@[\\]{}é'
        ),
        *(
            pytest.param(GET + f"X-A: b{character}c\r\n", id=f"{character!r} in a value")
            for character in ("\0", "\r", "\r\r", "\n")
        ),
        pytest.param(GET + "X-A: b\r\r\n", id="CR before the line's end"),
        pytest.param(GET.replace("\r\n", "\n"), id="bare LF"),
        pytest.param(GET.replace("1.1\r\n", "1.1\n"), id="bare LF after the request line"),
        pytest.param(GET + "X-A: b\n", id="bare LF after a header"),
        pytest.param(BOTH + "X-A: b\nContent-Length: 5\r\n", id="bare LF before a length"),
        pytest.param("GET /v2/health/live HTTP/1.1\r\n", id="no host"),
        pytest.param(GET + "Host: torpor\r\n", id="the same host twice"),
        pytest.param(GET + "Host: other\r\n", id="two hosts"),
        pytest.param("GET /v2/health/live HTTP/1.1\r\nHost: a b\r\n", id="no valid host"),
    ],
)
@pytest.mark.parametrize("apart", [False, True], ids=["at once", "line by line"])
def test_what_may_mean_two_things_is_refused(call, marked, head: str, apart: bool) -> None:
    """400, the connection ends, and what another parser may take for a second request is not answered."""
    data = head.encode() + b"\r\n" + b"0\r\n\r\n" + request("GET", LIVE)
    caller = call(marked)
    if apart:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            caller.send_apart(*data.splitlines(keepends=True))
    else:
        caller.send(data)
    assert caller.reply().status == 400
    assert caller.rest() == b""


@pytest.mark.parametrize("host", ["", "torpor:80", "[::1]:8080", "10.0.0.1", "a.b-c.example.", "a_b", "xn--caf-dma"])
def test_hosts_in_all_forms(call, marked, host: str) -> None:
    """Also an empty one, which says that there is none."""
    caller = call(marked)
    caller.send(f"GET {LIVE} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert caller.reply().body == ALIVE


@pytest.mark.parametrize("after", ["\n", "\r\n\n", "\n\r\n"], ids=repr)
def test_a_head_that_ends_without_cr_is_refused(call, marked, after: str) -> None:
    """Line feeds alone end nothing."""
    caller = call(marked)
    caller.send((GET.removesuffix("\r\n") + after).encode(), request("GET", LIVE))
    assert caller.reply().status == 400
    assert caller.rest() == b""


@pytest.mark.parametrize(
    ("line", "statuses"),
    [
        ("G(T / HTTP/1.1", {400}),
        ("G\0T / HTTP/1.1", {400}),
        ("GÉT / HTTP/1.1", {400}),
        ("G\tT / HTTP/1.1", {400}),
        ("GET: / HTTP/1.1", {400}),
        (" GET / HTTP/1.1", {400}),
        ("GET  / HTTP/1.1", {400}),
        ("GET /  HTTP/1.1", {400}),
        ("GET\t/\tHTTP/1.1", {400}),
        ("GET / HTTP/1.1 ", {400}),
        ("GET /a b HTTP/1.1", {400}),
        ("GET /a\0b HTTP/1.1", {400}),
        ("GET /a\x7fb HTTP/1.1", {400}),
        ("GET /a\rb HTTP/1.1", {400}),
        ("GET /é HTTP/1.1", {400}),
        ("GET  HTTP/1.1", {400}),
        ("GET HTTP/1.1", {400}),
        ("GET /", {400, 505}),
        ("GET", {400}),
        ("/ HTTP/1.1", {400}),
        ("GET / http/1.1", {400, 505}),
        ("GET / HTTP/1", {400, 505}),
        ("GET / HTTP/1.", {400, 505}),
        ("GET / HTTP/.1", {400, 505}),
        ("GET / HTTP/1.10", {400, 505}),
        ("GET / HTTP/01.1", {400, 505}),
        ("GET / HTTP/1,1", {400, 505}),
        ("GET / HTTP/1.x", {400, 505}),
        ("GET / HTTP/1.1x", {400, 505}),
        ("GET / HTTP /1.1", {400, 505}),
        ("GET / HTTP/0.9", {400, 505}),
        ("GET / HTTP/2.0", {400, 505}),
        ("GET / HTTP/9.9", {400, 505}),
        ("GET / FTP/1.1", {400, 505}),
        ("PRI * HTTP/2.0", {400, 505}),
    ],
)  # fmt: skip
def test_a_bad_request_line_is_refused(call, marked, line: str, statuses: set[int]) -> None:
    """400, or 505 where only the version is wrong; the connection ends. Of a bad preface of HTTP/2 that is enough."""
    caller = call(marked)
    caller.send(line.encode(), b"\r\nHost: torpor\r\n\r\n", request("GET", LIVE))
    if line.startswith("PRI"):
        assert b"200" not in caller.rest().split(b"\r\n")[0]
        return
    assert caller.reply().status in statuses
    assert caller.rest() == b""


@pytest.mark.parametrize(
    "coding",
    [
        "gzip, chunked", "gzip", "chunked, gzip", "identity", "chunked, identity", "xchunked", "chunkedx", "chunke",
        "chunked, chunked", "chunked\r\nTransfer-Encoding: chunked", "gzip\r\nTransfer-Encoding: chunked",
        "chunked\r\nTransfer-Encoding: identity", "\x0bchunked", '"chunked"', "chunked;q=1", "chunked\x00", "",
    ],
    ids=repr,
)  # fmt: skip
def test_codings_other_than_chunked_are_refused(call, marked, coding: str) -> None:
    """400 or 501, and the connection ends: the end of such a body is unknown."""
    caller = call(marked)
    caller.send(BOTH.encode(), f"Transfer-Encoding: {coding}\r\n\r\n0\r\n\r\n".encode(), request("GET", LIVE))
    assert caller.reply().status in (400, 501)
    assert caller.rest() == b""


@pytest.mark.parametrize("lengths", ["{0}\r\nContent-Length: {0}", "{0}, {0}"], ids=["twice", "in a list"])
def test_a_length_that_is_repeated_counts_once_or_is_refused(call, marked, lengths: str) -> None:
    """RFC 9112 leaves the choice."""
    caller = call(marked)
    caller.send(BOTH.encode(), f"Content-Length: {lengths}\r\n\r\n".format(len(BODY)).encode(), BODY)
    reply = caller.reply()
    if reply.status == 400:
        assert caller.rest() == b""
    else:
        assert reply.doubled() == [12.0, 1.0]
        assert caller.is_in_step()


def test_garbage_is_refused(call, marked) -> None:
    """A TLS greeting and random bytes: no answer but an error, and the end."""
    for data in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xab" * 300, bytes(range(256)) * 4, b"\0" * 1000):
        caller = call(marked)
        caller.send(data)
        caller.socket.shutdown(socket.SHUT_WR)
        assert caller.rest()[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 505")


# HTTP/1.0 and the end of connections


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /v2/health/live HTTP/1.0\r\n\r\n", 200),
        (request("GET", LIVE, version="1.0"), 200),
        (request("GET", LIVE, None, "Connection: close", version="1.0"), 200),
        (request("POST", INFER, tensor(1), version="1.0"), 200),
        (request("GET", "/none", version="1.0"), 404),
        (request("GET", LIVE, None, "Connection: close"), 200),
        (request("GET", LIVE, None, "Connection: Close"), 200),
        (request("GET", LIVE, None, "Connection: x-a,  close , x-b"), 200),
        (request("GET", LIVE, None, "Connection: x-a", "Connection: close"), 200),
        (request("GET", LIVE, None, "Connection: close, keep-alive"), 200),
        (request("POST", INFER, tensor(1), "Connection: close"), 200),
        (request("GET", "/none", None, "Connection: close"), 404),
    ],
)
def test_who_asks_for_the_end_gets_it(call, marked, data: bytes, status: int) -> None:
    """HTTP/1.0, or the option close: the answer is whole, says so, and is the last, whatever comes behind."""
    caller = call(marked)
    caller.send(data, request("GET", LIVE))
    reply = caller.reply()
    assert reply.status == status
    assert b"1.0" in data or reply.headers["connection"].lower() == "close"
    assert "transfer-encoding" not in reply.headers
    assert caller.rest() == b""


def test_http10_keeps_the_connection_on_demand(call, marked) -> None:
    """As long as each request asks for it."""
    caller = call(marked)
    for _ in range(2):
        caller.send(request("POST", INFER, tensor(2), "Connection: Keep-Alive", version="1.0"))
        reply = caller.reply()
        assert reply.doubled() == [4.0, 1.0]
        assert reply.headers["connection"].lower() == "keep-alive"
    caller.send(request("GET", LIVE, version="1.0"))
    assert caller.reply().status == 200
    assert caller.rest() == b""


def test_http10_has_no_chunks(call, marked) -> None:
    """Refused, or read and then closed: nothing behind such a body is a request."""
    caller = call(marked)
    head = f"POST {INFER} HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    caller.send(head, SIZE, b"\r\n", BODY, b"\r\n0\r\n\r\n", request("GET", LIVE))
    assert caller.reply().status in (200, 400, 501)
    assert caller.rest() == b""


def test_who_ends_its_half_gets_a_whole_answer_or_none(call, marked, gated) -> None:
    """Who has said all may still listen, or may have left: on HTTP/1.1 nobody can tell."""
    caller = call(marked)
    with gated(marked) as gate:
        caller.send(infer(7))
        gate.wait_for_rows(1)
        caller.socket.shutdown(socket.SHUT_WR)
        caller.settle()
    if caller.comes_more():
        assert caller.reply().doubled() == [14.0, 1.0]
    assert caller.rest() == b""


@pytest.mark.parametrize("data", [b"", b"GET", infer(1)[:40], infer(1)[:-5], START + b"5\r\nhel"])
def test_an_end_in_the_middle_is_the_end(call, marked, data: bytes) -> None:
    """Half a request is not answered with success."""
    caller = call(marked)
    caller.send(data)
    caller.socket.shutdown(socket.SHUT_WR)
    assert caller.rest()[:12] in (b"", b"HTTP/1.1 400")


# Answers without a body, odd targets, offers to switch


@pytest.mark.parametrize("target", [LIVE, "/v2/models/marked", "/none", "/metrics", INFER])
def test_head_is_answered_without_a_body(call, marked, target: str) -> None:
    """The status and headers tell, no byte follows, and the next answer is in step."""
    caller = call(marked)
    caller.send(request("HEAD", target), request("GET", LIVE))
    head = caller.reply("HEAD")
    assert caller.reply().body == ALIVE
    assert head.status in (200, 404, 405)
    if head.status == 200 and target != "/metrics":  # which have another length each time
        caller.send(request("GET", target))
        assert caller.reply().headers["content-length"] == head.headers["content-length"]


@pytest.mark.parametrize(
    ("target", "status", "text"),
    [
        ("http://torpor/v2/health/live", 200, "live"),
        ("http://torpor:8080/v2/health/live?a=b", 200, "live"),
        ("HTTP://other/v2/health/live", 200, "live"),
        ("http://torpor", 200, "alive"),
        ("http://torpor/", 200, "alive"),
        ("http://torpor/none", 404, "/none"),
        ("/v2/health/live?a=http://torpor/none", 200, "live"),
        ("/v2/health/live?", 200, "live"),
        ("/v2/%68ealth/live", 200, "live"),
    ],
)
def test_targets_in_all_forms(call, marked, target: str, status: int, text: str) -> None:
    """A whole address is its path; a query doesn't matter."""
    caller = call(marked)
    caller.send(request("GET", target))
    reply = caller.reply()
    assert reply.status == status
    assert text in reply.body.decode()
    assert caller.is_in_step()


def test_an_inference_by_the_whole_address(call, marked) -> None:
    """As through a proxy."""
    caller = call(marked)
    caller.send(request("POST", "http://torpor" + INFER, tensor(2)))
    assert caller.reply().doubled() == [4.0, 1.0]
    assert caller.is_in_step()


@pytest.mark.parametrize(
    ("method", "target", "statuses"),
    [
        ("OPTIONS", "*", {200, 204, 400, 404, 405, 501}),
        ("OPTIONS", LIVE, {200, 204, 404, 405}),
        ("CONNECT", "torpor:80", {400, 404, 405, 501}),
        ("CONNECT", "/", {400, 404, 405, 501}),
        ("GET", "*", {400, 404}),
        ("GET", "v2/health/live", {400, 404}),
        ("TRACE", LIVE, {400, 405, 501}),
        ("get", LIVE, {400, 405, 501}),
        ("BREW", LIVE, {400, 405, 501}),
        ("M" * 200, LIVE, {400, 405, 501}),
    ],
)  # fmt: skip
def test_odd_methods_and_targets_get_an_answer(call, marked, method: str, target: str, statuses: set[int]) -> None:
    """None is a success that opens a tunnel or repeats the request; what follows is in step or not answered."""
    caller = call(marked)
    caller.send(request(method, target))
    reply = caller.reply()
    assert reply.status in statuses
    assert len(reply.body) < 700
    caller.is_in_step()


@pytest.mark.parametrize(
    "headers",
    [
        ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"],
        ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBs"],
        ["Connection: upgrade", "Upgrade: TLS/1.0, other/7"],
        ["Upgrade: h2c"],
    ],
    ids=["h2c", "websocket", "others", "without the option"],
)
def test_offers_to_switch_are_ignored(call, marked, headers: list[str]) -> None:
    """The request is answered as usual, with a body too, and the connection stays HTTP/1.1."""
    caller = call(marked)
    caller.send(request("GET", LIVE, None, *headers))
    assert caller.reply().body == ALIVE
    caller.send(infer(8, *headers))
    assert caller.reply().doubled() == [16.0, 1.0]
    assert caller.is_in_step()


# Expect: 100-continue

EXPECT = "Expect: 100-continue"


@pytest.mark.parametrize("expect", [EXPECT, "expect: 100-Continue"])
def test_who_expects_to_continue_is_told_to(call, marked, expect: str) -> None:
    """100 comes before the body, the answer after it, and the next request is told nothing."""
    caller = call(marked)
    head = request("POST", INFER, BODY, expect).removesuffix(BODY)
    for _ in range(2):
        caller.send(head)
        assert caller.reply().status == 100
        caller.send(BODY)
        assert caller.reply().doubled() == [12.0, 1.0]
    caller.send(infer(1))
    assert caller.reply().doubled() == [2.0, 1.0]


def test_chunks_continue_too(call, marked) -> None:
    """A body without a known length may be expected as well."""
    caller = call(marked)
    caller.send(request("POST", INFER, None, "Transfer-Encoding: chunked", EXPECT))
    assert caller.reply().status == 100
    caller.send(SIZE, b"\r\n", BODY, b"\r\n0\r\n\r\n")
    assert caller.reply().doubled() == [12.0, 1.0]
    assert caller.is_in_step()


@pytest.mark.parametrize(
    ("method", "target", "length", "status"),
    [("POST", "/none", 20, 404), ("PUT", INFER, 20, 405), ("POST", INFER, 1 << 40, 413), ("POST", LIVE, 20, 405)],
)
def test_a_refusal_comes_instead_of_continue(call, marked, method: str, target: str, length: int, status: int) -> None:
    """The final status at once; then the end, or a connection on which the body may still come."""
    caller = call(marked)
    caller.send(request(method, target, None, EXPECT, f"Content-Length: {length}"))
    reply = caller.reply()
    assert reply.status == status
    if reply.headers.get("connection", "").lower() == "close":
        assert caller.rest() == b""
    elif length < 1000:
        caller.send_anyway(b"x" * length)
        caller.is_in_step()


@pytest.mark.parametrize(
    ("data", "may_continue"),
    [
        (infer(9, EXPECT), True),
        (request("POST", INFER, tensor(9), EXPECT, version="1.0"), False),
    ],
    ids=["body at once", "HTTP/1.0"],
)
def test_who_does_not_wait_gets_its_answer(call, marked, data: bytes, may_continue: bool) -> None:
    """100 may come before the answer to a body that is there already, never to HTTP/1.0."""
    caller = call(marked)
    caller.send(data)
    reply = caller.reply()
    if may_continue and reply.status == 100:
        reply = caller.reply()
    assert reply.doubled() == [18.0, 1.0]


def test_continue_waits_for_its_turn(call, marked, gated) -> None:
    """Behind an inference that waits, 100 comes after its answer: it would be taken for part of that."""
    caller = call(marked)
    with gated(marked) as gate:
        caller.send(infer(1), request("POST", INFER, BODY, EXPECT).removesuffix(BODY))
        gate.wait_for_rows(1)
        caller.settle()
        assert caller.is_silent()
    assert caller.reply().doubled() == [2.0, 1.0]
    assert caller.reply().status == 100
    caller.send(BODY)
    assert caller.reply().doubled() == [12.0, 1.0]


def test_other_expectations_fail_or_are_ignored(call, marked) -> None:
    """417 is allowed, an answer as usual too."""
    caller = call(marked)
    caller.send(infer(1, "Expect: tea"))
    assert caller.reply().status in (200, 417)
    caller.is_in_step()


# Too much


def fields(size: int) -> str:
    """Header lines of about so many bytes."""
    return "".join(f"X-{number}: {'a' * 490}\r\n" for number in range(size // 500))


def test_a_head_of_60_kib_is_fine(call, marked) -> None:
    """Cookies and tokens may be long: in one header or in a hundred."""
    caller = call(marked)
    for extra in (fields(50_000), f"Cookie: {'a' * 60_000}\r\n"):
        caller.send(GET.encode(), extra.encode(), b"\r\n")
        assert caller.reply().status == 200


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(GET + f"X-A: {'a' * (66 << 10)}\r\n\r\n", id="one header"),
        pytest.param(GET + fields(80 << 10) + "\r\n", id="many headers"),
        pytest.param(GET + "a: b\r\n" * (20 << 10) + "\r\n", id="small headers"),
        pytest.param(f"GET /{'a' * (66 << 10)} HTTP/1.1\r\nHost: torpor\r\n\r\n", id="target"),
        pytest.param("G" * (100 << 10), id="method without end"),
        pytest.param(GET + "X" * (1 << 20), id="name without end"),
        pytest.param(GET + "X-A: " + "a" * (1 << 20), id="value without end"),
        pytest.param(GET + fields(1 << 20), id="headers without end"),
    ],
)
def test_a_head_of_more_than_64_kib_is_refused(call, marked, head: str) -> None:
    """431, or 414 for the target, 400 for what begins no request; the caller can read it; then the end."""
    caller = call(marked)
    caller.send_anyway(head.encode())
    reply = caller.reply()
    assert reply.status in ((400, 414, 431) if head.startswith(("GG", "GET /a")) else (431,))
    assert caller.rest() == b""


@pytest.mark.parametrize(
    "length", ["9" * 30, "9" * 5000, str(1 << 63), str(1 << 64), "00000000000000000000009999999999"]
)
def test_lengths_beyond_all_bounds_are_refused(call, marked, length: str) -> None:
    """400 or 413, and the end."""
    caller = call(marked)
    caller.send(BOTH.encode(), f"Content-Length: {length}\r\n\r\n".encode(), request("GET", LIVE))
    assert caller.reply().status in (400, 413)
    assert caller.rest() == b""


BLANK = b" " * (8 << 20)
LARGE = {
    "content-length": request("POST", "/v2/models/echo/infer", BLANK),
    "chunked": request("POST", "/v2/models/echo/infer", None, "Transfer-Encoding: chunked")
    + b"%x\r\n%s\r\n" % (1 << 16, b" " * (1 << 16)) * 128
    + b"0\r\n\r\n",
    "one chunk": request("POST", "/v2/models/echo/infer", None, "Transfer-Encoding: chunked")
    + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BLANK), BLANK),
}


@pytest.mark.parametrize("data", LARGE.values(), ids=LARGE)
def test_a_body_over_the_limit_is_refused_while_it_comes(call, echo, data: bytes) -> None:
    """A caller that listens while it sends gets 413 before it has sent everything; it is not cut off before it reads it."""
    caller = call(echo)
    sent, step = 0, 1 << 16
    while sent < len(data) and caller.is_silent():
        sent += caller.socket.send(data[sent : sent + step])
        caller.settle()
    assert sent < 4 << 20
    caller.send_apart(data[sent : sent + step], data[sent + step : sent + 2 * step])
    reply = caller.reply()
    assert reply.status == 413
    assert "must be in [0, 1048576]" in reply.body.decode()


@pytest.mark.parametrize("data", LARGE.values(), ids=LARGE)
def test_who_sends_all_of_a_body_over_the_limit_reads_413_too(call, echo, data: bytes) -> None:
    """A caller that listens only afterwards finds the answer; then the end, or a connection in step."""
    caller = call(echo)
    caller.send_anyway(data)
    assert caller.reply().status == 413
    caller.is_in_step()


@pytest.mark.parametrize("size", [10, 300 << 10])
@pytest.mark.parametrize("framing", ["content-length", "chunked"])
@pytest.mark.parametrize("apart", [False, True], ids=["at once", "body later"])
def test_an_early_answer_does_not_confuse_the_next(call, marked, size: int, framing: str, apart: bool) -> None:
    """A body that nobody reads, and that looks like requests, is not taken for requests."""
    body = (request("GET", "/smuggled") * (size // 40 + 1))[:size]
    if framing == "content-length":
        data = request("POST", "/none", body)
    else:
        data = request("POST", "/none", None, "Transfer-Encoding: chunked") + b"%x\r\n%s\r\n0\r\n\r\n" % (size, body)
    caller = call(marked)
    if apart:
        head, _, rest = data.partition(b"\r\n\r\n")
        caller.send_apart(head + b"\r\n\r\n")
        caller.send_anyway(rest)
    else:
        caller.send_anyway(data)
    reply = caller.reply()
    assert (reply.status, "/none" in reply.body.decode()) == (404, True)
    caller.is_in_step()


# Callers that leave and callers that are slow


@pytest.mark.parametrize("way", ["close", "reset"])
def test_who_leaves_while_it_waits_harms_nobody(call, marked, gated, way: str) -> None:
    """Others in the same batch, before and after, get their answers."""
    leaving, staying = [call(marked) for _ in range(8)], [call(marked) for _ in range(4)]
    with gated(marked) as gate:
        for number, caller in enumerate([*staying[:2], *leaving, *staying[2:]], start=1):
            caller.send(infer(number))
            gate.wait_for_rows(number)
        for caller in leaving:
            if way == "reset":
                caller.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CLOSE)
            caller.__exit__()
        staying[0].settle()
    firsts = [caller.reply().doubled()[0] for caller in staying]
    assert firsts == [2.0, 4.0, 22.0, 24.0]


def test_who_leaves_in_the_middle_of_an_answer_harms_nobody(call, echo, binary_request) -> None:
    """Its large answer goes nowhere; the others' come."""
    body, headers = binary_request({"x": np.arange(100_000, dtype="<f8").reshape(1, -1)})
    data = request("POST", "/v2/models/echo/infer", body, *(f"{name}: {value}" for name, value in headers.items()))
    for _ in range(5):
        caller = call(echo, receive_buffer=4096)
        caller.send(data)
        assert caller.socket.recv(100).startswith(b"HTTP/1.1 200")
        caller.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CLOSE)
        caller.__exit__()
    other = call(echo)
    other.send(data)
    assert len(other.reply().body) > 800_000


def test_who_reads_slowly_holds_up_nobody(call, echo, binary_request) -> None:
    """Sixteen large answers that nobody reads leave others theirs, and are whole when they are read at last."""
    values = np.arange(100_000, dtype="<f8").reshape(1, -1)
    body, headers = binary_request({"x": values})
    data = request("POST", "/v2/models/echo/infer", body, *(f"{name}: {value}" for name, value in headers.items()))
    slow, other = call(echo, receive_buffer=4096), call(echo)
    sending = threading.Thread(target=slow.send, args=[data] * 16)
    sending.start()
    for _ in range(20):
        other.send(data)
        assert other.reply().body.endswith(values.tobytes())
    for _ in range(16):
        assert slow.reply().body.endswith(values.tobytes())
    sending.join(TIMEOUT_S)
    assert slow.is_in_step()


def test_heads_that_never_end_hold_up_nobody(call, marked) -> None:
    """Two hundred connections that say a little and no more."""
    slow = [call(marked) for _ in range(200)]
    for number, caller in enumerate(slow):
        caller.send(infer(1)[: number % 120])
    caller = call(marked)
    caller.send(infer(1))
    assert caller.reply().doubled() == [2.0, 1.0]
    slow[100].send(infer(1)[100:])
    assert slow[100].reply().doubled() == [2.0, 1.0]


def test_idle_connections_do_not_hold_up_the_end(call, serve) -> None:
    """At SIGTERM they are closed: kept ones, new ones, and such as have begun a request."""
    server = serve("marked", "--drain-quiet-s", "0")
    kept, new, begun = (call(server) for _ in range(3))
    kept.send(infer(1))
    assert kept.reply().doubled() == [2.0, 1.0]
    begun.send_apart(infer(1)[:50])
    server.process.send_signal(signal.SIGTERM)
    for caller in (kept, new):
        assert caller.rest() == b""
    assert begun.rest()[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 408", b"HTTP/1.1 503")
    assert server.wait() == 0


# Any cuts

Answer = tuple[int, object]


def chunks_of(body: bytes) -> st.SearchStrategy[bytes]:
    """A request with this body in any chunks."""
    cuts = st.lists(st.integers(1, len(body) - 1), unique=True, max_size=6).map(sorted)
    trailers = st.sampled_from([b"", b"X-Sum: 1\r\n"])
    pieces = cuts.map(lambda cuts: [body[a:b] for a, b in pairwise([0, *cuts, len(body)])])
    return st.builds(chunked, pieces, trailers)


EXCHANGES: list[tuple[str, st.SearchStrategy[bytes], Answer]] = [
    ("GET", st.just(request("GET", LIVE)), (200, ALIVE)),
    ("HEAD", st.just(request("HEAD", LIVE)), (200, b"")),
    ("GET", st.just(request("GET", "/none")), (404, b'{"error":"path /none is unknown"}')),
    ("DELETE", st.just(request("DELETE", LIVE)), (405, b'{"error":"method DELETE is not allowed, must be GET"}')),
    ("POST", st.just(infer(1)), (200, [2.0, 1.0])),
    ("POST", st.just(infer(2, "Connection: Upgrade", "Upgrade: h2c")), (200, [4.0, 1.0])),
    ("POST", chunks_of(tensor(3)), (200, [6.0, 1.0])),
    ("POST", chunks_of(tensor(4)), (200, [8.0, 1.0])),
    ("POST", st.just(request("POST", INFER, request("GET", "/smuggled"))), (400, None)),
    ("POST", chunks_of(b"0\r\n\r\n" + request("GET", "/smuggled")), (400, None)),
    ("POST", st.just(request("POST", INFER, b"")), (400, None)),
]


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_any_cuts_of_a_conversation_give_the_same_answers(marked, data: st.DataObject) -> None:
    """Pipelined requests with bodies of known length and in chunks, in segments that end anywhere."""
    exchanges = data.draw(st.lists(st.sampled_from(EXCHANGES), min_size=1, max_size=6), label="exchanges")
    stream = b"".join(data.draw(requests) for _, requests, _ in exchanges)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted), label="cuts")
    with Caller(marked) as caller:
        caller.send_apart(*(stream[a:b] for a, b in pairwise([0, *cuts, len(stream)])))
        for method, _, (status, content) in exchanges:
            reply = caller.reply(method)
            assert reply.status == status
            if isinstance(content, list):
                assert reply.doubled() == content
            elif content is None:
                assert "the body is not JSON" in reply.body.decode()
            else:
                assert reply.body == content
        assert caller.is_in_step()
