"""Clients that come by themselves and never retry: every request gets one attempt, and its first answer counts.

They are as careful as a good client's library, and no more: a connection that its kernel knows to be closed is not used,
one that says that it ends (`Connection: close`, GOAWAY) gets nothing new. Addresses are looked at when a connection is
opened, as a Service's are: a connection that lives stays where it is. Each answer is compared with raw torch's.
"""

import asyncio
import contextlib
import random
import select
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import hpack
import numpy as np

from probe import is_right
from wires import Exchange, Wire

CALLERS = 16
"""In a loop, for the capacity."""

LIMIT_S = 30.0
"""For an answer, once the load has ended."""

_HTTP2_CONNECTIONS = 8
_CLOSED = select.POLLRDHUP | select.POLLHUP | select.POLLERR


@dataclass
class Attempt:
    """One request that was not answered right. `port` is the connection's own, `sent_s` when it was written there."""

    outcome: str
    """refused: by an answer that says so, by HTTP/2's word that nothing was done, or by no connection. wrong. lost."""

    reason: str
    sent_s: float
    port: int
    ended_s: float = field(default_factory=time.monotonic)


@dataclass
class Answer:
    headers: Mapping[str, str]
    body: bytes


Done = Callable[[Answer | Attempt], None]


class Connection(Protocol):
    def ask(self, message: bytes, done: Done) -> None: ...


class _Connection(asyncio.Protocol):
    """What both versions share. free: called when another request may be sent on it."""

    def __init__(self, free: Callable[["_Connection"], None]) -> None:
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.port = 0
        self.is_ending = False
        self._free = free
        self._buffer = b""
        self._poll = select.poll()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.port = transport.get_extra_info("sockname")[1]
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLRDHUP)

    def is_usable(self) -> bool:
        return not (self.is_ending or self.transport.is_closing() or self._poll.poll(0))

    def leave(self) -> None:
        """Ask nothing more on it, and close it when all is answered."""
        self.is_ending = True
        self.transport.close()

    def answered(self, is_refusal: bool, headers: Mapping[str, str], text: str, sent_s: float) -> Attempt:
        """What Envoy says itself is no refusal of the pod's, and names the connection that it had to the pod."""
        flags = headers.get("x-flags", "-")
        port = int(headers.get("x-upstream", "").rpartition(":")[2] or 0) if flags != "-" else self.port
        outcome = "refused" if is_refusal and flags == "-" else "lost"
        return Attempt(outcome, f"{text} flags {flags}", sent_s, port)

    def failed(self, outcome: str, reason: str, sent_s: float) -> Attempt:
        return Attempt(outcome, reason, sent_s, self.port)


class Http1Connection(_Connection):
    """One request at a time."""

    _done: Done | None = None
    _sent_s = 0.0

    def ask(self, message: bytes, done: Done) -> None:
        self._done, self._sent_s = done, time.monotonic()
        self.transport.write(message)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        size = end + 4 + int(headers["content-length"])
        if len(self._buffer) < size:
            return
        body, self._buffer = self._buffer[end + 4 : size], self._buffer[size:]
        done, self._done = self._done, None
        if done is None:
            self.leave()
            return
        status = lines[0].split()[1]
        if headers.get("connection") == "close":
            self.leave()
        else:
            self._free(self)
        if status == "200":
            done(Answer(headers, body))
        else:
            refused = status == "503" and "retry-after" in headers
            done(self.answered(refused, headers, f"{status} {body[:200]!r}", self._sent_s))

    def connection_lost(self, error: Exception | None) -> None:
        self.is_ending = True
        if self._done is not None:
            self._done(self.failed("lost", f"the connection ended: {error!r}", self._sent_s))


