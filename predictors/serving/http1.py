"""HTTP/1.1 on one connection: requests one after the other, each answered before the next is looked at (RFC 9112).

A caller that closes its side while it waits has left, as for Go's server and Envoy: its rows are not run for nobody.
"""

import asyncio
import math
import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from ..errors import HeadTooLarge, InvalidInput, RequestTimeout, TorporError
from ..remembered import Remembered
from .exchange import Exchange, Fields, Head
from .http1_head import MAX_HEAD_BYTES, ChunkedBody, read_head
from .request_options import NO_OPTIONS

if TYPE_CHECKING:
    from .server import HttpServer

_HEADS: Remembered[bytes, Head] = Remembered(512)
"""Heads by their bytes: callers send few different ones, and a look-up costs a twentieth of reading one."""

_LARGEST_KEPT_BYTES = 1024
_SECRET = re.compile(rb"\r\n(?:authorization|cookie|proxy-authorization):", re.IGNORECASE)

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in HTTPStatus}

_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")

IDLE_S = 600.0
"""Between requests. Long: proxies keep connections, and one that is closed just as it is used again is a lost request."""
HEAD_S = 15.0
"""From a head's first byte to its last."""
PROGRESS_S = 30.0
"""For the next bytes of a body to come, or of an answer to be taken."""
LINGER_S = 5.0
"""For a caller to stop sending what nobody wants: closing at once would destroy the answer on its way."""

_MOST_SKIPPED_BYTES = 256 << 10
"""A longer rest of a refused body is not read for the sake of the connection."""
_MOST_PIPELINED_BYTES = 256 << 10


