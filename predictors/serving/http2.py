"""HTTP/2 with prior knowledge on one connection (RFC 9113): frames in, frames out, every stream an exchange of its own.

What a caller can make the server hold is bounded: header blocks by size, streams by number, bodies by `max_body_bytes`,
answers by the streams that wait for them; and a caller that does not read is not read from. What it can make the server
do for nothing (reset streams, settings, empty frames) is bounded by a credit that refills with time.
"""

import asyncio
import math
import struct
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING

from ..errors import RequestTimeout
from ..remembered import Remembered
from .exchange import Exchange, Field, Fields, Head
from .http1 import HEAD_S, IDLE_S, LINGER_S, PROGRESS_S
from .http2_fields import (
    MAX_HEADER_LIST_BYTES,
    TABLE_BYTES,
    CompressionFailed,
    FieldReader,
    Malformed,
    encode_field,
    encode_fields,
    status_field,
)

if TYPE_CHECKING:
    from .server import HttpServer

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = (
    range(10)
)
_END_STREAM = _ACK = 0x1
_END_HEADERS, _PADDED, _HAS_PRIORITY = 0x4, 0x8, 0x20

_FRAME = struct.Struct(">HBBBL")
"""Length (two fields: the upper 16 bits, the lower 8), type, flags, stream."""

_MAX_FRAME_BYTES = 16384
_MAX_STREAMS = 1024
_STREAM_WINDOW = 1 << 20
_CONNECTION_WINDOW = 16 << 20
_DEFAULT_WINDOW = 65535
_MAX_WINDOW = (1 << 31) - 1

ROUND_TRIP_S = 2.0
"""From the first GOAWAY to the last: what the caller sent before it read the first is here by then."""

_CREDIT = 1000.0
_CREDIT_PER_S = 100.0
"""Frames that cost the server work and bring nothing: a burst of 1 000 is a client that gives up, more is an attack."""


