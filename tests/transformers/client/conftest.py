"""Loops whose time is virtual, and predictors that answer with whatever bytes a test wants."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import numpy as np
import pytest
import uvloop
from free_ports import free_port
from torpor.transformers.client import InferRequest

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.SelectorEventLoop], ids=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine on either loop, with real sockets and for a limited time; nothing may fail beside it."""

    def run_on_loop(scenario: Coroutine[Any, Any, None]) -> None:
        unhandled: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: unhandled.append(context))
            runner.run(asyncio.wait_for(scenario, 60))
        assert not unhandled

    return run_on_loop


class Caller:
    """A connection as the predictor of a test sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def request(self) -> tuple[bytes, bytes]:
        """The next request, head and body. Raises IncompleteReadError when the client has closed."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return head, await self._reader.readexactly(length)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def reset(self) -> None:
        self._writer.transport.abort()

    async def left(self) -> None:
        """Returns when the client has closed."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(1 << 16):
                pass


Behaviour = Callable[[Caller], Awaitable[None]]


class Predictor:
    """A raw server: `behaviours` say what happens on each connection in turn, the last on all that follow."""

    def __init__(self, behaviours: tuple[Behaviour, ...]) -> None:
        self._behaviours = behaviours
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.address = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        behaviour = self._behaviours[min(self.connections, len(self._behaviours)) - 1]
        try:
            await behaviour(Caller(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@pytest.fixture
def predictor() -> Callable[..., contextlib.AbstractAsyncContextManager[Predictor]]:
    """Listen with behaviours, for as long as an `async with` lasts."""

    @contextlib.asynccontextmanager
    async def listen(*behaviours: Behaviour) -> AsyncIterator[Predictor]:
        predictor = Predictor(behaviours)
        server = await asyncio.start_server(predictor.serve, "127.0.0.1", 0, limit=1 << 20)
        predictor.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield predictor
        finally:
            server.close()

    return listen


@pytest.fixture
def small() -> InferRequest:
    """One row of three numbers."""
    return InferRequest({"x": np.array([[1, 2, 3]], np.float32)})


ANSWER = b'{"model_name":"m","model_version":"7","outputs":[{"name":"y","datatype":"INT64","shape":[1],"data":[5]}]}'


@pytest.fixture
def ok() -> Callable[..., bytes]:
    """Make the answer of a predictor: y = 5, or another body."""

    def make(body: bytes = ANSWER, *fields: bytes, status: bytes = b"200 OK") -> bytes:
        lines = [b"HTTP/1.1 " + status, b"content-length: %d" % len(body), *fields, b"", body]
        return b"\r\n".join(lines)

    return make


@pytest.fixture
def unused_address() -> str:
    """Where nobody listens."""
    return f"127.0.0.1:{free_port()}"
