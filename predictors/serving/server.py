"""The HTTP server under the application: one port for HTTP/1.1, HTTP/2 with prior knowledge and gRPC in it.

Written here because it is most of what a request costs (docs/decisions.md has the figures): a request goes from its bytes
to the batcher and back without a task, a future or a thread of its own. A connection's first bytes say what it speaks.
"""

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Protocol

from ..errors import PayloadTooLarge, Unavailable
from .exchange import Application, Exchange, Head
from .http1 import HEAD_S, IDLE_S, Http1
from .http2 import PREFACE, Http2
from .unix_socket import FileOfSocket, bound_unix_socket

BACKLOG = 1024
_SWEEP_S = 1.0
PATIENCE_S = 5.0
"""From the beginning of a drain on, for a connection to be idle for a moment, in which it can end most gently."""

FINISH_S = 5.0
"""What is in flight at the end of a drain has so long, at least."""

_PIECE_BYTES = 64
"""What a piece of a body takes in memory beside its bytes: a caller may send it two bytes at a time."""


class Connection(Protocol):
    """What the server asks of an open connection."""

    def sweep(self) -> None:
        """End what its caller is too slow with; called once a second."""

    def shutdown(self) -> None:
        """Begin nothing new, and close when nothing is being answered."""

    def abort(self) -> None:
        """Close at once."""


class Listener(Protocol):
    """Where connections come from."""

    @property
    def most_connections(self) -> float:
        """Those beyond should end with their next answers, since there is more room elsewhere."""

    async def start(self, protocol: Callable[[], asyncio.Protocol]) -> str:
        """Take connections from now on, each with a protocol of its own; the address for the log. Raises OSError."""

    def released(self) -> None:
        """A connection has closed."""

    async def drain(self) -> None:
        """What can go elsewhere should: this server is leaving."""

    async def close(self) -> None:
        """Take no more."""


class Port:
    """A port of this process alone. tls: speaks TLS on it. unix_socket: a path to listen on as well, without TLS."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, unix_socket: str = "") -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._server: asyncio.Server | None = None
        self.most_connections = math.inf
        self._unix_path = unix_socket
        self._unix_server: asyncio.Server | None = None
        self._unix_file: FileOfSocket | None = None

    async def start(self, protocol: Callable[[], asyncio.Protocol]) -> str:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            protocol, self._host, self._port, backlog=BACKLOG,
            ssl=self._tls, ssl_handshake_timeout=HEAD_S if self._tls else None,
        )  # fmt: skip
        address = address_of(self._server.sockets[0])
        if not self._unix_path:
            return address
        listener, self._unix_file = bound_unix_socket(self._unix_path)
        self._unix_server = await loop.create_unix_server(protocol, sock=listener, backlog=BACKLOG)
        return f"unix:{self._unix_path} and {address}"

    def released(self) -> None:
        pass

    async def drain(self) -> None:
        pass

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._unix_server is not None:
            self._unix_server.close()
        if self._unix_file is not None:
            self._unix_file.remove()


class Ports:
    """Several as one, the last the server's own."""

    most_connections = math.inf

    def __init__(self, ports: Sequence[Port]) -> None:
        self._ports = ports

    async def start(self, protocol: Callable[[], asyncio.Protocol]) -> str:
        return " and ".join([await port.start(protocol) for port in self._ports])

    def released(self) -> None:
        pass

    async def drain(self) -> None:
        pass

    async def close(self) -> None:
        for port in self._ports:
            await port.close()