class Code(IntEnum):
    """Error codes (RFC 9113, 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class _Broken(Exception):
    """The connection cannot go on: GOAWAY with `code`."""

    def __init__(self, code: Code) -> None:
        self.code = code


class Http2(asyncio.Protocol):
    """The protocol of one connection, from its first frame on; the preface has been read."""

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._app = server.app
        self._deadline_s = math.inf
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._buffer = b""
        self._fields = FieldReader()
        self._streams: dict[int, Stream] = {}
        self._last_stream = 0
        self._ignored: Remembered[int, None] = Remembered(256)
        """Streams that this side ended early: what is still coming on them is dropped without a word."""
        self._block: list[bytes] | None = None
        """A header block that CONTINUATION frames go on with, its stream and whether that ends with it."""
        self._block_stream = 0
        self._block_ends = False
        self._block_bytes = 0
        self._window = _DEFAULT_WINDOW
        """Bytes of DATA that may be sent; the next is what a new stream may."""
        self._stream_window = _DEFAULT_WINDOW
        self._max_frame_bytes = _MAX_FRAME_BYTES
        self._unacknowledged = 0
        """Bytes of DATA that came since the last WINDOW_UPDATE for the connection."""
        self._block_prefix = b""
        """Says at the next block that no table is used, to a caller that made its table smaller (RFC 7541, 4.2)."""
        self._out: list[bytes] = []
        self._is_flush_due = False
        self._is_blocked = False
        self._has_settings = False
        self._goodbye_s = math.inf
        """When the last GOAWAY goes, once the first has: new streams are not wanted, but served until then."""
        self._is_leaving = False
        """The last GOAWAY has been sent: no new streams, and the end when the last stream ends."""
        self._is_broken = False
        self._is_closed = False
        """Nothing that comes is looked at any more."""
        self._credit = _CREDIT
        self._credit_s = 0.0
        self._take: tuple[Callable[[int, int, bytes], None], ...] = (
            self._data, self._headers, self._priority, self._rst_stream, self._settings,
            self._push_promise, self._ping, self._goaway, self._window_update, self._continuation,
        )  # fmt: skip

    # The transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._credit_s = now = self._server.now_s
        self._deadline_s = now + HEAD_S  # for the caller's settings
        self._server.opened(self)
        settings = struct.pack(">HLHLHL", 3, _MAX_STREAMS, 4, _STREAM_WINDOW, 6, MAX_HEADER_LIST_BYTES)
        self._send(_frame(_SETTINGS, 0, 0, settings))
        self._send_number(_WINDOW_UPDATE, 0, _CONNECTION_WINDOW - _DEFAULT_WINDOW)

    def data_received(self, data: bytes) -> None:
        if self._is_closed:
            return
        if self._buffer:
            data = self._buffer + data
        self._is_flush_due = True  # at the end of this, instead of once a frame
        at, size = 0, len(data)
        try:
            while size - at >= 9:
                high, low, kind, flags, stream_id = _FRAME.unpack_from(data, at)
                length = high << 8 | low
                if length > _MAX_FRAME_BYTES:
                    raise _Broken(Code.FRAME_SIZE_ERROR)
                end = at + 9 + length
                if end > size:
                    break
                if not self._has_settings and kind != _SETTINGS:
                    raise _Broken(Code.PROTOCOL_ERROR)
                if self._block is not None and kind != _CONTINUATION:
                    raise _Broken(Code.PROTOCOL_ERROR)
                if kind < 10:  # others are ignored (4.1)
                    self._take[kind](flags, stream_id & _MAX_WINDOW, data[at + 9 : end])
                at = end
            self._buffer = data[at:]
        except _Broken as broken:
            self._break(broken.code)
        self._flush()

    def eof_received(self) -> None:
        """The caller sends no more, so it cannot take part in flow control: it has left, and the transport closes."""

    def connection_lost(self, error: Exception | None) -> None:
        self._is_closed = True
        self._server.closed(self)
        for stream in [*self._streams.values()]:
            self._drop(stream)

    def pause_writing(self) -> None:
        self._is_blocked = True
        self._transport.pause_reading()
        self._deadline_s = self._server.now_s + PROGRESS_S

    def resume_writing(self) -> None:
        self._is_blocked = False
        self._transport.resume_reading()
        self._rest()
        self._pump()

    def sweep(self) -> None:
        """End what has lasted too long: the connection, a body that does not come, an answer that is not taken."""
        now = self._server.now_s
        if now >= self._server.parting_s:
            self._announce()
        if now >= self._goodbye_s:
            self._say_goodbye(Code.NO_ERROR)
            self._flush()
        if now >= self._deadline_s:
            if self._is_blocked or self._is_closed:
                self._transport.abort()
            elif self._has_settings and self._block is None:  # idle
                self._announce()
            else:
                self._break(Code.NO_ERROR)
                self._flush()
        for stream in [*self._streams.values()]:
            if now < stream.deadline_s:
                continue
            if stream.unsent:  # its answer has begun
                self._reset(stream.id, Code.CANCEL)
            else:
                self._app.refuse(stream, RequestTimeout(f"the body stopped coming for {PROGRESS_S:g} s"))

    def shutdown(self) -> None:
        """Want no new streams, and close when the last one has ended."""
        self._announce()
        for stream in [*self._streams.values()]:
            if not stream.is_counted:  # a watch would go on for ever
                self._reset(stream.id, Code.CANCEL)

    def abort(self) -> None:
        self._transport.abort()

    # Frames that come.

    def _data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        stream = self._streams.get(stream_id)
        if not stream_id or stream_id > self._last_stream:
            raise _Broken(Code.PROTOCOL_ERROR)
        self._unacknowledged += size  # given back as it comes: a stream's window is what holds a caller up
        if self._unacknowledged >= _CONNECTION_WINDOW // 2:
            self._send_number(_WINDOW_UPDATE, 0, self._unacknowledged)
            self._unacknowledged = 0
        if flags & _PADDED:
            payload = _unpadded(payload)
        if not payload and not flags & _END_STREAM:
            self._spend()
        if stream is None:
            if stream_id not in self._ignored:
                self._send_number(_RST_STREAM, stream_id, Code.STREAM_CLOSED)
                self._spend()
            return
        if stream.has_whole_body:
            self._reset(stream_id, Code.STREAM_CLOSED)
            return
        stream.received_window -= size
        if stream.received_window < 0:
            self._reset(stream_id, Code.FLOW_CONTROL_ERROR)
            return
        self._take_body(stream, payload, size, bool(flags & _END_STREAM))

    def _take_body(self, stream: "Stream", payload: bytes, size: int, ends: bool) -> None:
        """DATA of `size` bytes with its padding, or trailers."""
        stream.size += len(payload)
        length = stream.head.length
        if length is not None and (stream.size > length or (ends and stream.size != length)):
            self._reset(stream.id, Code.PROTOCOL_ERROR)
            return
        stream.has_whole_body = ends
        if stream.is_answered:  # and its answer is held up by flow control: nobody wants this
            return
        if stream.handler is None:  # it reads for itself
            stream.push(payload, size)
            return
        if stream.size > self._server.max_body_bytes:
            self._app.refuse(stream, self._server.too_large(stream.size))
            return
        stream.pieces.append(payload)
        if ends:
            stream.body = payload
            if len(stream.pieces) > 1:
                stream.body = b"".join(stream.pieces)
                self._server.release(stream)
            stream.pieces.clear()
            stream.deadline_s = math.inf
            self._app.answer(stream)
        else:
            stream.deadline_s = self._server.now_s + PROGRESS_S
            self.acknowledge(stream, size)
            self._server.hold(stream, len(payload), 1)

    def _headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id & 1:
            raise _Broken(Code.PROTOCOL_ERROR)
        if flags & _PADDED:
            payload = _unpadded(payload)
        if flags & _HAS_PRIORITY:
            if len(payload) < 5:
                raise _Broken(Code.FRAME_SIZE_ERROR)
            payload = payload[5:]
        if flags & _END_HEADERS:
            self._take_block(stream_id, payload, bool(flags & _END_STREAM))
        else:
            self._block, self._block_bytes = [payload], len(payload)
            self._block_stream, self._block_ends = stream_id, bool(flags & _END_STREAM)
            self._deadline_s = self._server.now_s + HEAD_S

    def _continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is None or stream_id != self._block_stream:
            raise _Broken(Code.PROTOCOL_ERROR)
        self._block.append(payload)
        self._block_bytes += len(payload)
        if self._block_bytes > MAX_HEADER_LIST_BYTES:
            raise _Broken(Code.ENHANCE_YOUR_CALM)
        if not payload:
            self._spend()
        if flags & _END_HEADERS:
            block, self._block = b"".join(self._block), None
            self._rest()
            self._take_block(stream_id, block, self._block_ends)

    def _take_block(self, stream_id: int, block: bytes, ends: bool) -> None:
        """A whole header block: it opens a stream or ends one with trailers."""
        stream = self._streams.get(stream_id)
        try:
            if stream_id > self._last_stream:
                self._last_stream = stream_id
                head = self._fields.head(block)
                if self._is_leaving or len(self._streams) >= _MAX_STREAMS:
                    self._reset(stream_id, Code.REFUSED_STREAM)
                    self._spend()
                else:
                    self._open(stream_id, head, ends)
                return
            if stream is None and stream_id not in self._ignored:
                raise _Broken(Code.STREAM_CLOSED)
            self._fields.trailers(block)
        except CompressionFailed:
            raise _Broken(Code.COMPRESSION_ERROR) from None
        except Malformed:
            self._reset(stream_id, Code.PROTOCOL_ERROR)
            self._spend()
            return
        if stream is None:
            return
        if stream.has_whole_body:
            self._reset(stream_id, Code.STREAM_CLOSED)
        elif not ends:
            self._reset(stream_id, Code.PROTOCOL_ERROR)
        else:
            self._take_body(stream, b"", 0, True)

    def _open(self, stream_id: int, head: Head, ends: bool) -> None:
        stream = self._streams[stream_id] = Stream(head, self, stream_id, self._stream_window, ends)
        self._server.in_flight += 1
        self._rest()
        if ends and head.length:
            self._reset(stream_id, Code.PROTOCOL_ERROR)
        elif head.length is not None and head.length > self._server.max_body_bytes:
            self._app.refuse(stream, self._server.too_large(head.length))
        elif self._app.open(stream):
            if ends:
                self._app.answer(stream)
            else:
                stream.deadline_s = self._server.now_s + PROGRESS_S

    def _priority(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id:
            raise _Broken(Code.PROTOCOL_ERROR)
        if len(payload) != 5:
            if stream_id > self._last_stream:
                raise _Broken(Code.FRAME_SIZE_ERROR)
            self._reset(stream_id, Code.FRAME_SIZE_ERROR)
        self._spend()

    def _rst_stream(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id or stream_id > self._last_stream:
            raise _Broken(Code.PROTOCOL_ERROR)
        if len(payload) != 4:
            raise _Broken(Code.FRAME_SIZE_ERROR)
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._drop(stream)
        self._spend()

    def _settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise _Broken(Code.PROTOCOL_ERROR)
        if (flags & _ACK and payload) or len(payload) % 6:
            raise _Broken(Code.FRAME_SIZE_ERROR)
        if flags & _ACK:
            if not self._has_settings:
                raise _Broken(Code.PROTOCOL_ERROR)
            return
        for name, value in struct.iter_unpack(">HL", payload):
            if name == 1 and value < TABLE_BYTES:
                self._block_prefix = b"\x20"
            elif name == 2 and value > 1:
                raise _Broken(Code.PROTOCOL_ERROR)
            if name == 4:
                self._set_stream_window(value)
            elif name == 5:
                if not _MAX_FRAME_BYTES <= value < 1 << 24:
                    raise _Broken(Code.PROTOCOL_ERROR)
                self._max_frame_bytes = value
        if not self._has_settings:
            self._has_settings = True
            self._rest()
        self._send(_frame(_SETTINGS, _ACK, 0))
        self._spend()
        self._pump()

    def _set_stream_window(self, value: int) -> None:
        """INITIAL_WINDOW_SIZE changes the windows of open streams too, even below 0 (RFC 9113, 6.9.2)."""
        if value > _MAX_WINDOW:
            raise _Broken(Code.FLOW_CONTROL_ERROR)
        for stream in self._streams.values():
            stream.window += value - self._stream_window
            if stream.window > _MAX_WINDOW:
                raise _Broken(Code.FLOW_CONTROL_ERROR)
        self._stream_window = value

    def _push_promise(self, flags: int, stream_id: int, payload: bytes) -> None:
        raise _Broken(Code.PROTOCOL_ERROR)  # a client has nothing to push

    def _ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise _Broken(Code.PROTOCOL_ERROR)
        if len(payload) != 8:
            raise _Broken(Code.FRAME_SIZE_ERROR)
        if not flags & _ACK:
            self._send(_frame(_PING, _ACK, 0, payload))

    def _goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise _Broken(Code.PROTOCOL_ERROR)
        if len(payload) < 8:
            raise _Broken(Code.FRAME_SIZE_ERROR)
        self._say_goodbye(Code.NO_ERROR)

    def _window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise _Broken(Code.FRAME_SIZE_ERROR)
        increment = int.from_bytes(payload, "big") & _MAX_WINDOW
        if not stream_id:
            self._window += increment
            if not increment:
                raise _Broken(Code.PROTOCOL_ERROR)
            if self._window > _MAX_WINDOW:
                raise _Broken(Code.FLOW_CONTROL_ERROR)
            self._pump()
            return
        if stream_id > self._last_stream:
            raise _Broken(Code.PROTOCOL_ERROR)
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        stream.window += increment
        if not increment:
            self._reset(stream_id, Code.PROTOCOL_ERROR)
        elif stream.window > _MAX_WINDOW:
            self._reset(stream_id, Code.FLOW_CONTROL_ERROR)
        elif stream.unsent:
            self._pump_stream(stream)

    # What is sent.

    def _send(self, frame: bytes) -> None:
        self._out.append(frame)
        if not self._is_flush_due:
            self._is_flush_due = True
            self._server.loop.call_soon(self._flush)

    def _send_number(self, kind: int, stream_id: int, number: int) -> None:
        """A frame whose payload is 32 bits: WINDOW_UPDATE or RST_STREAM."""
        self._send(_frame(kind, 0, stream_id, number.to_bytes(4, "big")))

    def _flush(self) -> None:
        """Give everything to the transport in one piece: the answers of a batch mostly share their connections."""
        self._is_flush_due = False
        if self._out and not self._transport.is_closing():
            self._transport.write(b"".join(self._out))
        self._out.clear()
        if self._is_broken:
            self._transport.close()
        elif self._is_leaving and not (self._streams or self._is_closed):
            self._close_after_answers()

    def _close_after_answers(self) -> None:
        """Let them arrive: end our side, and read on until the caller ends its own or LINGER_S have passed."""
        self._is_closed = True
        self._rest()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:  # TLS ends both sides at once
            self._transport.close()

    @property
    def date(self) -> bytes:
        return self._server.date

    def send_answer(self, stream: "Stream", block: bytes, body: bytes, trailers: bytes | None) -> None:
        """A whole answer: header block, body, and the header block of trailers."""
        if stream.pieces:  # of a body that is refused before its end
            stream.pieces.clear()
            self._server.release(stream)
        size = len(body)
        ends = 0 if size or trailers is not None else _END_STREAM
        self.send_block(stream, block, ends)
        if size <= stream.window and size <= self._window and size <= self._max_frame_bytes:
            if size:
                self._window -= size
                self._send(_frame(_DATA, 0 if trailers is not None else _END_STREAM, stream.id, body))
            if trailers is not None:
                self.send_block(stream, trailers, _END_STREAM)
            self._end(stream)
        else:
            stream.trailers = trailers
            stream.is_ending = True
            self.send_later(stream, body)

    def uncount(self, stream: "Stream") -> None:
        """The stream may last as long as its caller: draining does not wait for it."""
        stream.is_counted = False
        self._server.finished(stream.head)

    def send_block(self, stream: "Stream", block: bytes, ends: int = 0) -> None:
        """A header block: the beginning of an answer, or with _END_STREAM its end."""
        if self._block_prefix:
            block, self._block_prefix = self._block_prefix + block, b""
        self._send(_frame(_HEADERS, _END_HEADERS | ends, stream.id, block))

    def send_end(self, stream: "Stream", trailers: bytes | None) -> None:
        """The end of an answer that came in pieces."""
        stream.trailers = trailers
        stream.is_ending = True
        if trailers is None and not stream.unsent:
            self._send(_frame(_DATA, _END_STREAM, stream.id))
        self._pump_stream(stream)

    def break_off(self, stream: "Stream") -> None:
        """What came of its answer is not the whole."""
        self._reset(stream.id, Code.INTERNAL_ERROR)

    def send_later(self, stream: "Stream", body: bytes) -> None:
        """DATA as the windows allow."""
        stream.unsent.append(memoryview(body))
        stream.deadline_s = self._server.now_s + PROGRESS_S
        self._pump_stream(stream)

    def _pump(self) -> None:
        for stream in [*self._streams.values()]:
            if self._window <= 0 or self._is_blocked:
                return
            if stream.unsent:
                self._pump_stream(stream)

    def _pump_stream(self, stream: "Stream") -> None:
        """Send what the stream has, as far as the windows and the transport allow."""
        unsent = stream.unsent
        while unsent:
            room = min(stream.window, self._window, self._max_frame_bytes)
            if room <= 0 or self._is_blocked:
                return
            piece = unsent[0][:room]
            rest = unsent[0][room:]
            if rest:
                unsent[0] = rest
            else:
                unsent.popleft()
            stream.window -= len(piece)
            self._window -= len(piece)
            ends = stream.is_ending and not unsent and stream.trailers is None
            self._send(_frame(_DATA, _END_STREAM if ends else 0, stream.id, piece))
            stream.deadline_s = self._server.now_s + PROGRESS_S
            if len(self._out) > 16:
                self._transport.write(b"".join(self._out))  # it says when it has enough
                self._out.clear()
        if stream.is_ending:
            if stream.trailers is not None:
                self.send_block(stream, stream.trailers, _END_STREAM)
            self._end(stream)
        else:
            stream.deadline_s = math.inf
            stream.wake()
            stream.let_go()

    def acknowledge(self, stream: "Stream", size: int) -> None:
        """So many bytes have been taken from the stream: let the caller send as many more, half a window at once."""
        stream.unacknowledged += size
        if stream.unacknowledged >= _STREAM_WINDOW // 2:
            self._send_number(_WINDOW_UPDATE, stream.id, stream.unacknowledged)
            stream.received_window += stream.unacknowledged
            stream.unacknowledged = 0

    def _end(self, stream: "Stream") -> None:
        """The answer has been sent. A caller that is still sending is told to stop (RFC 9113, 8.1)."""
        del self._streams[stream.id]
        if not stream.has_whole_body:
            self._ignored.keep(stream.id, None)
            self._send_number(_RST_STREAM, stream.id, Code.NO_ERROR)
        if self._credit < _CREDIT:  # who also takes answers may give up on as many more
            self._credit += 1
        self._finished(stream)
        # Not beside other streams, if it can wait: the library h2, and httpx with it, gives up on them at a GOAWAY.
        if not self._streams and self._goodbye_s == math.inf and self._server.lets_go(self):
            self._announce()

    def _reset(self, stream_id: int, code: Code) -> None:
        """An error of one stream."""
        self._ignored.keep(stream_id, None)
        self._send_number(_RST_STREAM, stream_id, code)
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._drop(stream)

    def _drop(self, stream: "Stream") -> None:
        """The stream has ended without its answer."""
        if self._streams.pop(stream.id, None) is not None:  # what another's leaving set going may have answered it
            self._server.release(stream)
            self._finished(stream)
            stream.leave()

    def _finished(self, stream: "Stream") -> None:
        if stream.is_counted:
            self._server.finished(stream.head)
        self._rest()

    def _rest(self) -> None:
        """Set the time that the connection has for what comes next, unless that of something it has begun runs."""
        if self._is_blocked:
            return
        if self._is_closed:
            self._deadline_s = self._server.now_s + LINGER_S
        elif self._block is None:
            self._deadline_s = math.inf if self._streams else self._server.now_s + IDLE_S

    def _break(self, code: Code) -> None:
        """End the connection, and with it every stream."""
        self._say_goodbye(code)
        self._is_broken = self._is_closed = True
        self._rest()
        for stream in [*self._streams.values()]:
            self._drop(stream)

    def _announce(self) -> None:
        """The first GOAWAY of two (RFC 9113, 6.8): streams that the caller opened before it read this are not lost.

        No PING says when it has read this: h2 fails on one behind a GOAWAY, and drops answers that came with it.
        """
        if self._goodbye_s == math.inf and not self._is_leaving:
            self._goodbye_s = self._server.now_s + ROUND_TRIP_S
            self._send(_frame(_GOAWAY, 0, 0, struct.pack(">LL", _MAX_WINDOW, Code.NO_ERROR)))

    def _say_goodbye(self, code: Code) -> None:
        if not self._is_leaving or code:
            self._is_leaving = True
            self._send(_frame(_GOAWAY, 0, 0, struct.pack(">LL", self._last_stream, code)))

    def _spend(self) -> None:
        self._credit -= 1
        if self._credit < 0:
            now = self._server.now_s
            self._credit = min(_CREDIT, self._credit + (now - self._credit_s) * _CREDIT_PER_S)
            self._credit_s = now
            if self._credit < 0:
                raise _Broken(Code.ENHANCE_YOUR_CALM)


class Stream(Exchange):
    """One stream: an exchange whose answer may also come in pieces, as gRPC's do.

    window: bytes of DATA that the caller takes. received_window: that it may send. unsent: DATA that waits for a window;
    is_ending: nothing comes after it but `trailers`.
    """

    __slots__ = (
        "_connection", "_wake", "deadline_s", "has_whole_body", "id", "is_answered", "is_counted", "is_ending",
        "pieces", "received_window", "size", "trailers", "unacknowledged", "unread", "unsent", "window",
    )  # fmt: skip

    def __init__(self, head: Head, connection: Http2, stream_id: int, window: int, has_whole_body: bool) -> None:
        super().__init__(head)
        self._connection = connection
        self._wake: asyncio.Future[None] | None = None
        self.is_counted = True
        self.id = stream_id
        self.window = window
        self.received_window = _STREAM_WINDOW
        self.unacknowledged = 0
        self.has_whole_body = has_whole_body
        self.pieces: list[bytes] = []
        self.size = 0
        self.unread = 0
        self.unsent: deque[memoryview] = deque()
        self.trailers: bytes | None = None
        self.is_ending = False
        self.is_answered = False
        self.deadline_s = math.inf

    def respond(self, status: int, body: bytes, fields: Fields = ()) -> None:
        if not self._answers():
            return
        if self.has_begun:
            self._connection.break_off(self)
            return
        length = encode_field(b"content-length", b"%d" % len(body)) if status != 204 else b""  # RFC 9110, 8.6
        date = encode_field(b"date", self._connection.date)
        block = b"".join((status_field(status), length, date, _encoded(tuple(fields))))
        self._connection.send_answer(self, block, b"" if self.head.method == "HEAD" else body, None)

    def begin(self, status: int, fields: Fields = ()) -> None:
        if not self.is_answered:
            date = encode_field(b"date", self._connection.date)
            self._begin_with(b"".join((status_field(status), date, _encoded(tuple(fields)))))

    def send(self, data: bytes) -> bool:
        if not data or self.is_answered:
            return True
        self._connection.send_later(self, data)
        return not self.unsent

    def end(self) -> None:
        if self._answers():
            self._connection.send_end(self, None)

    def begin_grpc(self) -> None:
        """Begin an answer of several messages: framed, `send` takes them, and `respond_grpc` their status."""
        if not self.is_answered:
            self._begin_with(_GRPC_BLOCK)

    def _begin_with(self, block: bytes) -> None:
        self.has_begun = True
        self._connection.send_block(self, block)

    def respond_grpc(self, message: bytes, trailers: tuple[Field, ...], fields: tuple[Field, ...] = ()) -> None:
        """Answer a unary call: a framed message, or none, and its status. fields: at the beginning, beside the usual."""
        if not self._answers():
            return
        if self.has_begun:
            self._connection.send_end(self, _encoded(trailers))
        else:
            block = _GRPC_BLOCK + _encoded(fields) if fields else _GRPC_BLOCK
            self._connection.send_answer(self, block, message, _encoded(trailers))

    def start_grpc(self) -> None:
        """Begin the answer of a streaming call. From now on the server does not wait for it to end."""
        self._connection.uncount(self)
        self.begin_grpc()

    async def send_message(self, message: bytes) -> None:
        """Send a framed message; returns when the caller has taken it from here."""
        self._connection.send_later(self, message)
        while self.unsent:
            await self._woken()

    async def chunk(self) -> tuple[bytes, bool]:
        """What came of a streaming call's messages, and whether more comes."""
        if not (self.pieces or self.has_whole_body):
            await self._woken()
        data = b"".join(self.pieces)
        self.pieces.clear()
        self._connection.acknowledge(self, self.unread)
        self.unread = 0
        return data, not self.has_whole_body

    def push(self, payload: bytes, size: int) -> None:
        """A streaming call's next bytes."""
        self.pieces.append(payload)
        self.unread += size
        self.wake()

    def wake(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _woken(self) -> None:
        self._wake = asyncio.get_running_loop().create_future()
        await self._wake

    def leave(self) -> None:
        """The stream is gone without its answer."""
        self.is_answered = True
        self.let_go()
        if self.on_leave is not None:
            self.on_leave()

    def _answers(self) -> bool:
        """Whether an answer is still wanted; no second one is."""
        if self.is_answered:
            return False
        self.is_answered = True
        self.on_leave = None
        self.let_go()
        return True


_GRPC_BLOCK = status_field(200) + encode_field(b"content-type", b"application/grpc")

_BLOCKS: Remembered[tuple[Field, ...], bytes] = Remembered(256)
"""Encoded fields of answers, which are few and always the same."""


def _encoded(fields: tuple[Field, ...]) -> bytes:
    block = _BLOCKS.get(fields)
    if block is None:
        block = encode_fields(fields)
        _BLOCKS.keep(fields, block)
    return block


def _frame(kind: int, flags: int, stream_id: int, payload: bytes | memoryview = b"") -> bytes:
    size = len(payload)
    return _FRAME.pack(size >> 8, size & 255, kind, flags, stream_id) + payload


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise _Broken(Code.PROTOCOL_ERROR)
    return payload[1 : len(payload) - payload[0]]
