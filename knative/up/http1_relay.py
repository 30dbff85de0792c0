"""HTTP/1.1 between a caller and a component: one request after the other, each held until it may go.

The head is read as strictly as torpor's server reads it (what two readers could understand differently is refused) and goes on
byte for byte, as bodies do, while they come. The connection behind is kept for the caller's next request.

A component that dies may leave a request unread in its connection; then the kernel resets that, or says so when it is asked,
where what was read whole ends in order. Without a body it can't have begun, and goes to the next instance. With a body it may
have been read in part, so its caller gets a 503 that lets it decide; what was read whole is lost (502).
"""

import asyncio
import errno
import re
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING

from torpor.predictors.errors import (
    DeadlineExceeded,
    HeadTooLarge,
    InvalidInput,
    PredictorFailed,
    TorporError,
    Unavailable,
)
from torpor.predictors.serving.http1_head import MAX_HEAD_BYTES, ChunkedBody, read_head
from torpor.predictors.serving.rest import error_body
from torpor.predictors.serving.tasks import Tasks

from .behind import connected
from .component import Component
from .gate import Ticket
from .http1_answer import Answer

if TYPE_CHECKING:
    from .activator import Activator

_MOST_HELD_BYTES = 1 << 20
"""Of a body whose request waits; the caller's next bytes are not read then."""
_LINGER_S = 2.0
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")


