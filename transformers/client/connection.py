"""One HTTP/1.1 connection: one request after the other, each answered before the next is sent (RFC 9112).

Answers are read by llhttp (httptools), in its strict mode: what two readers could understand differently is no answer.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import NamedTuple, Protocol

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from torpor.predictors.errors import PredictorFailed, TorporError
from torpor.predictors.remembered import Remembered

from .address import Address
from .message import Piece, Reply

_MOST_HEAD_BYTES = 64 << 10
_MOST_FIELDS = 256
_LARGEST_KEPT_BYTES = 1024
_JOINED_BYTES = 64 << 10
"""Longer messages are handed to the system in their pieces."""


class _Head(NamedTuple):
    """A head as it was read before, of an answer with a body of `length` bytes, after which the connection stayed open."""

    status: int
    headers: dict[bytes, bytes]
    length: int


_HEADS: Remembered[bytes, _Head] = Remembered(512)
"""By their bytes: a server sends few different ones a second (the Date field), and a look-up costs a tenth of it."""


class Exchange:
    """A request and whom its answer is for. `answer` is called once, unless it is cancelled before.

    connection: that it was sent on; None while it waits for one.
    """

    __slots__ = ("_owner", "answer", "connection", "message")

    def __init__(self, message: list[Piece], answer: Callable[[Reply | TorporError], None], owner: "Owner") -> None:
        self.message = message
        self.answer: Callable[[Reply | TorporError], None] | None = answer
        self.connection: Connection | None = None
        self._owner = owner

    def finish(self, result: Reply | TorporError) -> None:
        answer, self.answer, self.connection = self.answer, None, None
        if answer is not None:
            answer(result)

    def cancel(self) -> None:
        """Nobody waits any more. Who has sent a request can only close the connection: so the other end learns of it."""
        if self.answer is not None:
            self.answer = None
            if self.connection is None:
                self._owner.withdraw(self)
            else:
                self.connection.abort()


class Owner(Protocol):
    """What a connection, or an exchange, tells whoever has opened it: `pool.Pool`."""

    @property
    def address(self) -> Address: ...

    def freed(self, connection: "Connection") -> None:
        """It can take another request."""

    def closed(self, connection: "Connection") -> None:
        """It takes none any more."""

    def again(self, exchange: Exchange) -> None:
        """It was sent where nobody read it."""

    def withdraw(self, exchange: Exchange) -> None:
        """It waits no longer."""


class Connection(asyncio.Protocol):
    """The protocol of one connection. max_answer_bytes: largest body of an answer."""

    # Of the answer that is coming.
    _headers: dict[bytes, bytes]
    _body: list[bytes]
    _status: int
    _size: int
    _head: bytes
    _head_bytes: int
    _fields: int
    _wrong: str
    _has_begun: bool
    _has_head: bool
    _is_complete: bool
    _keeps_alive: bool
    _ends_with_connection: bool

    def __init__(self, owner: Owner, max_answer_bytes: int) -> None:
        self.idle_sweeps = 0
        """How often its owner has found it idle since it was last used."""
        self._owner = owner
        self._max_answer_bytes = max_answer_bytes
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._parser = HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._requests = 0
        self.is_closed = False
        self._begin_answer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None:  # a peer that is gone without a word is found by the kernel
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def send(self, exchange: Exchange) -> None:
        """Nothing else may be under way here."""
        exchange.connection = self
        self._exchange = exchange
        self._requests += 1
        message = exchange.message
        if sum(map(len, message)) <= _JOINED_BYTES:
            self._transport.write(b"".join(message))
        else:
            self._transport.writelines(message)

    def abort(self) -> None:
        """Close at once; the exchange under way gets no answer."""
        self._exchange = None
        self.is_closed = True
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._exchange is None:  # nobody has asked for it
            self.abort()
            return
        if not self._has_begun:
            end = data.find(b"\r\n\r\n") + 4
            kept = _HEADS.get(data[:end])
            if kept is not None and kept.length == len(data) - end:  # the usual case
                self._finish(Reply(kept.status, kept.headers, data[end:]), True)
                return
            self._has_begun = True
            self._head = data[:end] if end <= _LARGEST_KEPT_BYTES else b""
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            if not self._is_complete:
                self._fail_malformed(self._wrong or f"is no HTTP/1.1: {error}")
                return
            self._keeps_alive = False  # more has come than was asked for
        if self._is_complete:
            self._keep_head()
            reply, keeps_alive = self._reply(), self._keeps_alive
            self._begin_answer()
            self._finish(reply, keeps_alive)
        elif not self._has_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MOST_HEAD_BYTES:
                self._fail_malformed(f"has head = {self._head_bytes} bytes or more, must be in [0, {_MOST_HEAD_BYTES}]")

    def eof_received(self) -> None:
        """No more is sent from there, and the transport closes, which `connection_lost` sees to."""
        self.is_closed = True

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closed = True
        exchange, self._exchange = self._exchange, None
        self._owner.closed(self)
        if exchange is None:
            return
        if self._ends_with_connection and error is None:
            exchange.finish(self._reply())
        elif self._requests > 1 and not self._has_begun:
            # It was closed while idle, and the request came too late: whoever reads a request answers it.
            exchange.connection = None
            self._owner.again(exchange)
        else:
            when = "in the middle of its answer" if self._has_begun else "without an answer"
            exchange.finish(PredictorFailed(f"{self._owner.address} closed the connection {when}"))

    def on_message_begin(self) -> None:
        if self._is_complete:
            self._refuse("came with another one")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        if self._fields > _MOST_FIELDS:
            self._refuse(f"has more than {_MOST_FIELDS} header fields")
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        headers = self._headers
        self._status = self._parser.get_status_code()
        self._has_head = self._status >= 200
        has_end = b"content-length" in headers or b"transfer-encoding" in headers or self._status in (204, 304)
        self._ends_with_connection = self._has_head and not has_end
        length = headers.get(b"content-length", b"")
        if len(length) > 20 or (length.isdigit() and int(length) > self._max_answer_bytes):
            self._refuse_size(length[:20].decode("latin-1"))

    def on_body(self, piece: bytes) -> None:
        self._body.append(piece)
        self._size += len(piece)
        if self._size > self._max_answer_bytes:
            self._refuse_size(f"{self._size} or more")

    def on_message_complete(self) -> None:
        if self._has_head:
            self._is_complete = True
            self._keeps_alive = self._parser.should_keep_alive()
        else:  # 100 Continue and its like announce the answer
            self._headers = {}
            self._head = b""

    def _begin_answer(self) -> None:
        self._headers = {}
        self._body = []
        self._head = b""
        self._status = self._size = self._head_bytes = self._fields = 0
        self._wrong = ""
        self._has_begun = self._has_head = self._ends_with_connection = False
        self._is_complete = self._keeps_alive = False

    def _reply(self) -> Reply:
        body = self._body
        return Reply(self._status, self._headers, body[0] if len(body) == 1 else b"".join(body))

    def _keep_head(self) -> None:
        """Let answers with the same head, when they come in one piece, be read by a look-up."""
        length = self._headers.get(b"content-length", b"")
        if self._head and self._keeps_alive and length.isdigit():
            _HEADS.keep(self._head, _Head(self._status, self._headers, int(length)))

    def _finish(self, reply: Reply, keeps_alive: bool) -> None:
        exchange, self._exchange = self._exchange, None
        assert exchange is not None
        if keeps_alive:
            exchange.connection = None
            self._owner.freed(self)  # before the answer: whoever gets it may ask again at once
        else:
            self.is_closed = True
            self._transport.close()
        exchange.finish(reply)

    def fail(self, error: TorporError) -> None:
        """Close at once; the exchange under way ends with the error."""
        exchange = self._exchange
        self.abort()
        if exchange is not None:
            exchange.finish(error)

    def _fail_malformed(self, why: str) -> None:
        self.fail(PredictorFailed(f"the answer of {self._owner.address} {why}"))

    def _refuse_size(self, size: str) -> None:
        self._refuse(f"has body = {size} bytes, must be in [0, {self._max_answer_bytes}]")

    def _refuse(self, why: str) -> None:
        """End what the parser does with the bytes."""
        self._wrong = why
        raise ValueError(why)
