"""Bodies in gzip and deflate, inflated within bounds and without holding up the event loop.

zlib gives 200 to 800 MB/s inflating and takes 30 to 90 MB/s compressing (level 1, two cores), without Python's lock. So
what fits in about a millisecond is done where it comes; the rest goes to one thread, one body after the other: 64 MiB take
it 0.1 to 0.3 s, and however many bombs come, they take one core and wait for one another. Nor do they take the memory: a
thousandth of what they hold has come, and the queue, which counts rows, would let all of them wait.
"""

import asyncio
import weakref
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from ..errors import InvalidInput, NotSupported, PayloadTooLarge, Unavailable
from .exchange import Exchange

_WINDOWS = {b"gzip": 31, b"deflate": 15}
"""zlib's number for a coding: deflate is zlib's own format (RFC 1950), as HTTP and gRPC have it."""

_INFLATED_AT_ONCE_BYTES = 256 << 10
_COMPRESSED_AT_ONCE_BYTES = 64 << 10

_LEAST_BYTES = 4096
"""A shorter answer is not worth compressing: it saves two packets at most."""
_SAMPLE_BYTES = 4096
_WORTH = 0.8
"""Nor is one whose beginning does not shrink to this: float32 shrink to 0.93, token ids to 0.37, JSON to 0.5."""
_LEVEL = 1
"""On JSON level 6 takes six times as long for a tenth less."""

Result = Callable[[], bytes]
"""Gives the bytes, or raises what went wrong."""


class ContentCoder:
    """Inflates and compresses for one server."""

    def __init__(self, max_body_bytes: int, max_held_bytes: int) -> None:
        """max_body_bytes: of a body, inflated. max_held_bytes: of all that have not been answered, twice as much at least."""
        self._max_body_bytes = max_body_bytes
        self._max_held_bytes = max(max_held_bytes, 2 * max_body_bytes)
        self._held_bytes = 0
        self._thread = ThreadPoolExecutor(1, "torpor-coding")  # it starts with the first large body

    def inflate(self, exchange: Exchange, data: bytes, coding: bytes, then: Callable[[Result], None]) -> None:
        """Call `then` with the content, now or later; not at all if the caller leaves.

        Raises InvalidInput, PayloadTooLarge, NotSupported, Unavailable for what is seen at once.
        """
        inflation = Inflation(data, coding, self._max_body_bytes)
        content = inflation.run(_INFLATED_AT_ONCE_BYTES)
        if content is None:
            self._later(exchange, inflation.run_to_end, lambda result: then(lambda: self._held(exchange, result())))
        else:
            content = self._held(exchange, content)
            then(lambda: content)

    def _held(self, exchange: Exchange, content: bytes) -> bytes:
        """The content, which counts until the exchange has gone. Raises Unavailable if there is no room for it."""
        size = len(content)
        if self._held_bytes + size > self._max_held_bytes:
            raise Unavailable("the server holds as much of inflated bodies as it may")
        self._held_bytes += size
        weakref.finalize(exchange, self._let_go, size).atexit = False
        return content

    def _let_go(self, size: int) -> None:
        self._held_bytes -= size

    def compress(self, exchange: Exchange, data: bytes, coding: bytes, then: Callable[[Result], None]) -> None:
        """Call `then` with the compressed data, now or later; not at all if the caller leaves."""
        if len(data) <= _COMPRESSED_AT_ONCE_BYTES:
            then(partial(_compress, data, coding))
        else:
            self._later(exchange, partial(_compress, data, coding), then)

    def _later(self, exchange: Exchange, work: Result, then: Callable[[Result], None]) -> None:
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        exchange.on_leave = future.cancel
        future.add_done_callback(lambda done: None if done.cancelled() else then(done.result))


class Inflation:
    """One body on its way to its content, which may have `limit` bytes."""

    def __init__(self, data: bytes, coding: bytes, limit: int) -> None:
        """Raises NotSupported for a coding that is neither gzip nor deflate."""
        if not coding:
            raise NotSupported("a message is compressed, and grpc-encoding does not say how")
        window = _WINDOWS.get(coding)
        if window is None:
            raise NotSupported(f"coding {coding.decode('latin-1')[:40]!r} is not supported, must be gzip or deflate")
        self._inflater = zlib.decompressobj(window)
        self._data = data
        self._coding = coding.decode()
        self._left = limit
        self._limit = limit
        self._pieces: list[bytes] = []

    def run(self, most: int) -> bytes | None:
        """The content if it takes at most `most` bytes more, else None. Raises InvalidInput, PayloadTooLarge."""
        inflater = self._inflater
        try:
            piece = inflater.decompress(self._data, most)
        except zlib.error as error:
            raise InvalidInput(f"the body is not {self._coding}: {error}") from None
        self._pieces.append(piece)
        self._left -= len(piece)
        if self._left < 0:
            raise PayloadTooLarge(f"body = {self._limit + 1} bytes or more inflated, must be in [0, {self._limit}]")
        if inflater.eof:
            if inflater.unused_data:
                raise InvalidInput(f"{len(inflater.unused_data)} bytes follow the end of the body's {self._coding}")
            return b"".join(self._pieces)
        if len(piece) < most:
            raise InvalidInput(f"the body ends inside its {self._coding}")
        self._data = inflater.unconsumed_tail
        return None

    def run_to_end(self) -> bytes:
        """The content. Raises InvalidInput, PayloadTooLarge."""
        content = self.run(self._left + 1)
        assert content is not None  # so much would have been too large
        return content


def is_worth_compressing(data: bytes) -> bool:
    """Whether an answer is long, and its beginning shrinks."""
    return len(data) >= _LEAST_BYTES and len(zlib.compress(data[:_SAMPLE_BYTES], _LEVEL)) < _WORTH * _SAMPLE_BYTES


def _compress(data: bytes, coding: bytes) -> bytes:
    compressor = zlib.compressobj(_LEVEL, wbits=_WINDOWS[coding])
    return compressor.compress(data) + compressor.flush()
