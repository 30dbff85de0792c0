"""The connections to one address: kept, bounded, and shared by whoever asks."""

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Callable

from torpor.predictors.errors import QueueFull, TorporError, Unavailable
from torpor.predictors.serving.settling import settling
from torpor.predictors.serving.tasks import Tasks

from .address import Address
from .connection import Connection, Exchange
from .message import Piece, Reply

_SWEEPS = 4
"""As often in `idle_s` it is looked for connections to close."""


class Pool:
    """Connections to `address`. Belongs to one event loop, and is bound to it by its first request.

    max_connections: most of them. max_waiting: requests that wait for one of them, the oldest first. idle_s: a connection
    that is not used for so long is closed; the one last used is used first. ca_file: certificates to trust, in PEM;
    the system's with "".
    """

    def __init__(
        self,
        address: Address,
        max_connections: int,
        max_waiting: int,
        idle_s: float,
        connect_timeout_s: float,
        max_answer_bytes: int,
        ca_file: str,
    ) -> None:
        self.address = address
        self._max_connections = max_connections
        self._max_waiting = max_waiting
        self._idle_s = idle_s
        self._connect_timeout_s = connect_timeout_s
        self._max_answer_bytes = max_answer_bytes
        self._ca_file = ca_file
        self._tls: ssl.SSLContext | None = None
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._waiting: OrderedDict[Exchange, None] = OrderedDict()
        self._opening = 0
        self._tasks = Tasks()
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_closed = False

    def send(self, message: list[Piece], answer: Callable[[Reply | TorporError], None]) -> Exchange:
        """Send a request's bytes, now or when a connection is free. Raises QueueFull, Unavailable.

        The pieces must not change until it is answered.
        """
        if self._is_closed:
            raise _closed()
        exchange = Exchange(message, answer, self)
        connection = self._take_idle()
        if connection is not None:
            connection.send(exchange)
            return exchange
        if len(self._waiting) >= self._max_waiting:
            raise QueueFull(
                f"requests to {self.address} that wait = {len(self._waiting)}, must stay below {self._max_waiting}", 1.0
            )
        self._waiting[exchange] = None
        self._open_more()
        return exchange

    async def ask(self, message: list[Piece]) -> Reply:
        """`send` for a coroutine: the answer, or the error raised. Cancelled, it closes the request's connection."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        exchange = self.send(message, settling(future))
        try:
            return await future
        finally:
            exchange.cancel()

    def freed(self, connection: Connection) -> None:
        if self._waiting:
            exchange, _ = self._waiting.popitem(last=False)
            connection.send(exchange)
            return
        connection.idle_sweeps = 0
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweep()

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._open_more()

    def again(self, exchange: Exchange) -> None:
        if self._is_closed:
            exchange.finish(_closed())
            return
        connection = self._take_idle()
        if connection is not None:
            connection.send(exchange)
            return
        self._waiting[exchange] = None
        self._waiting.move_to_end(exchange, last=False)
        self._open_more()

    def withdraw(self, exchange: Exchange) -> None:
        self._waiting.pop(exchange, None)

    async def close(self) -> None:
        """Close all connections; what is under way is refused."""
        self._is_closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._tasks.cancel()
        self._refuse(_closed())
        for connection in [*self._connections]:
            connection.fail(_closed())

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed:
                return connection
        return None

    def _open_more(self) -> None:
        """Open a connection for each that waits, within the limit."""
        while self._opening < len(self._waiting) and len(self._connections) + self._opening < self._max_connections:
            self._opening += 1
            self._tasks.start(self._open(), f"connection to {self.address}")

    async def _open(self) -> None:
        address = self.address
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                connection = await self._connect()
            if connection.is_closed:
                raise ConnectionResetError("it closes connections at once")
        except (OSError, TimeoutError) as error:
            self._opening -= 1
            # Those that wait go on waiting where another connection will be free for them.
            if not self._connections and not self._opening:
                why = f"not within {self._connect_timeout_s:g} s" if isinstance(error, TimeoutError) else str(error)
                self._refuse(Unavailable(f"{address} cannot be reached: {why}", 0.0))
            return
        except BaseException:
            self._opening -= 1
            raise
        self._opening -= 1
        self._connections.add(connection)
        self.freed(connection)

    async def _connect(self) -> Connection:
        loop, address = asyncio.get_running_loop(), self.address
        connection = Connection(self, self._max_answer_bytes)
        if address.path:
            await loop.create_unix_connection(lambda: connection, address.path)
            return connection
        if address.is_tls and self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context, cafile=self._ca_file or None)
        await loop.create_connection(lambda: connection, address.host, address.port, ssl=self._tls)
        return connection

    def _refuse(self, error: TorporError) -> None:
        refused, self._waiting = self._waiting, OrderedDict()
        for exchange in refused:
            exchange.finish(error)

    def _sweep(self) -> None:
        """Close what has been idle for too long."""
        stale = []
        for connection in self._idle:
            connection.idle_sweeps += 1
            if connection.idle_sweeps > _SWEEPS:
                stale.append(connection)
        for connection in stale:
            self._idle.remove(connection)
            connection.abort()
        self._sweeper = None
        if self._idle:
            self._sweeper = asyncio.get_running_loop().call_later(self._idle_s / _SWEEPS, self._sweep)


def _closed() -> Unavailable:
    return Unavailable("the client has been closed", None)