class Http1(asyncio.Protocol):
    """The protocol of one connection."""

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._app = server.app
        self._deadline_s = math.inf
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._waiting = bytearray()
        """Bytes that belong to no body yet: a head that is not whole, or what is pipelined."""
        self._last_block = b""
        self._last_head: Head | None = None
        self._exchange: _Http1Exchange | None = None
        """The request that is being read or answered."""
        self._body: list[bytes] = []
        self._missing = 0
        """Bytes of the body that have not come; with chunks 1 until the last has."""
        self._size = 0
        self._chunks: ChunkedBody | None = None
        self._is_closing = False
        self._is_blocked = False
        self._untaken_bytes = 0
        """Of answers, when the time to take the next of them began."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._deadline_s = self._server.now_s + IDLE_S
        self._server.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._is_closing:
            return
        if self._missing:
            data = self._take_body(data)
        if data:
            self._parse(data)

    def eof_received(self) -> None:
        """The caller sends no more: it has left, and the transport closes, which `connection_lost` sees to."""

    def connection_lost(self, error: Exception | None) -> None:
        self._server.closed(self)
        self._is_closing = True
        if self._exchange is not None:
            self._exchange.leave()

    def pause_writing(self) -> None:
        self._is_blocked = True
        self._untaken_bytes = self._transport.get_write_buffer_size()
        self._deadline_s = self._server.now_s + PROGRESS_S

    def resume_writing(self) -> None:
        self._is_blocked = False
        if self._is_closing:
            self._deadline_s = self._server.now_s + LINGER_S
            return
        if self._exchange is None:
            self._deadline_s = self._server.now_s + IDLE_S
        else:
            self._deadline_s = self._server.now_s + PROGRESS_S if self._missing else math.inf
            self._exchange.let_go()
        self._parse(b"")

    def sweep(self) -> None:
        """End what has lasted too long: answer where that can be done, else close."""
        if self._server.now_s < self._deadline_s:
            return
        if self._is_blocked and self._transport.get_write_buffer_size() < self._untaken_bytes:
            self.pause_writing()  # it takes a large answer slowly, which was given to the transport in one piece
        elif self._is_closing or self._is_blocked:
            self._transport.abort()
        elif self._exchange is not None and not self._exchange.is_answered:
            self._refuse_body(self._exchange, RequestTimeout(f"the body stopped coming for {PROGRESS_S:g} s"))
        elif self._waiting:
            self._refuse_head(RequestTimeout(f"the request's head took more than {HEAD_S:g} s"))
        else:
            self.shutdown()

    def shutdown(self) -> None:
        """Close, unless something is being answered: then `_finish` does."""
        if self._is_closing:
            return
        if self._exchange is None:
            self._is_closing = True
            self._transport.close()
        elif self._exchange.is_answered:  # the rest of a refused body has not come
            self._close_after_answer()

    def abort(self) -> None:
        self._transport.abort()

    def _parse(self, data: bytes) -> None:
        """Begin requests as long as whole heads are there and nothing is being answered."""
        if self._waiting:
            self._waiting += data
            data = b""
        if self._exchange is not None or self._is_blocked:
            self._waiting += data
            if len(self._waiting) > _MOST_PIPELINED_BYTES:
                self._transport.pause_reading()
            return
        if self._waiting:
            data = bytes(self._waiting)
            self._waiting.clear()
            self._transport.resume_reading()
        while data and self._exchange is None and not (self._is_closing or self._is_blocked):
            if self._last_head is not None and data.startswith(self._last_block):  # mostly so, and its end is known
                head, end = self._last_head, len(self._last_block)
            else:
                end = data.find(b"\r\n\r\n") + 4
                if end < 4 or end > MAX_HEAD_BYTES:
                    data = self._wait_for_head(data)
                    break
                try:
                    head = self._read_head(data[:end])
                except TorporError as error:
                    self._refuse_head(error)
                    break
            exchange = self._exchange = _Http1Exchange(head, self)
            self._server.in_flight += 1
            self._deadline_s = math.inf
            length = head.length
            if length is None or end + length > len(data):
                data = self._begin_body(exchange, data[end:])
                continue
            if self._wants_body(exchange, length):  # the usual case: all of it is here
                exchange.body = data[end : end + length]
                self._app.answer(exchange)
            data = data[end + length :]
        self._waiting += data

    def _read_head(self, block: bytes) -> Head:
        """The head in `block`, which is mostly the one that this connection, or another, sent before."""
        head = _HEADS.get(block)
        if head is None:
            head = read_head(block.removeprefix(b"\r\n"))
            # An event's has its id, and does not come again.
            if not head.options.is_event and len(block) <= _LARGEST_KEPT_BYTES and not _SECRET.search(block):
                _HEADS.keep(block, head)
        self._last_block, self._last_head = block, head
        return head

    def _wait_for_head(self, data: bytes) -> bytes:
        """What is kept until more comes. Anything that cannot become a head is refused at once."""
        if len(data) >= MAX_HEAD_BYTES:
            self._refuse_head(HeadTooLarge(f"head = {len(data)} bytes or more, must be in [0, {MAX_HEAD_BYTES}]"))
        elif _BARE_LINE_FEED.search(data):
            self._refuse_head(InvalidInput("lines must end with CR LF"))
        else:
            self._deadline_s = min(self._deadline_s, self._server.now_s + HEAD_S)
        return data

    def _begin_body(self, exchange: "_Http1Exchange", data: bytes) -> bytes:
        """Open a request whose body has only begun to come; what of `data` follows it."""
        head = exchange.head
        length = head.length
        self._missing = 1 if length is None else length
        self._chunks = ChunkedBody() if length is None else None
        self._size = 0
        if self._wants_body(exchange, length or 0) and head.awaits_continue and not data:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return b"" if self._is_closing else self._take_body(data)

    def _wants_body(self, exchange: "_Http1Exchange", length: int) -> bool:
        """Open the exchange; False if it has been refused."""
        if not self._app.open(exchange):
            return False
        if length > self._server.max_body_bytes:
            self._app.refuse(exchange, self._server.too_large(length))
            return False
        return True

    def _take_body(self, data: bytes) -> bytes:
        """Take what belongs to the body and answer when it is whole; what follows it."""
        exchange = self._exchange
        assert exchange is not None
        rest: bytes | None
        if self._chunks is not None:
            try:
                pieces, rest = self._chunks.feed(data)
            except TorporError as error:
                if exchange.is_answered:
                    self._close_after_answer()
                else:
                    self._refuse_body(exchange, error)
                return b""
            size = sum(map(len, pieces))
        else:
            pieces = [data[: self._missing]]
            size = len(pieces[0])
            self._missing -= size
            rest = None if self._missing else data[size:]
        self._size += size
        self._deadline_s = self._server.now_s + PROGRESS_S
        if exchange.is_answered:  # it was refused, and what comes is read for the sake of the next request
            if rest is None:
                if self._size > _MOST_SKIPPED_BYTES:
                    self._close_after_answer()
                return b""
            self._missing = 0
            self._finish()
            return rest
        if self._size > self._server.max_body_bytes:
            self._refuse_body(exchange, self._server.too_large(self._size))
            return b""
        self._body += pieces
        if rest is None:
            self._server.hold(exchange, size, len(pieces))
            return b""
        self._server.release(exchange)
        self._missing = 0
        self._deadline_s = math.inf
        exchange.body = b"".join(self._body)
        self._body = []
        self._app.answer(exchange)
        return rest

    def _refuse_body(self, exchange: "_Http1Exchange", error: TorporError) -> None:
        """Answer a request whose body is not read to its end; nothing after it can be read either."""
        exchange.closes = True
        self._app.refuse(exchange, error)

    def _refuse_head(self, error: TorporError) -> None:
        """Answer what is no request, and close: where the next one begins is not known."""
        body, fields = self._app.malformed(error)
        self._write(error.http_status, body, fields, b"close", with_body=True)
        self._close_after_answer()

    def respond(self, exchange: "_Http1Exchange", status: int, body: bytes, fields: Fields) -> None:
        """Write the exchange's answer and go on with the next request, or close."""
        head = exchange.head
        if self._server.lets_go(self) or (self._missing and self._cannot_skip(head)):
            exchange.closes = True
        self._write(status, body, fields, _connection_option(exchange), with_body=head.method != "HEAD")
        self._server.finished(head)
        if exchange.closes:
            self._close_after_answer()
        elif self._missing:  # refused early: the rest of its body is read for the sake of the next request
            self._drop_body(exchange)
        else:
            self._finish()

    def begin(self, exchange: "_Http1Exchange", status: int, fields: Fields) -> None:
        """Write the head of an answer in pieces: chunks, or to HTTP/1.0 whatever comes until the connection ends."""
        if self._server.lets_go(self) or not exchange.head.reads_chunks:
            exchange.closes = True
        framing = b"transfer-encoding: chunked" if exchange.head.reads_chunks else b""
        self._transport.write(self._head(status, framing, fields, _connection_option(exchange)))

    def send(self, exchange: "_Http1Exchange", data: bytes) -> bool:
        """Write a piece; whether the caller keeps up."""
        if exchange.head.reads_chunks:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._is_blocked:  # what comes on top is not what it fails to take
            self._untaken_bytes += len(data)
        self._transport.write(data)
        return not self._is_blocked

    def end(self, exchange: "_Http1Exchange") -> None:
        """End an answer in pieces, and go on as after any other."""
        if exchange.head.reads_chunks:
            self._transport.write(b"0\r\n\r\n")
        self._server.finished(exchange.head)
        if exchange.closes:
            self._close_after_answer()
        else:
            self._finish()

    def break_off(self, exchange: "_Http1Exchange") -> None:
        """End the connection, so that what came of an answer is not taken for the whole."""
        self._server.finished(exchange.head)
        if exchange.head.reads_chunks:  # its last chunk is missing
            self._close_after_answer()
        else:
            self._exchange = None
            self._transport.abort()

    def _cannot_skip(self, head: Head) -> bool:
        """Whether the rest of a refused body is not read, but the connection closed."""
        # Nobody knows whether a caller that was told no instead of "100 Continue" sends its body.
        return head.awaits_continue or self._missing > _MOST_SKIPPED_BYTES

    def _drop_body(self, exchange: "_Http1Exchange") -> None:
        """Nobody wants what has come of it."""
        self._body = []
        self._server.release(exchange)

    def left(self, exchange: "_Http1Exchange") -> None:
        """The caller is gone, unanswered."""
        self._server.finished(exchange.head)
        self._drop_body(exchange)
        self._exchange = None

    def _finish(self) -> None:
        self._exchange = None
        self._deadline_s = self._server.now_s + (PROGRESS_S if self._is_blocked else IDLE_S)
        if self._server.is_shutting_down:
            self.shutdown()
        elif self._waiting:
            self._parse(b"")

    def _close_after_answer(self) -> None:
        """Let the answer arrive: end our side, and read on until the caller ends its own or LINGER_S have passed."""
        self._is_closing = True
        if self._exchange is not None:
            self._drop_body(self._exchange)
            self._exchange = None
        self._waiting.clear()
        self._deadline_s = self._server.now_s + (PROGRESS_S if self._is_blocked else LINGER_S)
        self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        elif not self._missing:  # TLS ends both sides at once; nothing is on its way here
            self._transport.close()

    def _write(self, status: int, body: bytes, fields: Fields, connection: bytes, with_body: bool) -> None:
        # 204 has no body (RFC 9110, 8.6)
        framing = b"content-length: %d" % len(body) if status != 204 else b""
        head = self._head(status, framing, fields, connection)
        self._transport.write(head + body if with_body else head)

    def _head(self, status: int, framing: bytes, fields: Fields, connection: bytes) -> bytes:
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status]
        if framing:
            lines.append(framing)
        lines.append(b"date: " + self._server.date)
        for name, value in fields:
            lines.append(name + b": " + value)
        if connection:
            lines.append(b"connection: " + connection)
        lines += (b"", b"")
        return b"\r\n".join(lines)


