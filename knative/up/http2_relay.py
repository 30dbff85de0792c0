"""HTTP/2, and gRPC in it, between a caller and a component: frames go on as they are, in both directions (RFC 9113), but for
header blocks of the caller's.

What is this relay's own: it answers the caller's first SETTINGS, and PINGs, while there is nobody behind; it holds a stream's
frames until its request may go; and it answers where the component does not. A header block depends on those before it
(RFC 7541), so the caller's are read here and written anew without a table: then trailers can overtake a request that waits, and
what nobody wants any more is left out. Answers' blocks may be left out too, since the component is told to use no table.

The windows towards the component are kept here, and how many streams it takes: bodies of requests that wait take nothing from
those that go on, and what the caller sent before it knew the component's SETTINGS is held until they allow it. A stream's
window of each lies here meanwhile.

The connection behind is one instance's, and ends with it: a component that falls asleep says GOAWAY first, which goes through.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torpor.predictors.errors import TorporError
from torpor.predictors.remembered import Remembered
from torpor.predictors.serving.http2 import PREFACE
from torpor.predictors.serving.http2_fields import CompressionFailed, FieldReader, encode_text
from torpor.predictors.serving.tasks import Tasks

from .behind import connected
from .component import Component
from .gate import Ticket

if TYPE_CHECKING:
    from .activator import Activator

_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = (
    0, 1, 2, 3, 4, 6, 7, 8, 9,
)  # fmt: skip
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_NO_ERROR, _PROTOCOL_ERROR, _INTERNAL_ERROR, _FRAME_SIZE_ERROR, _CANCEL, _COMPRESSION_ERROR = 0, 1, 2, 6, 8, 9
_HEAD_BYTES = 9
_MOST_FRAME_BYTES = 1 << 20
_LEAST_FRAME_BYTES = 1 << 14
"""What everybody takes."""
_PADDED, _WITH_PRIORITY = 8, 32
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE = 1, 2, 3, 4
_NO_TABLE_NO_PUSH = bytes((0, _HEADER_TABLE_SIZE, 0, 0, 0, 0)) + bytes((0, _ENABLE_PUSH, 0, 0, 0, 0))
"""In place of what the caller's SETTINGS say of these."""
_TABLE_IS_EMPTY = b"\x20"
"""HPACK's size update to 0 (RFC 7541, 6.3), which a decoder that has bounded its table waits for."""
_NEVER_INDEXED = b"\x10"
_MOST_STREAMS = 100
_OWN_SETTINGS = bytes((0, _MAX_CONCURRENT_STREAMS, 0, 0, 0, _MOST_STREAMS))
"""Until the component says how many it takes."""
_FIRST_WINDOW_BYTES = 65_535
_LAST_STREAM = (1 << 31) - 1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


