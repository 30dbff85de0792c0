"""A component at work: its scale (when), its gate (who), and the instance that runs."""

import asyncio
import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from torpor.predictors.serving.tasks import Tasks

from .container import Process
from .documents import UpError
from .gate import Gate, Ticket
from .instance import Instance, free_port
from .scale import Action, Scale, State
from .services import Service
from .terminal import Terminal

_LATENCIES = 512
_WAKES = 20
_GRACE_S = 30.0
"""After SIGTERM, beyond the request's own timeout, before SIGKILL."""


@dataclass
class Wake:
    """began_s: on the loop's clock. phases: seconds by name, in order; of torpor's own process those that it tells."""

    began_s: float
    phases: dict[str, float] = field(default_factory=dict)
    outcome: str = "starting"


class Component:
    """make: coroutine function, a process that listens on a port; raises UpError."""

    def __init__(
        self,
        service: Service,
        make: Callable[[int], Coroutine[Any, Any, Process]],
        phases: Callable[[int], Any],
        terminal: Terminal,
    ) -> None:
        """phases: coroutine function, what the process at a port tells of its own start."""
        self.service = service
        self.name = service.name
        self.port = 0
        """Of the instance that runs."""
        self.generation = 0
        """Instances started so far."""
        self.crashes = 0
        self.since_s = 0.0
        """When the state began."""
        self.answered = 0
        self.refused = 0
        self.failed = 0
        self.latencies_s: deque[float] = deque(maxlen=_LATENCIES)
        self.wakes: deque[Wake] = deque(maxlen=_WAKES)
        self.scale = Scale(service.autoscaling)
        self.gate = Gate(service.autoscaling)
        self._make = make
        self._phases = phases
        self._terminal = terminal
        self._loop = asyncio.get_running_loop()
        self._preparing: asyncio.Task[Process] | None = None
        self._instance: Instance | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._killer: asyncio.TimerHandle | None = None
        self._tasks = Tasks()
        self._quiet = asyncio.Event()

    @property
    def pid(self) -> int:
        """Of the instance that runs, 0 for none."""
        return self._instance.pid if self._instance else 0

    @property
    def timeout_s(self) -> float:
        return self.service.timeout_s

    @property
    def state(self) -> State:
        return self.scale.state

    @property
    def takes_connections(self) -> bool:
        return self.state in (State.AWAKE, State.STOPPING) and self._instance is not None and not self._is_dying

    @property
    def _is_dying(self) -> bool:
        return self._instance is not None and self._instance.is_dying

    def now_s(self) -> float:
        """Exactly: the loop's own clock is uvloop's, which counts whole milliseconds."""
        return time.monotonic()

    def enter(self, ticket: Ticket, is_connected: bool = False) -> None:
        """A request has come: wake if need be. is_connected: to an instance that is stopping, which still answers.

        Raises QueueFull.
        """
        if is_connected and self.state is State.STOPPING:
            self.scale.began()
            self.gate.pass_by(ticket)
            return
        try:
            self.gate.enter(ticket)
        except Exception:
            self.refused += 1
            raise
        self.scale.began()
        if not ticket.is_granted:
            self._step()

    def leave(self, ticket: Ticket, is_answered: bool) -> None:
        """is_answered: its answer went through whole."""
        now_s = self.now_s()
        if is_answered:
            self.answered += 1
            self.latencies_s.append(now_s - ticket.began_s)
        else:
            self.failed += 1
        self.gate.leave(ticket)
        self.scale.ended(now_s)
        if not self.scale.requests:
            self._step()

    def lost_connection(self) -> None:
        """A connection to it has broken. If it is dying nobody may go to it any more, whoever waits for a place."""
        if self._is_dying:
            self.gate.close()

    def start(self) -> None:
        """Begin as the scale has it."""
        self.since_s = self.now_s()
        self._step()

    async def finish(self) -> None:
        """Answer what is under way, a wake in its middle included; return when nothing runs any more."""
        self.scale.close()
        self._step()
        if self.state is State.ASLEEP:
            self._quiet.set()
        await self._quiet.wait()
        await self._tasks.ended()

    async def kill(self) -> None:
        if self._instance is not None:
            self._instance.signal(signal.SIGKILL)
        await self._tasks.cancel()
        if self._timer is not None:
            self._timer.cancel()

    def _step(self) -> None:
        """Do what the scale says, and look again when it says."""
        now_s = self.now_s()
        before = self.state
        action = self.scale.step(now_s)
        if action is Action.START:
            self._tasks.start(self._run(), self.name)
        elif action is Action.STOP:
            self._stop()
        if self.state is not before:
            self._changed(before)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wake_s = self.scale.wake_at(now_s)
        if wake_s is not None:
            self._timer = self._loop.call_later(max(wake_s - now_s, 0.01), self._step)

    def _changed(self, before: State) -> None:
        self.since_s = self.now_s()
        if self.state is not State.AWAKE:
            self.gate.close()
        if self.state is State.ASLEEP:
            self._terminal.say(f"{self.name} {'has stopped' if self.scale.is_closing else 'is asleep'}")
            if self.scale.is_closing:
                self._quiet.set()
        elif self.state is State.STARTING:
            why = "starts again" if before is State.CRASHED else "wakes" if self.scale.requests else "starts"
            held = f", {self.scale.requests} waiting" if self.scale.requests else ""
            self._terminal.say(f"{self.name} {why}{held}")
        elif self.state is State.STOPPING:
            why = "stops" if self.scale.is_closing else f"falls asleep: no request for {self.scale.idle_s:g} s"
            self._terminal.say(f"{self.name} {why}")

    async def _run(self) -> None:
        """One instance from its start to its end."""
        wake = Wake(self.now_s())
        self.wakes.append(wake)
        self.generation += 1
        port = free_port()
        try:
            process = await self._prepared(port)
        except (UpError, OSError) as error:
            self._ended(wake, str(error))
            return
        if process is None:
            self._ended(wake, "it was not wanted any more")
            return
        wake.phases["prepare"] = self.now_s() - wake.began_s
        instance = Instance(process, port, self.service.probe, lambda text: self._terminal.line(self.name, text))
        try:
            await instance.start()
        except FileNotFoundError:
            self._ended(wake, f"there is no command {process.command[0]!r} on this machine")
            return
        except OSError as error:
            self._ended(wake, str(error))
            return
        self.port = port
        self._instance = instance
        if self.state is State.STOPPING:  # meanwhile
            self._stop()
        ending = asyncio.ensure_future(instance.ended())
        readying = asyncio.ensure_future(instance.ready())
        try:
            await asyncio.wait((ending, readying), timeout=self.service.progress_s, return_when=asyncio.FIRST_COMPLETED)
            if readying.done() and not ending.done():
                await self._became_ready(wake)
            elif not ending.done():
                self._terminal.say(f"{self.name} was not ready within {self.service.progress_s:g} s, and is ended")
                instance.signal(signal.SIGKILL)
            status = await ending
        except asyncio.CancelledError:
            instance.signal(signal.SIGKILL)
            await instance.gone()
            raise
        finally:
            readying.cancel()
            ending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await readying
        instance.signal(signal.SIGKILL)  # what it has left behind
        self._instance = None
        if self._killer is not None:
            self._killer.cancel()
            self._killer = None
        self._ended(wake, f"it ended {_how(status)}")

    async def _prepared(self, port: int) -> Process | None:
        """None when it has been stopped meanwhile. Raises UpError."""
        self._preparing = self._loop.create_task(self._make(port), name=f"{self.name} prepares")
        try:
            await asyncio.wait((self._preparing,))
            return None if self._preparing.cancelled() else self._preparing.result()
        finally:
            self._preparing.cancel()
            await asyncio.wait((self._preparing,))
            self._preparing = None

    async def _became_ready(self, wake: Wake) -> None:
        now_s = self.now_s()
        wake.phases["run"] = now_s - wake.began_s - wake.phases["prepare"]
        wake.outcome = "ready"
        self.scale.ready(now_s)
        self.since_s = now_s
        if self.state is State.AWAKE:
            self._terminal.say(f"{self.name} is awake after {now_s - wake.began_s:.2f} s")
            self.gate.open()
        self._step()
        own = await self._phases(self.port)
        if own:
            wake.phases |= own

    def _ended(self, wake: Wake, how: str) -> None:
        was_asked = self.state is State.STOPPING
        before = self.state
        if not was_asked:
            self.crashes += 1
            wake.outcome = how
        self.scale.exited(self.now_s())
        if self.state is State.CRASHED:
            again_s = (self.scale.wake_at(self.now_s()) or 0.0) - self.now_s()
            self._terminal.say(f"{self.name} does not run: {how}; again in {again_s:.1f} s if it is still wanted")
        self._changed(before)
        self._step()

    def _stop(self) -> None:
        """As the kubelet does: SIGTERM, and SIGKILL when its time is over. What is still being fetched is not waited for."""
        if self._preparing is not None:
            self._preparing.cancel()
        if self._instance is not None:
            self._instance.signal(signal.SIGTERM)
            self._killer = self._loop.call_later(self.timeout_s + _GRACE_S, self._kill, self._instance)

    def _kill(self, instance: Instance) -> None:
        self._terminal.say(f"{self.name} did not end within {self.timeout_s + _GRACE_S:g} s, and is killed")
        instance.signal(signal.SIGKILL)


def _how(status: int) -> str:
    if status >= 0:
        return f"with status {status}"
    return f"by {signal.Signals(-status).name}"