class _Http1Exchange(Exchange):
    """closes: the connection ends with the answer. is_answered: nothing more is to be written."""

    __slots__ = ("_connection", "closes", "is_answered")

    def __init__(self, head: Head, connection: Http1) -> None:
        self.head = head  # as Exchange has it; a call less for each request
        self.body = b""
        self.handler = None
        self.on_leave = None
        self.has_begun = False
        self.on_ready = None
        self._connection = connection
        self.closes = not head.keeps_alive
        self.is_answered = False
        if head.options is not NO_OPTIONS:
            self._begin()

    def respond(self, status: int, body: bytes, fields: Fields = ()) -> None:
        if self.is_answered:
            return
        self.is_answered = True
        self.on_leave = None
        if self.has_begun:
            self.let_go()
            self._connection.break_off(self)
        else:
            self._connection.respond(self, status, body, fields)

    def begin(self, status: int, fields: Fields = ()) -> None:
        if not self.is_answered:
            self.has_begun = True
            self._connection.begin(self, status, fields)

    def send(self, data: bytes) -> bool:
        # A chunk of no bytes would be the last.
        return not data or self.is_answered or self._connection.send(self, data)

    def end(self) -> None:
        if not self.is_answered:
            self.is_answered = True
            self.on_leave = None
            self.let_go()
            self._connection.end(self)

    def leave(self) -> None:
        """The caller is gone."""
        if not self.is_answered:
            self.is_answered = True
            self._connection.left(self)
            self.let_go()
            if self.on_leave is not None:
                self.on_leave()


def _connection_option(exchange: _Http1Exchange) -> bytes:
    """The value of the answer's field Connection, "" for none."""
    # HTTP/1.0 has to be told that it was heard; who asked for nothing needs no answer.
    return b"close" if exchange.closes else b"keep-alive" if b"connection" in exchange.head.headers else b""
