"""A component's port: it takes connections whether the component is awake or not, and relays what comes over them.

A connection's first bytes say what it speaks. Each has at most one connection to the component behind it, over which its bytes
go as they are: what HTTP/1.1 and HTTP/2 frame is only read, to know where a request begins and its answer ends.
"""

import asyncio
import contextlib
from typing import Protocol

from torpor.predictors.serving.http2 import PREFACE
from torpor.predictors.serving.server import BACKLOG

from .component import Component
from .documents import UpError, reason_of
from .http1_relay import Http1Relay
from .http2_relay import Http2Relay


class Relay(Protocol):
    """What the activator asks of an open connection."""

    def finish(self) -> None:
        """Begin nothing new, and close when nothing is being answered."""

    def abort(self) -> None:
        """Close at once."""


class Activator:
    """The port in front of one component."""

    def __init__(self, component: Component) -> None:
        self._component = component
        self._server: asyncio.Server | None = None
        self.relays: set[Relay] = set()
        self.is_finishing = False

    async def start(self, host: str, port: int) -> int:
        """The port. Raises UpError."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: _FirstBytes(self, self._component), host, port, backlog=BACKLOG
            )
        except OSError as error:
            raise UpError(
                f"port {port} on {host}, for {self._component.name}: {reason_of(error)}; choose others by --port"
            ) from error
        return int(self._server.sockets[0].getsockname()[1])

    def finish(self) -> None:
        """Take no more connections, and let those there are end with their next answers."""
        self.is_finishing = True
        if self._server is not None:
            self._server.close()
        for relay in [*self.relays]:
            relay.finish()

    def abort(self) -> None:
        for relay in [*self.relays]:
            relay.abort()


class _FirstBytes(asyncio.Protocol):
    """Hands a new connection to the relay that its first bytes speak."""

    def __init__(self, activator: Activator, component: Component) -> None:
        self._activator = activator
        self._component = component
        self._data = b""
        self._transport: asyncio.Transport = None  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._activator.relays.add(self)

    def data_received(self, data: bytes) -> None:
        self._data += data
        relay: Http1Relay | Http2Relay
        if not PREFACE.startswith(self._data[: len(PREFACE)]):
            relay, rest = Http1Relay(self._component, self._activator), self._data
        elif len(self._data) >= len(PREFACE):
            relay, rest = Http2Relay(self._component, self._activator), self._data[len(PREFACE) :]
        else:
            return
        self._activator.relays.discard(self)
        self._transport.set_protocol(relay)
        relay.connection_made(self._transport)
        if rest:
            relay.data_received(rest)

    def connection_lost(self, error: Exception | None) -> None:
        self._activator.relays.discard(self)

    def finish(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._transport.abort()