class Frames:
    """Cuts bytes into frames as they come."""

    def __init__(self) -> None:
        self._kept = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are whole, each with its head. Raises ValueError for one that is too large."""
        if self._kept:
            data = self._kept + data
        frames: list[bytes] = []
        at, size = 0, len(data)
        while size - at >= _HEAD_BYTES:
            end = at + _HEAD_BYTES + (data[at] << 16 | data[at + 1] << 8 | data[at + 2])
            if end - at > _MOST_FRAME_BYTES:
                raise ValueError
            if end > size:
                break
            frames.append(data[at:end])
            at = end
        self._kept = data[at:]
        return frames


class _Stream:
    """One request. frames: those that have not gone on: all while it waits, then DATA without room and trailers behind it."""

    __slots__ = (
        "deadline",
        "frames",
        "has_begun",
        "has_ended",
        "is_answered",
        "is_over",
        "is_sent",
        "number",
        "room",
        "ticket",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.ticket: Ticket | None = None
        self.deadline: asyncio.TimerHandle | None = None
        self.frames: deque[bytes] = deque()
        self.room = 0
        """Bytes of its body that the component takes now, once it is sent."""
        self.is_sent = False
        self.has_ended = False
        """The caller sends no more."""
        self.has_begun = False
        """Its answer has."""
        self.is_answered = False
        """By the component, to the end."""
        self.is_over = False
        """Left by its caller or answered by the relay: nothing of it goes through any more, in either direction."""

    @property
    def is_done(self) -> bool:
        """Both sides have ended it."""
        return self.is_answered and self.has_ended and not self.frames


class Http2Relay(asyncio.Protocol):
    """One caller's connection."""

    def __init__(self, component: Component, activator: "Activator") -> None:
        self._component = component
        self._activator = activator
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._frames = Frames()
        self._streams: dict[int, _Stream] = {}
        """Those that go on; frames of others are dropped."""
        self._queue: deque[_Stream] = deque()
        """Those that wait, in the order of their numbers, which the component may not see in another."""
        self._fields = FieldReader()
        self._literals: Remembered[bytes, bytes] = Remembered(64)
        self._block: list[bytes] = []
        """The frames of a header block that is coming in pieces."""
        self._has_emptied_table = False
        """Whether a block that says that answers use no table has gone to the caller."""
        self._block_passes = False
        """Whether the answer's header block that is coming goes on to the caller."""
        self._settings: bytes | None = None
        """The caller's first, to be told to the component."""
        self._preamble: list[bytes] = []
        self._out: list[bytes] = []
        """What goes to the component when all that was received has been looked at."""
        self._own_acks = 1
        """So many of the caller's acknowledgements are of the relay's own SETTINGS."""
        self._room = _FIRST_WINDOW_BYTES
        """Bytes of bodies that the component takes now."""
        self._stream_room = _FIRST_WINDOW_BYTES
        """Of one stream's at its beginning."""
        self._most_streams = _MOST_STREAMS
        self._is_settled = False
        """The component's SETTINGS have come."""
        self._owed = 0
        """Bytes of bodies that have come since the caller was told that it may send as many again."""
        self._last = self._last_sent = 0
        self._behind: _Behind | None = None
        self._is_connecting = False
        self._is_reading = False
        self._is_closing = False
        self._tasks = Tasks()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._activator.relays.add(self)
        self._transport.write(frame(_SETTINGS, 0, 0, _OWN_SETTINGS))

    def connection_lost(self, error: Exception | None) -> None:
        self._activator.relays.discard(self)
        self._is_closing = True
        self._drop_all()

    def pause_writing(self) -> None:
        if self._behind is not None:
            self._behind.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._behind is not None:
            self._behind.transport.resume_reading()

    def may_send(self, may: bool) -> None:
        """Whether the connection behind takes more."""
        if self._is_closing:
            return
        if may:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def finish(self) -> None:
        self._transport.write(frame(_GOAWAY, 0, 0, _LAST_STREAM.to_bytes(4, "big") + bytes(4)))
        self._close_if_idle()

    def abort(self) -> None:
        self._transport.abort()

    # From the caller.

    def data_received(self, data: bytes) -> None:
        if self._is_closing:
            return
        try:
            frames = self._frames.feed(data)
        except ValueError:
            self._break(_FRAME_SIZE_ERROR)
            return
        self._is_reading = True
        for one in frames:
            self._take(one)
            if self._is_closing:
                return
        self._is_reading = False
        if self._owed > _FIRST_WINDOW_BYTES // 4:
            self._transport.write(_window_update(self._owed))
            self._owed = 0
        self._flush()

    def _take(self, one: bytes) -> None:
        """One of the caller's frames."""
        kind, flags = one[3], one[4]
        number = int.from_bytes(one[5:9], "big") & _LAST_STREAM
        if self._settings is None:
            if kind != _SETTINGS or flags & _ACK:
                self._break(_PROTOCOL_ERROR)
                return
            self._settings = one
            self._transport.write(frame(_SETTINGS, _ACK, 0))
        elif kind in (_HEADERS, _CONTINUATION) or self._block:
            if (kind == _CONTINUATION) is not bool(self._block):
                self._break(_PROTOCOL_ERROR)
                return
            self._block.append(one)
            if flags & _END_HEADERS:
                block, self._block = self._block, []
                self._take_block(block, number)
        elif kind == _SETTINGS and flags & _ACK and self._own_acks:
            self._own_acks -= 1
        elif kind == _SETTINGS:
            (self._preamble if self._behind is None else self._out).append(frame(_SETTINGS, flags, 0, _relayed(one)))
        elif number:
            self._take_of_stream(one, number, kind, flags)
        elif self._behind is not None:
            self._out.append(one)
        elif kind == _PING and not flags & _ACK:
            self._transport.write(frame(_PING, _ACK, 0, one[_HEAD_BYTES:]))
        elif kind == _WINDOW_UPDATE:
            self._preamble.append(one)

    def _take_block(self, frames: list[bytes], number: int) -> None:
        """A header block is whole: a request's, or its trailers."""
        has_ended = bool(frames[0][4] & _END_STREAM)
        try:
            block = _framed(self._literal(_fragment(frames)), number, has_ended)
        except CompressionFailed:
            self._break(_COMPRESSION_ERROR)
            return
        stream = self._streams.get(number)
        if stream is not None:
            stream.has_ended = has_ended
            self._forward(stream, block)
            return
        if number % 2 == 0:
            self._break(_PROTOCOL_ERROR)
            return
        if number <= self._last:  # trailers of a request that has been answered here
            return
        self._last = number
        stream = self._streams[number] = _Stream(number)
        stream.has_ended = has_ended
        stream.frames.append(block)
        self._queue.append(stream)
        is_connected = self._behind is not None and not self._behind.transport.is_closing()
        stream.ticket = ticket = Ticket(self._advance, self._component.now_s())
        try:
            self._component.enter(ticket, is_connected)
        except TorporError as error:
            stream.ticket = None
            self._respond(stream, error.http_status, ((b"retry-after", b"1"),))
            self._advance()
            return
        if stream.ticket is ticket:
            stream.deadline = self._loop.call_later(self._component.timeout_s, self._expired, stream)

    def _literal(self, block: bytes) -> bytes:
        """A header block with fields that no table remembers: what a caller marked so stays so (RFC 7541, 7.1.3).

        Raises CompressionFailed. Reading one takes some 50 microseconds, and equal ones mean the same until the table changes.
        """
        literal = self._literals.get(block)
        if literal is None:
            fields, has_changed = self._fields.decode(block)
            texts = (_NEVER_INDEXED + encode_text(name) + encode_text(value) for name, value in fields)
            literal = _TABLE_IS_EMPTY + b"".join(texts)
            if has_changed:
                self._literals.clear()
            else:
                self._literals.keep(block, literal)
        return literal

    def _take_of_stream(self, one: bytes, number: int, kind: int, flags: int) -> None:
        if kind == _DATA:
            self._owed += len(one) - _HEAD_BYTES
        stream = self._streams.get(number)
        if kind == _PRIORITY or stream is None:
            return
        if kind == _RST_STREAM:
            if stream.is_sent:
                self._out.append(one)
            self._end(stream)
            self._advance()
        elif kind == _DATA:
            stream.has_ended = bool(flags & _END_STREAM)
            self._forward(stream, one)
        elif stream.is_sent:
            self._out.append(one)
        else:
            stream.frames.append(one)

    # To the component.

    def _advance(self) -> None:
        """Send on the streams whose turn it is."""
        if self._is_closing:
            return
        if self._behind is None:
            if self._is_wanted():
                self._connect()
            return
        while self._queue and self._may_go(stream := self._queue[0]):
            self._queue.popleft()
            if not stream.is_over:
                stream.is_sent = True
                self._last_sent = stream.number
                stream.room = self._stream_room
                self._drain(stream)
        if not self._is_reading:
            self._flush()

    def _may_go(self, stream: _Stream) -> bool:
        if stream.is_over:
            return True
        if not (self._is_settled and _was_granted(stream)):
            return False
        return len(self._streams) <= self._most_streams or self._sent_streams() < self._most_streams

    def _sent_streams(self) -> int:
        return sum(stream.is_sent for stream in self._streams.values())

    def _forward(self, stream: _Stream, one: bytes) -> None:
        """DATA or trailers."""
        stream.frames.append(one)
        if stream.is_sent and len(stream.frames) == 1:
            self._drain(stream)

    def _drain(self, stream: _Stream) -> None:
        """Send what the component has room for."""
        while stream.frames:
            one = stream.frames[0]
            if one[3] == _DATA:
                size, room = len(one) - _HEAD_BYTES, max(0, min(self._room, stream.room))
                if size > room:
                    # In two, since a component need not say more before it has all that it has said.
                    if room and not one[4] & _PADDED:
                        end = _HEAD_BYTES + room
                        self._out.append(frame(_DATA, 0, stream.number, one[_HEAD_BYTES:end]))
                        self._take_room(stream, room)
                        stream.frames[0] = frame(_DATA, one[4], stream.number, one[end:])
                    return
                self._take_room(stream, size)
            self._out.append(stream.frames.popleft())
        if stream.is_done:
            del self._streams[stream.number]

    def _take_room(self, stream: _Stream, size: int) -> None:
        self._room -= size
        stream.room -= size

    def _drain_all(self) -> None:
        for stream in [*self._streams.values()]:
            if stream.is_sent and stream.frames:
                self._drain(stream)

    def _settle(self, one: bytes) -> bytes:
        """The component's SETTINGS, as the caller is to have them: the table that it reads by is this relay's."""
        passed = []
        for name, value, entry in _entries(one):
            if name == _INITIAL_WINDOW_SIZE:
                for stream in self._streams.values():
                    stream.room += value - self._stream_room
                self._stream_room = value
            elif name == _MAX_CONCURRENT_STREAMS:
                self._most_streams = value
            if name != _HEADER_TABLE_SIZE:
                passed.append(entry)
        self._is_settled = True
        self._drain_all()
        return frame(_SETTINGS, 0, 0, b"".join(passed))

    def _flush(self) -> None:
        if self._out and self._behind is not None:
            self._behind.transport.write(b"".join(self._out))
            self._out = []

    def _connect(self) -> None:
        if not self._is_connecting:
            self._is_connecting = True
            self._tasks.start(self._open(), f"connection to {self._component.name}")

    def _is_wanted(self) -> bool:
        return not self._is_closing and any(_was_granted(stream) for stream in self._queue)

    async def _open(self) -> None:
        behind = await connected(self._component, lambda: _Behind(self), self._is_wanted)
        self._is_connecting = False
        if behind is None:
            return
        if self._is_closing:
            behind.transport.abort()
            return
        assert self._settings is not None
        settings = frame(_SETTINGS, 0, 0, _relayed(self._settings) + _NO_TABLE_NO_PUSH)
        behind.transport.write(b"".join([PREFACE, settings, *self._preamble]))
        self._preamble = []
        self._behind = behind
        self._advance()

    # From the component.

    def answered(self, frames: list[bytes]) -> None:
        passed: list[bytes] = []
        for one in frames:
            kind, flags = one[3], one[4]
            number = int.from_bytes(one[5:9], "big") & _LAST_STREAM
            if kind == _CONTINUATION:
                if not self._block_passes:
                    continue
            elif kind == _WINDOW_UPDATE and not number:
                self._room += int.from_bytes(one[_HEAD_BYTES:], "big") & _LAST_STREAM
                self._drain_all()
                continue
            elif kind == _SETTINGS and not flags & _ACK:
                one = self._settle(one)
            elif number:
                stream = self._streams.get(number)
                if kind == _HEADERS:
                    self._block_passes = stream is not None
                if stream is None:
                    if kind == _DATA and self._behind is not None and len(one) > _HEAD_BYTES:
                        # Nobody else will say that these bytes have been read.
                        self._behind.transport.write(_window_update(len(one) - _HEAD_BYTES))
                    continue
                if kind == _WINDOW_UPDATE:
                    stream.room += int.from_bytes(one[_HEAD_BYTES:], "big") & _LAST_STREAM
                    self._drain(stream)
                elif kind == _HEADERS:
                    stream.has_begun = True
                    if not self._has_emptied_table:
                        self._has_emptied_table = True
                        one = _with_empty_table(one)
                if kind == _RST_STREAM:
                    del self._streams[number]
                    self._release(stream, stream.is_answered)
                elif flags & _END_STREAM and kind in (_DATA, _HEADERS):
                    stream.is_answered = True
                    if stream.is_done:
                        del self._streams[number]
                    self._release(stream, True)
            passed.append(one)
        if passed and not self._is_closing:
            self._transport.write(b"".join(passed))
        self._advance()
        self._close_if_idle()

    def lost(self) -> None:
        """The connection behind has closed, or does not speak HTTP/2."""
        if self._is_closing:
            return
        self._is_closing = True
        self._component.lost_connection()
        is_no_http2 = not self._is_settled and self._component.takes_connections
        for stream in [*self._streams.values()]:
            if stream.is_answered:
                continue
            if stream.has_begun:
                self._transport.write(_reset(stream.number, _INTERNAL_ERROR))
            elif stream.is_sent or is_no_http2:
                self._respond(stream, 502, ())
        # Streams are sent in their order: whom the goodbye leaves out nobody has seen. gRPC's clients send those again by
        # themselves (https://datatracker.ietf.org/doc/html/rfc9113#section-6.8), and report one that is reset as refused.
        self._break(_NO_ERROR, self._last if is_no_http2 else self._last_sent)

    # Ends of the relay's own.

    def _expired(self, stream: _Stream) -> None:
        if stream.has_begun:
            self._transport.write(_reset(stream.number, _CANCEL))
            self._end(stream)
        else:
            self._respond(stream, 504, ())
        if stream.is_sent:
            self._out.append(_reset(stream.number, _CANCEL))
        self._advance()
        self._close_if_idle()

    def _respond(self, stream: _Stream, status: int, fields: tuple[tuple[bytes, bytes], ...]) -> None:
        """A head that ends the stream. gRPC's clients read the status (502, 503 and 504 are UNAVAILABLE)."""
        # :status by its index, the value as it is, not for the table.
        block = _TABLE_IS_EMPTY + bytes((0x08, 3)) + b"%d" % status
        for name, value in fields:
            block += bytes((0x00, len(name))) + name + bytes((len(value),)) + value
        self._transport.write(frame(_HEADERS, _END_HEADERS | _END_STREAM, stream.number, block))
        if not stream.has_ended:
            self._transport.write(_reset(stream.number, _NO_ERROR))
        self._end(stream)

    def _end(self, stream: _Stream) -> None:
        """Nothing of it goes through any more."""
        stream.is_over = True
        self._streams.pop(stream.number, None)
        self._release(stream, stream.is_answered)

    def _release(self, stream: _Stream, is_answered: bool) -> None:
        if stream.deadline is not None:
            stream.deadline.cancel()
        ticket, stream.ticket = stream.ticket, None
        if ticket is not None:
            self._component.leave(ticket, is_answered)

    def _break(self, code: int, last: int | None = None) -> None:
        """End the connection. last: the stream after which none was seen, the last of all if it is not said."""
        self._is_closing = True
        number = self._last if last is None else last
        self._transport.write(frame(_GOAWAY, 0, 0, number.to_bytes(4, "big") + code.to_bytes(4, "big")))
        self._drop_all()
        self._transport.close()

    def _drop_all(self) -> None:
        for stream in [*self._streams.values()]:
            self._end(stream)
        behind, self._behind = self._behind, None
        if behind is not None:
            behind.transport.abort()

    def _close_if_idle(self) -> None:
        if self._activator.is_finishing and not self._is_closing and not self._streams:
            self._break(_NO_ERROR)