class Http1Relay(asyncio.Protocol):
    """One caller's connection."""

    def __init__(self, component: Component, activator: "Activator") -> None:
        self._component = component
        self._activator = activator
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._kept = b""
        """Bytes that belong to no request yet: a head that is not whole, or what is pipelined."""
        self._missing = 0
        """Bytes of the request's body that have not come; with chunks 1 until the last has."""
        self._chunks: ChunkedBody | None = None
        self._held: list[bytes] = []
        """The request's bytes that wait for the connection behind."""
        self._held_bytes = 0
        self._ticket: Ticket | None = None
        self._answer: Answer | None = None
        self._is_unanswered = True
        """Nothing of the answer has come."""
        self._again = b""
        """A request without a body, to be sent a second time if need be."""
        self._keeps_alive = True
        self._deadline: asyncio.TimerHandle | None = None
        self._behind: _Behind | None = None
        self._is_closing = False
        self._tasks = Tasks()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._activator.relays.add(self)

    def data_received(self, data: bytes) -> None:
        if self._is_closing:
            return
        if self._missing:
            data = self._take_body(data)
        if data:
            self._kept += data
            self._next()

    def connection_lost(self, error: Exception | None) -> None:
        self._activator.relays.discard(self)
        self._is_closing = True
        if self._ticket is not None:
            self._end(is_answered=False)
        self._drop_behind()
        if self._deadline is not None:
            self._deadline.cancel()

    def pause_writing(self) -> None:
        if self._behind is not None:
            self._behind.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._behind is not None:
            self._behind.transport.resume_reading()

    def finish(self) -> None:
        self._keeps_alive = False
        if self._ticket is None:
            self._close()

    def abort(self) -> None:
        self._transport.abort()

    def _next(self) -> None:
        """Begin the next request, if its head is here and nothing is being answered."""
        if self._ticket is not None or self._missing:
            if len(self._kept) > _MOST_HELD_BYTES:
                self._transport.pause_reading()
            return
        if self._activator.is_finishing:
            self._close()
            return
        end = self._kept.find(b"\r\n\r\n") + 4
        if end < 4 or end > MAX_HEAD_BYTES:
            if len(self._kept) >= MAX_HEAD_BYTES:
                self._refuse(HeadTooLarge(f"head = {len(self._kept)} bytes or more, must be in [0, {MAX_HEAD_BYTES}]"))
            elif _BARE_LINE_FEED.search(self._kept):
                self._refuse(InvalidInput("lines must end with CR LF"))
            return
        block, rest = self._kept[:end], self._kept[end:]
        self._kept = b""
        try:
            head = read_head(block.removeprefix(b"\r\n"))
        except TorporError as error:
            self._refuse(error)
            return
        self._transport.resume_reading()
        self._keeps_alive = head.keeps_alive
        self._answer = Answer(head.method)
        self._missing = 1 if head.length is None else head.length
        self._chunks = ChunkedBody() if head.length is None else None
        self._held, self._held_bytes = [block], end
        self._is_unanswered, self._again = True, b"" if self._missing else block
        ticket = self._ticket = Ticket(self._go, self._component.now_s())
        if self._missing:
            rest = self._take_body(rest)
            if self._ticket is not ticket:  # its body was refused
                return
        self._kept = rest
        try:
            self._component.enter(ticket)
        except TorporError as error:
            self._ticket = None
            self._refuse(error)
            return
        if self._ticket is ticket:
            self._deadline = self._loop.call_later(self._component.timeout_s, self._expired)

    def _take_body(self, data: bytes) -> bytes:
        """Pass on, or hold, what belongs to the body; what follows it."""
        rest: bytes | None
        if self._chunks is not None:
            try:
                _, rest = self._chunks.feed(data)
            except TorporError as error:
                self._refuse(error)
                return b""
            self._missing = 0 if rest is not None else 1
        else:
            rest = data[self._missing :] if len(data) >= self._missing else None
            self._missing = max(0, self._missing - len(data))
        own = data if rest is None else data[: len(data) - len(rest)]
        if self._behind is not None and not self._held:
            self._behind.transport.write(own)
        elif self._ticket is not None:
            self._held.append(own)
            self._held_bytes += len(own)
            if self._held_bytes > _MOST_HELD_BYTES:
                self._transport.pause_reading()
        return rest or b""

    def _go(self) -> None:
        """The request may go."""
        behind = self._behind
        if behind is not None and behind.generation == self.generation and not behind.transport.is_closing():
            self._flush()
            return
        self._drop_behind()
        self._tasks.start(self._connect(), f"connection to {self._component.name}")

    async def _connect(self) -> None:
        ticket = self._ticket
        behind = await connected(self._component, lambda: _Behind(self), lambda: self._ticket is ticket)
        if behind is None:
            return
        if self._ticket is not ticket:
            behind.transport.abort()
            return
        self._behind = behind
        self._flush()

    def _flush(self) -> None:
        assert self._behind is not None
        held, self._held = self._held, []
        self._behind.transport.write(held[0] if len(held) == 1 else b"".join(held))
        if self._held_bytes > _MOST_HELD_BYTES:
            self._transport.resume_reading()
        self._held_bytes = 0

    def answered(self, data: bytes) -> None:
        """Bytes of the answer have come."""
        answer = self._answer
        if self._ticket is None or answer is None:
            self._drop_behind()  # nobody has asked
            return
        self._is_unanswered = False
        try:
            passed, has_ended = answer.feed(data)
        except PredictorFailed as error:
            self._fail(error)
            return
        if passed:
            self._transport.write(passed)
        if has_ended:
            self._complete(answer.keeps_alive)

    def lost(self, behind: "_Behind", has_unread: bool) -> None:
        """The connection behind has closed. has_unread: with bytes in it that the component has not read."""
        if self._behind is not behind:
            return
        self._drop_behind()
        if self._ticket is None or not self._ticket.is_granted:
            return
        self._component.lost_connection()
        if self._answer is not None and self._answer.ends_with_connection:
            self._complete(keeps_alive=False)
        elif has_unread and self._is_unanswered and self._again:
            self._held, self._again = [self._again], b""
            self._tasks.start(self._connect(), f"connection to {self._component.name}")
        elif has_unread and self._is_unanswered:
            self._fail(Unavailable(f"{self._component.name} ended before it had read the request"))
        else:
            self._fail(PredictorFailed(f"{self._component.name} closed the connection before its answer had ended"))

    @property
    def generation(self) -> int:
        """Which instance of the component there is."""
        return self._component.generation

    def may_send(self, may: bool) -> None:
        """Whether the connection behind takes more of the request."""
        if may:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _complete(self, keeps_alive: bool) -> None:
        self._end(is_answered=True)
        if not (keeps_alive and self._keeps_alive):
            self._close()
        elif self._kept:
            self._next()

    def _expired(self) -> None:
        self._fail(DeadlineExceeded(f"{self._component.name} did not answer within {self._component.timeout_s:g} s"))

    def _fail(self, error: TorporError) -> None:
        """An answer of our own, or where one has begun an end that nobody takes for its last byte."""
        has_begun = self._answer is not None and self._answer.has_begun
        self._end(is_answered=False)
        self._drop_behind()
        if has_begun:
            self._transport.abort()
        elif self._missing or not self._keeps_alive:
            self._refuse(error)
        else:
            self._write_error(error, closes=False)
            self._next()

    def _end(self, is_answered: bool) -> None:
        ticket, self._ticket = self._ticket, None
        assert ticket is not None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._held = []
        self._component.leave(ticket, is_answered)

    def _refuse(self, error: TorporError) -> None:
        """Answer, and close: nothing behind it is read."""
        if self._ticket is not None:
            self._end(is_answered=False)
        self._drop_behind()
        self._write_error(error, closes=True)
        self._close()

    def _write_error(self, error: TorporError, closes: bool) -> None:
        body = error_body(str(error))
        status = HTTPStatus(error.http_status)
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
        ]
        if isinstance(error, Unavailable) and error.retry_after_s is not None:
            lines.append(f"retry-after: {max(1, round(error.retry_after_s))}")
        if closes:
            lines.append("connection: close")
        self._transport.write("\r\n".join([*lines, "", ""]).encode() + body)

    def _close(self) -> None:
        """Let what was written arrive: who still sends would destroy it by a reset."""
        if self._is_closing:
            return
        self._is_closing = True
        self._drop_behind()
        self._kept = b""
        if not self._missing:
            self._transport.close()
            return
        self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._loop.call_later(_LINGER_S, self._transport.abort)

    def _drop_behind(self) -> None:
        """Whatever it kept from being read is read now."""
        behind, self._behind = self._behind, None
        if behind is not None:
            behind.transport.abort()
        if not self._is_closing:
            self._transport.resume_reading()


class _Behind(asyncio.Protocol):
    """The connection to the component."""

    def __init__(self, relay: Http1Relay) -> None:
        self._relay = relay
        self.generation = relay.generation
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self._has_unread = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._relay.answered(data)

    def eof_received(self) -> None:
        """What came after the component had closed it was reset; the system says so to who asks (EPIPE)."""
        own = self.transport.get_extra_info("socket")
        self._has_unread = own is not None and own.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE

    def connection_lost(self, error: Exception | None) -> None:
        self._relay.lost(self, self._has_unread or isinstance(error, (ConnectionResetError, BrokenPipeError)))

    def pause_writing(self) -> None:
        self._relay.may_send(False)

    def resume_writing(self) -> None:
        self._relay.may_send(True)