class Http2Connection(_Connection):
    """gRPC's unary calls; each connection has streams of many."""

    _FRAME = struct.Struct(">HBBBL")
    _DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
    _REFUSED_STREAM = 7
    _blocks: dict[bytes, dict[str, str]] = {}
    """Header blocks use no table, since this side has none."""

    def __init__(self, free: Callable[["_Connection"], None], block: bytes) -> None:
        super().__init__(free)
        self._block = block
        self._next = 1
        self._window = 65535
        self.streams: dict[int, tuple[Done, float, dict[str, str], list[bytes]]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + self._frame(self._SETTINGS, 0, 0, struct.pack(">HLHL", 1, 0, 2, 0))
            + self._frame(self._WINDOW_UPDATE, 0, 0, struct.pack(">L", 2**31 - 1 - 65535))
        )

    def is_usable(self) -> bool:
        return self._window > 8192 and super().is_usable()

    def ask(self, message: bytes, done: Done) -> None:
        stream, self._next = self._next, self._next + 2
        self.streams[stream] = (done, time.monotonic(), {}, [])
        self._window -= len(message)
        self.transport.write(
            self._frame(self._HEADERS, 4, stream, self._block) + self._frame(self._DATA, 1, stream, message)
        )

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data
        at = 0
        while len(data) - at >= 9:
            high, low, kind, flags, stream = self._FRAME.unpack_from(data, at)
            end = at + 9 + (high << 8 | low)
            if end > len(data):
                break
            self._take(kind, flags, stream & 2**31 - 1, data[at + 9 : end])
            at = end
        self._buffer = data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == self._SETTINGS and not flags & 1:
            self.transport.write(self._frame(self._SETTINGS, 1, 0))
        elif kind == self._PING and not flags & 1:
            self.transport.write(self._frame(self._PING, 1, 0, payload))
        elif kind == self._WINDOW_UPDATE and not stream:
            self._window += int.from_bytes(payload, "big")
        elif kind == self._GOAWAY:
            last = int.from_bytes(payload[:4], "big")
            for other in [other for other in self.streams if other > last]:
                self._fail(other, "refused", f"GOAWAY, the last stream is {last}, this was {other}")
            self.leave()
        elif stream in self.streams:
            if kind == self._RST_STREAM:
                code = int.from_bytes(payload, "big")
                self._fail(stream, "refused" if code == self._REFUSED_STREAM else "lost", f"RST_STREAM {code}")
            elif kind == self._DATA:
                self.streams[stream][3].append(payload)
            elif kind == self._HEADERS:
                self.streams[stream][2].update(self._read(payload))
            if flags & 1 and kind in (self._DATA, self._HEADERS):
                self._end(stream)

    def _end(self, stream: int) -> None:
        done, sent_s, headers, pieces = self.streams.pop(stream)
        status = headers.get("grpc-status")
        if headers.get(":status") == "200" and status == "0":
            done(Answer(headers, b"".join(pieces)[5:]))
        else:
            text = f"{headers.get(':status')}, grpc-status {status} {headers.get('grpc-message')}"
            done(self.answered(status == "14", headers, text, sent_s))
        if self.is_ending:
            self.leave()

    def _fail(self, stream: int, outcome: str, reason: str) -> None:
        done, sent_s, _, _ = self.streams.pop(stream)
        done(self.failed(outcome, reason, sent_s))
        if self.is_ending:
            self.leave()

    def leave(self) -> None:
        self.is_ending = True
        if not self.streams:
            self.transport.close()

    def _read(self, block: bytes) -> dict[str, str]:
        if block not in self._blocks:
            self._blocks[block] = dict(hpack.Decoder().decode(block))
        return self._blocks[block]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
        return self._FRAME.pack(len(payload) >> 8, len(payload) & 255, kind, flags, stream) + payload

    def connection_lost(self, error: Exception | None) -> None:
        self.is_ending = True
        for stream in [*self.streams]:
            self._fail(stream, "lost", f"the connection ended: {error!r}")


