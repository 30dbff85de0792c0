"""A relay of `torpor up` between a caller and a component that are the test's own, without sockets, in virtual time.

What the relay writes stays in its transports until the test takes it; what the test gives comes in pieces of any length, unless
the relay has said that it does not read. A transport that holds much tells the relay to pause, as a socket's does.
"""

import asyncio
import errno
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from torpor.knative.autoscaling import Autoscaling
from torpor.knative.up.activator import Activator
from torpor.knative.up.component import Component
from torpor.knative.up.gate import Gate, Ticket
from torpor.knative.up.scale import State
from virtual_time import VirtualTimeLoop

HIGH_BYTES = 64 << 10
"""A transport that holds more pauses who writes."""


class End:
    """The relay's transport towards one side, and that side itself: `take` what was written, `give` what it reads."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._held = bytearray()
        self._pauses = False
        self._has_unread = False
        self.is_paused = False
        """The relay does not read."""
        self.is_closed = False
        """By the relay: what is held still arrives."""
        self.is_lost = False

    # What the relay calls.

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def write(self, data: bytes) -> None:
        if self.is_closed or self.is_lost:
            return
        self._held += data
        if len(self._held) > HIGH_BYTES and not self._pauses:
            self._pauses = True
            self._protocol.pause_writing()

    def close(self) -> None:
        self.is_closed = True
        if not self._held:
            self._lose_soon()

    def abort(self) -> None:
        self.is_closed = True
        self._held.clear()
        self._lose_soon()

    def is_closing(self) -> bool:
        return self.is_closed

    def get_extra_info(self, name: str) -> Any:
        return SimpleNamespace(getsockopt=lambda *option: errno.EPIPE if self._has_unread else 0)

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    # What the test calls.

    @property
    def held(self) -> int:
        return len(self._held)

    @property
    def reads(self) -> bool:
        return not (self.is_paused or self.is_closed or self.is_lost)

    def take(self, most: int) -> bytes:
        """What this side reads next."""
        data = bytes(self._held[:most])
        del self._held[:most]
        if self._pauses and len(self._held) <= HIGH_BYTES // 4:
            self._pauses = False
            self._protocol.resume_writing()
        if self.is_closed and not self._held:
            self._lose_soon()
        return data

    def give(self, data: bytes) -> None:
        """What this side sends."""
        assert self.reads
        self._protocol.data_received(data)

    def lose(self, has_unread: bool = False) -> None:
        """This side has gone. has_unread: before something came that it would have had to read."""
        self._held.clear()
        self._has_unread = has_unread
        self._protocol.eof_received()
        self._lost()

    def _lose_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._lost)

    def _lost(self) -> None:
        if not self.is_lost:
            self.is_lost = self.is_closed = True
            self._protocol.connection_lost(None)


class Subject:
    """A component whose sleep and death are the test's: what the relays ask of `Component`."""

    name = "subject"
    port = 1

    def __init__(self, concurrency: int, timeout_s: float) -> None:
        self.gate = Gate(Autoscaling(container_concurrency=concurrency))
        self.state = State.STARTING
        self.generation = 1
        self.timeout_s = timeout_s
        self.ended: list[bool] = []
        """Of each request that has ended, whether its answer went through whole."""

    @property
    def takes_connections(self) -> bool:
        return self.state in (State.AWAKE, State.STOPPING)

    def lost_connection(self) -> None:
        pass

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def enter(self, ticket: Ticket, is_connected: bool = False) -> None:
        self.gate.enter(ticket)

    def leave(self, ticket: Ticket, is_answered: bool) -> None:
        self.ended.append(is_answered)
        self.gate.leave(ticket)

    def wake(self) -> None:
        self.state = State.AWAKE
        self.gate.open()

    def die(self) -> None:
        self.state = State.CRASHED
        self.generation += 1
        self.gate.close()


class RelayLoop(VirtualTimeLoop):
    """Its server's connections are made by the test, and those that the relay makes are given to it."""

    def __init__(self) -> None:
        super().__init__()
        self.accept: Callable[[], Any] = lambda: None
        self.behind: list[End] = []
        self.may_connect = True

    async def create_server(self, make: Any, *arguments: Any, **more: Any) -> Any:
        self.accept = make
        listener = SimpleNamespace(getsockname=lambda: ("127.0.0.1", 1))
        return SimpleNamespace(sockets=[listener], close=lambda: None)

    async def create_connection(self, make: Any, *arguments: Any, **more: Any) -> Any:
        await asyncio.sleep(0)
        if not self.may_connect:
            raise ConnectionRefusedError
        protocol = make()
        end = End(protocol)
        self.behind.append(end)
        protocol.connection_made(end)
        return end, protocol


class RelayBench:
    """One caller's connection to an activator. Made by `started`, in a RelayLoop."""

    def __init__(self, concurrency: int = 0, timeout_s: float = 60.0) -> None:
        self.loop = cast(RelayLoop, asyncio.get_running_loop())
        self.subject = Subject(concurrency, timeout_s)
        self.activator = Activator(cast(Component, self.subject))

    async def started(self) -> "RelayBench":
        await self.activator.start("127.0.0.1", 1)
        protocol = self.loop.accept()
        self.caller = End(protocol)
        protocol.connection_made(self.caller)
        return self

    @property
    def component(self) -> End | None:
        """The component's side of the newest connection to it."""
        return self.loop.behind[-1] if self.loop.behind else None

    async def pause(self, seconds: float = 0.1) -> None:
        """Time passes."""
        await asyncio.sleep(seconds)

    async def settle(self) -> None:
        """What is due is done."""
        for _ in range(6):
            await asyncio.sleep(0)


def run_relay(scenario: Any) -> Any:
    """Run a coroutine on a RelayLoop."""
    with asyncio.Runner(loop_factory=RelayLoop) as runner:
        return runner.run(scenario)