def address_of(listener: socket.socket) -> str:
    """HOST:PORT."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class HttpServer:
    """Serves the application from `start` until `shutdown`, which lets what is in flight finish."""

    def __init__(self, app: Application, listener: Listener, max_body_bytes: int, max_unfinished_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.max_unfinished_bytes = max(max_unfinished_bytes, 2 * max_body_bytes)
        self.unfinished_bytes = 0
        """What all connections together hold of bodies that are still coming."""
        self._unfinished: dict[Exchange, int] = {}
        """The same for each, in the order in which they began to come."""
        self.connections: set[Connection] = set()
        self._parting: set[Connection] = set()
        """Those among them that end because there are too many."""
        self.in_flight = 0
        """Exchanges that wait for their answer; streaming calls, which last as long as their caller, are not counted."""
        self.last_request_s = -math.inf
        """When the last exchange ended, once the server is draining."""
        self.is_draining = False
        """Whether connections end with their next answer."""
        self.parting_s = math.inf
        """From when on connections end that have not been idle since."""
        self.is_shutting_down = False
        self.loop = asyncio.get_running_loop()
        self.now_s = self.loop.time()
        """The time of the last sweep: limits of many seconds need no clock of their own for each request."""
        self.date = b""
        """The value of the Date field (RFC 9110, 6.6.1), made once a second."""
        self._listener = listener
        self._sweeper: asyncio.TimerHandle | None = None
        self._emptied = asyncio.Event()

    async def start(self) -> str:
        """Take connections; the listener's address. Raises OSError."""
        self._sweep()
        return await self._listener.start(lambda: _FirstBytes(self))

    async def drain(self) -> None:
        """Go on, but let connections end with their next answer."""
        self.is_draining = True
        self.parting_s = self.loop.time() + PATIENCE_S
        await self._listener.drain()

    async def shutdown(self, timeout_s: float) -> None:
        """Take no more connections, send GOAWAY, let what is in flight finish for so long, then cut what is left."""
        await self._listener.close()
        self.is_shutting_down = True
        for connection in [*self.connections]:
            connection.shutdown()
        self._note_empty()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._emptied.wait(), timeout_s)
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in [*self.connections]:
            connection.abort()

    def opened(self, connection: Connection) -> None:
        self.connections.add(connection)

    def closed(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._parting.discard(connection)
        self._listener.released()
        self._note_empty()

    def lets_go(self, connection: Connection) -> bool:
        """Whether the connection of this answer ends with it."""
        if len(self.connections) - len(self._parting) > self._listener.most_connections:
            self._parting.add(connection)
            return True
        return self.is_draining

    def finished(self, head: Head) -> None:
        """An exchange has ended. Who only looks at the server, as probes and scrapers do, does not keep it from leaving."""
        self.in_flight -= 1
        if self.is_draining and head.method == "POST" and not head.path.startswith("/grpc.health."):
            self.last_request_s = self.loop.time()

    def too_large(self, size: int) -> PayloadTooLarge:
        return PayloadTooLarge(f"body = {size} bytes, must be in [0, {self.max_body_bytes}]")

    def hold(self, exchange: Exchange, size: int, pieces: int) -> None:
        """So many more bytes of a body are kept that has not come whole. If that is too much, the newest are refused."""
        size += pieces * _PIECE_BYTES
        self.unfinished_bytes += size
        self._unfinished[exchange] = self._unfinished.get(exchange, 0) + size
        while self.unfinished_bytes > self.max_unfinished_bytes:
            newest = next(reversed(self._unfinished))
            self.release(newest)
            self.app.refuse(newest, Unavailable("the server holds as many bodies that are still coming as it may"))

    def release(self, exchange: Exchange) -> None:
        """Its body has come whole, or is not kept any more."""
        self.unfinished_bytes -= self._unfinished.pop(exchange, 0)

    def _note_empty(self) -> None:
        if self.is_shutting_down and not self.connections:
            self._emptied.set()

    def _sweep(self) -> None:
        """Look for callers that are too slow, once a second: cheaper than a timer for each."""
        self.now_s = self.loop.time()
        self.date = formatdate(usegmt=True).encode()
        for connection in [*self.connections]:
            connection.sweep()
        self._sweeper = self.loop.call_later(_SWEEP_S, self._sweep)


class _FirstBytes(asyncio.Protocol):
    """Hands a new connection to the protocol that its first bytes speak."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._data = b""
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._deadline_s = server.now_s + IDLE_S

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._server.opened(self)
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None:  # the dead are found by the kernel
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        self._data += data
        preface = self._data[: len(PREFACE)]
        if not PREFACE.startswith(preface):
            self._hand_over(Http1(self._server), self._data)
        elif len(preface) == len(PREFACE):
            self._hand_over(Http2(self._server), self._data[len(PREFACE) :])
        else:
            self._deadline_s = min(self._deadline_s, self._server.now_s + HEAD_S)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.closed(self)

    def _hand_over(self, protocol: Http1 | Http2, data: bytes) -> None:
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        self._server.connections.discard(self)
        if data:
            protocol.data_received(data)

    def sweep(self) -> None:
        if self._server.now_s >= self._deadline_s:
            self._transport.abort()

    def shutdown(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()