def _was_granted(stream: _Stream) -> bool:
    return stream.ticket is not None and stream.ticket.is_granted


def _relayed(settings: bytes) -> bytes:
    """The payload of a caller's SETTINGS, but for what is this relay's to say."""
    return b"".join(entry for name, _, entry in _entries(settings) if name not in (_HEADER_TABLE_SIZE, _ENABLE_PUSH))


def _entries(settings: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Name, value and bytes of each that a SETTINGS frame has."""
    for at in range(_HEAD_BYTES, len(settings), 6):
        entry = settings[at : at + 6]
        yield int.from_bytes(entry[:2], "big"), int.from_bytes(entry[2:], "big"), entry


def _fragment(frames: list[bytes]) -> bytes:
    """The header block in HEADERS and CONTINUATION frames."""
    first, flags = frames[0], frames[0][4]
    at = _HEAD_BYTES + (1 if flags & _PADDED else 0) + (5 if flags & _WITH_PRIORITY else 0)
    end = len(first) - (first[_HEAD_BYTES] if flags & _PADDED else 0)
    return b"".join([first[at:end], *(one[_HEAD_BYTES:] for one in frames[1:])])


def _framed(block: bytes, number: int, has_ended: bool) -> bytes:
    """A header block in HEADERS and CONTINUATION frames."""
    pieces = [block[at : at + _LEAST_FRAME_BYTES] for at in range(0, len(block), _LEAST_FRAME_BYTES)]
    flags = [0] * len(pieces)
    flags[0] |= _END_STREAM if has_ended else 0
    flags[-1] |= _END_HEADERS
    kinds = [_HEADERS, *[_CONTINUATION] * (len(pieces) - 1)]
    return b"".join(frame(*one[:2], number, one[2]) for one in zip(kinds, flags, pieces, strict=True))


def _with_empty_table(headers: bytes) -> bytes:
    """A HEADERS frame whose block begins with that: the component says so once, perhaps in a block that was left out."""
    flags = headers[4]
    at = _HEAD_BYTES + (1 if flags & _PADDED else 0) + (5 if flags & _WITH_PRIORITY else 0)
    if headers[at : at + 1] == _TABLE_IS_EMPTY:
        return headers
    return frame(
        _HEADERS, flags, int.from_bytes(headers[5:9], "big"), headers[_HEAD_BYTES:at] + _TABLE_IS_EMPTY + headers[at:]
    )


def _window_update(size: int) -> bytes:
    """Of the connection."""
    return frame(_WINDOW_UPDATE, 0, 0, size.to_bytes(4, "big"))


def _reset(stream: int, code: int) -> bytes:
    return frame(_RST_STREAM, 0, stream, code.to_bytes(4, "big"))


class _Behind(asyncio.Protocol):
    """The connection to the component."""

    def __init__(self, relay: Http2Relay) -> None:
        self._relay = relay
        self._frames = Frames()
        self._own_acks = 1
        self.transport: asyncio.Transport = None  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._frames.feed(data)
        except ValueError:
            self.transport.abort()
            self._relay.lost()
            return
        if self._own_acks and frames:
            # The caller's SETTINGS have been acknowledged to it already.
            at = next((at for at, one in enumerate(frames) if one[3] == _SETTINGS and one[4] & _ACK), None)
            if at is not None:
                del frames[at]
                self._own_acks -= 1
        self._relay.answered(frames)

    def connection_lost(self, error: Exception | None) -> None:
        self._relay.lost()

    def pause_writing(self) -> None:
        self._relay.may_send(False)

    def resume_writing(self) -> None:
        self._relay.may_send(True)