class Callers:
    """The clients. addresses: ports of the machine, to which new connections go in turns."""

    def __init__(
        self, wire: Wire, exchanges: Sequence[Exchange], expected: np.ndarray, host: str = "127.0.0.1"
    ) -> None:
        """expected: raw torch's answers, [rows, features]. host: what HTTP/1.1 requests name as theirs."""
        self.machine = "127.0.0.1"
        self.addresses: Sequence[int] = ()
        self.offered = 0
        self.correct = 0
        self.failures: list[Attempt] = []
        self._wire = wire
        self._expected = expected
        self._is_http2 = exchanges[0].is_grpc
        self._messages = [exchange.body if exchange.is_grpc else exchange.http1(host) for exchange in exchanges]
        self._block = _block(exchanges[0]) if self._is_http2 else b""
        self._usable: list[_Connection] = []
        """HTTP/1.1's idle connections, the latest last; HTTP/2's that take streams."""
        self._outstanding = 0
        self._idle = asyncio.Event()
        self._opening: set[asyncio.Task[None]] = set()
        self._chance = random.Random(0)
        self._loop = asyncio.get_running_loop()

    async def capacity(self, seconds: float) -> float:
        """Correct answers a second to so many as CALLERS in a loop."""
        end_s = time.monotonic() + seconds
        before, began_s = self.correct, time.monotonic()

        async def work() -> None:
            while time.monotonic() < end_s:
                done = self._loop.create_future()
                self.ask(done)
                await done

        await asyncio.gather(*(work() for _ in range(CALLERS)))
        return (self.correct - before) / (time.monotonic() - began_s)

    async def offer(self, rate: float, stop: asyncio.Event) -> None:
        """So many requests a second as Poisson has them, until the event; then wait for the answers."""
        due_s = time.monotonic()
        while not stop.is_set():
            due_s += self._chance.expovariate(rate)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            self.ask()
        if self._outstanding:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), LIMIT_S)
        for _ in range(self._outstanding):
            self.failures.append(Attempt("lost", f"no answer for {LIMIT_S:g} s", time.monotonic(), 0))
        for connection in self._usable:
            connection.leave()

    def ask(self, answered: asyncio.Future[None] | None = None) -> None:
        """Send the next row; `answered` when the outcome is known."""
        index = self.offered % len(self._messages)
        self.offered += 1
        self._outstanding += 1
        self._idle.clear()

        def done(result: Answer | Attempt) -> None:
            self._outstanding -= 1
            if not self._outstanding:
                self._idle.set()
            if isinstance(result, Answer):
                reason = self._wrong(result, index)
                result = Attempt("wrong", reason, time.monotonic(), 0) if reason else result
            if isinstance(result, Attempt):
                self.failures.append(result)
            else:
                self.correct += 1
            if answered is not None:
                answered.set_result(None)

        message = self._messages[index]
        connection = self._choose()
        if connection is not None:
            connection.ask(message, done)
        else:
            task = self._loop.create_task(self._open(message, done))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def _choose(self) -> Connection | None:
        """A connection that takes a request; None: a new one is due."""
        while self._usable:
            if self._is_http2:
                if len(self._usable) + len(self._opening) < _HTTP2_CONNECTIONS:
                    return None
                connection = min(self._usable, key=lambda connection: len(connection.streams))
            else:
                connection = self._usable[-1]
            if connection.is_usable():
                if not self._is_http2:
                    self._usable.pop()
                return connection
            self._usable.remove(connection)
            connection.leave()
        return None

    async def _open(self, message: bytes, done: Done) -> None:
        address = self.addresses[self.offered % len(self.addresses)]
        make = (
            (lambda: Http2Connection(self._usable.append, self._block))
            if self._is_http2
            else (lambda: Http1Connection(self._usable.append))
        )
        try:
            _, connection = await self._loop.create_connection(make, self.machine, address)
        except ConnectionRefusedError:
            done(Attempt("refused", f"no connection to {address}", time.monotonic(), 0))
            return
        except OSError as error:
            done(Attempt("lost", f"no connection to {address}: {error!r}", time.monotonic(), 0))
            return
        if self._is_http2:
            self._usable.append(connection)
        connection.ask(message, done)

    def check(self, values: np.ndarray, expected: np.ndarray) -> str:
        """What is wrong with an answer's values, [features]; empty if nothing is."""
        return "" if is_right(values, expected) else f"{values[:4]}... instead of {expected[:4]}..."

    def _wrong(self, answer: Answer, index: int) -> str:
        try:
            return self.check(self._wire.decode(answer.headers, answer.body)[0], self._expected[index])
        except (KeyError, ValueError, IndexError) as error:
            return repr(error)


def _block(exchange: Exchange) -> bytes:
    """The header block of every request; without a table, so that it can be sent again."""
    fields = [(":method", "POST"), (":scheme", "http"), (":authority", "127.0.0.1"), (":path", exchange.path)]
    return b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in [*fields, *exchange.headers.items()]
    )
