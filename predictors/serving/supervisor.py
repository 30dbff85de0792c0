"""`--processes N`: one process owns the port and hands each connection to one of N workers, whole servers of their own.

Python runs one thread at a time, so that one process uses little more than one core for its requests. The supervisor
accepts, and passes each socket on (SCM_RIGHTS) to the worker that has the fewest: with a shared listening socket the
kernel chooses, and may give one worker most of them (docs/decisions.md). It reads nothing from a connection.

    supervisor ── a byte and a socket for each connection ──► worker       (back: a byte when it is taken, one when it closes)
               ── calls both ways (`channel.py`) ──────────►

A worker calls `changes` (which models were loaded and unloaded), `ready` (the answer is what it has yet to follow), `drain`,
`leave` (pass me nothing more), `metrics` (everybody's) and `change` (let everybody load or unload a model, or nobody); the
supervisor calls `metrics` (its own), `prepare`, `commit`, `abort`, `limit` (to so many connections), and `live`.

A worker that dies takes with it what is inside it, and is started anew. What it had not taken goes to the others; without
others, connections wait here and in the port's backlog. When the new one is ready, the others end what they have beyond
their share with their next answers: connections stay where they are, and it would get none. A client with many open takes
another of those instead of a new one, so that this goes on until the new worker has got about as many. The server ends if
its first start fails, as that of one process does, or if a worker fails to start several times in a row.

A worker that hangs is killed: a probe from outside reaches any of them, so that only the supervisor can tell which. One
whose native code keeps the interpreter's lock runs no thread that could say so; so each is asked, and its event loop answers.
"""

import asyncio
import contextlib
import logging
import math
import signal
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from enum import IntEnum
from typing import Any

from ..errors import Unavailable
from .channel import Channel, Handler
from .merged_metrics import merged
from .server import BACKLOG, FINISH_S, address_of
from .tasks import Tasks

logger = logging.getLogger("torpor")

_ACCEPTED_AT_ONCE = 64
_PAUSE_S = 0.02
"""Until the next try when nobody takes connections, or when no descriptor is left for one."""

TAKEN, CLOSED, MISSED = b"t", b"c", b"m"
"""What a worker says of a connection; it takes them in the order that they come. One is missed for want of a descriptor."""

GIVEN = b"c"
"""What it is told: here is one."""

_EVEN = 3 / 4
"""Who has this part of its share of the connections has enough."""

_EVEN_OUT_S = 1.0
"""Until it is seen what the shares have become."""

_ASKED = 10
"""How often a worker is asked in the time that it may be silent for."""

_MOST_FAILURES = 5
_METRICS_S = 5.0
_DYING_S = 5.0
"""How long a worker has to end, after it has closed its channel or draining has taken its longest."""


class State(IntEnum):
    """What a worker is ready for. Connections go to those in the first state of READY and DRAINING that somebody is in."""

    STARTING = 0
    READY = 1
    DRAINING = 2
    CLOSED = 3


class Worker:
    """A worker, as its supervisor sees it."""

    def __init__(
        self,
        number: int,
        handlers: Callable[["Worker"], dict[str, Handler]],
        take_back: Callable[[socket.socket], object],
    ) -> None:
        self.number = number
        self._take_back = take_back
        self.state = State.STARTING
        self.was_ready = False
        self.connections = 0
        self.is_full = False
        """It had no descriptor for a connection, and none of its own has ended since."""
        self.is_silent = False
        """It has not answered yet what it was asked a while ago."""
        self.untaken: deque[socket.socket] = deque()
        """Connections that it was given and has not looked at: if it dies, they are somebody else's."""
        self.metrics = ""
        """What it counted when it was last asked."""
        self.most: int | None = None
        """How many connections it was told to keep; None for all."""
        self.channel = Channel(handlers(self))
        self._process: asyncio.subprocess.Process | None = None
        self._handover: socket.socket | None = None

    async def run(self, command: Sequence[str]) -> int:
        """Start it and wait for its end; its exit status as a shell has it."""
        loop = asyncio.get_running_loop()
        handover, its_handover = socket.socketpair()
        calls, its_calls = socket.socketpair()
        with handover:
            with its_handover, its_calls:
                descriptors = (its_handover.fileno(), its_calls.fileno())
                arguments = map(str, (self.number, *descriptors))
                self._process = await asyncio.create_subprocess_exec(*command, *arguments, pass_fds=descriptors)
            handover.setblocking(False)
            self._handover = handover
            loop.add_reader(handover, self._hear)
            try:
                await self.channel.open(calls)
                await self.channel.run()
                self.state = State.CLOSED  # at once: whoever waits for its answer is told now, and asks why
                status = await self._end(self._process)
            finally:
                while self._hear():
                    pass
                loop.remove_reader(handover)
        return status if status >= 0 else 128 - status

    async def _end(self, process: asyncio.subprocess.Process) -> int:
        """Its status, when it has ended. It serves nobody any more, but a thread of a model may still keep it."""
        try:
            return await asyncio.wait_for(process.wait(), _DYING_S)
        except TimeoutError:
            logger.error("worker %d has left and does not end, and is killed", self.number)
            self.send_signal(signal.SIGKILL)
            return await process.wait()

    def give(self, connection: socket.socket) -> bool:
        """Pass a connection on; False if the worker has no room for it."""
        assert self._handover is not None
        try:
            socket.send_fds(self._handover, [GIVEN], [connection.fileno()])
        except OSError:  # it has just died, or hangs and its socket is full
            return False
        self.connections += 1
        self.untaken.append(connection)
        return True

    async def limit(self, most: int | None) -> None:
        """Have connections beyond so many end with their next answers."""
        self.most = most
        with contextlib.suppress(Unavailable):  # it is dying
            await self.channel.call("limit", most)

    def close(self) -> None:
        """Pass it nothing more, and let it see that."""
        assert self._handover is not None
        self.state = State.CLOSED
        self._handover.shutdown(socket.SHUT_WR)

    def send_signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _hear(self) -> bool:
        """Take note of what it says of its connections; False if that was nothing."""
        assert self._handover is not None
        try:
            data = self._handover.recv(4096)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        for at in range(len(data)):
            news = data[at : at + 1]
            if news == TAKEN:
                self.untaken.popleft().close()
                continue
            self.connections -= 1
            self.is_full = news == MISSED and self.connections > 0
            if news == MISSED:
                self._take_back(self.untaken.popleft())
        if not data:  # it is ending, and the channel will say so
            asyncio.get_running_loop().remove_reader(self._handover)
        return bool(data)


class Supervisor:
    """Owns the port and its workers."""

    def __init__(
        self,
        command: Sequence[str],
        processes: int,
        port: socket.socket,
        drain_timeout_s: float,
        worker_timeout_s: float,
    ) -> None:
        """command: starts a worker, given its number and the descriptors of its two sockets. port: bound, not listening.

        worker_timeout_s: a worker that is silent for longer hangs; 0: no limit.
        """
        self._command = command
        self._processes = processes
        self._port = port
        self._drain_timeout_s = drain_timeout_s
        self._worker_timeout_s = worker_timeout_s
        self._workers: list[Worker] = []
        self._stopping = asyncio.Event()
        self._is_paused = False
        self._is_open = False
        self._tasks = Tasks()
        self._held: deque[socket.socket] = deque()
        """Connections that nobody has room for, or that were on their way to a worker which died."""
        self._status = 0
        self._began_s = time.perf_counter()
        self._changing = asyncio.Lock()
        self._changes: dict[str, bool] = {}
        """Models loaded (True) and unloaded since the start: a new worker follows."""
        self._evening_out: asyncio.TimerHandle | None = None
        self._retired = ""
        """What workers had counted that have ended: a sum must not fall."""

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT, or until the workers fail; the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop, number)
        async with asyncio.TaskGroup() as group:
            for worker_number in range(1, self._processes + 1):
                group.create_task(self._keep(worker_number), name=f"worker {worker_number}")
        return self._status

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Pass the signal on, and start nobody any more."""
        for worker in self._workers:
            worker.send_signal(number)
        if not self._stopping.is_set():
            self._stopping.set()
            limit_s = self._drain_timeout_s + FINISH_S + _DYING_S
            asyncio.get_running_loop().call_later(limit_s, self._kill)

    def _kill(self) -> None:
        for worker in self._workers:
            logger.error("worker %d has not ended in time and is killed", worker.number)
            worker.send_signal(signal.SIGKILL)

    async def _keep(self, number: int) -> None:
        """Start a worker, and the next one when it has died, until the server stops."""
        failures = 0
        while not self._stopping.is_set():
            worker = Worker(number, self._handlers, self._take_back)
            self._workers.append(worker)
            status = await worker.run(self._command)
            self._workers.remove(worker)
            self._even_out()
            if worker.untaken:
                self._held.extend(worker.untaken)
                self._accept()
            self._retired = merged([("", self._retired), ("", worker.metrics)], gauges=False)
            if self._stopping.is_set():
                self._status = self._status or status
                return
            logger.error("worker %d has ended with status %d", number, status)
            failures = 0 if worker.was_ready else failures + 1
            if not self._is_open or failures == _MOST_FAILURES:
                self._status = status or 1
                self.stop()
            elif failures:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), 2.0 ** (failures - 1))

    def _handlers(self, worker: Worker) -> dict[str, Handler]:
        async def changes(_: Any) -> dict[str, bool]:
            return self._changes

        async def ready(followed: dict[str, bool]) -> dict[str, bool]:
            async with self._changing:
                missing = {name: loaded for name, loaded in self._changes.items() if followed.get(name) is not loaded}
                if missing:
                    return missing
                worker.state = State.READY
            worker.was_ready = True
            if self._worker_timeout_s:
                self._tasks.start(self._watch(worker), f"watch of worker {worker.number}")
            if not self._is_open and [w.state for w in self._workers] == [State.READY] * self._processes:
                self._open()
            self._even_out()
            return {}

        async def drain(_: Any) -> None:
            worker.state = State.DRAINING
            self._even_out()

        async def leave(_: Any) -> None:
            worker.close()

        async def metrics(_: Any) -> list[tuple[str, str]]:
            return await self._metrics()

        async def change(asked: tuple[str, bool]) -> None:
            await self._change(*asked)

        handlers: list[Callable[[Any], Awaitable[Any]]] = [changes, ready, drain, leave, metrics, change]
        return {handler.__name__: handler for handler in handlers}

    async def _watch(self, worker: Worker) -> None:
        """Kill the worker when it hangs; returns when it has ended.

        The time that it is silent is counted in parts, each of which this process has waited for itself: a machine that was
        suspended, or a container that was paused, stood still for both, and that counts as one part.
        """
        part_s = self._worker_timeout_s / _ASKED
        with contextlib.suppress(Unavailable):  # it has ended
            while True:
                asked = asyncio.ensure_future(worker.channel.call("live"))
                for _ in range(_ASKED):
                    await asyncio.wait([asked], timeout=part_s)
                    worker.is_silent = not asked.done()
                    if asked.done():
                        break
                else:
                    logger.error(
                        "worker %d has not answered for %g s: it hangs, and is killed",
                        worker.number, self._worker_timeout_s,
                    )  # fmt: skip
                    worker.state = State.CLOSED
                    worker.send_signal(signal.SIGKILL)
                await asked
                await asyncio.sleep(part_s)

    def _open(self) -> None:
        """Everybody is ready: let connections in."""
        self._port.listen(BACKLOG)
        self._is_open = True
        asyncio.get_running_loop().add_reader(self._port, self._accept)
        seconds = time.perf_counter() - self._began_s
        logger.info("ready in %.2f s: %d processes on %s", seconds, self._processes, address_of(self._port))

    def _even_out(self) -> None:
        """Workers have come or gone: who has too few is passed what the others have beyond their shares."""
        workers = [worker for worker in self._workers if worker.state is State.READY]
        counts = [worker.connections for worker in workers]
        mean = sum(counts) / max(1, len(workers))
        share = math.ceil(mean)
        is_uneven = min(counts, default=0) < _EVEN * mean and max(counts) > share
        for worker in workers:
            most = share if is_uneven and worker.connections > share else None
            if most != worker.most:
                self._tasks.start(worker.limit(most), f"limit of worker {worker.number}")
        if self._evening_out is not None:
            self._evening_out.cancel()
        later = asyncio.get_running_loop().call_later
        self._evening_out = later(_EVEN_OUT_S, self._even_out) if is_uneven else None

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            takers = self._takers()
            if not takers:
                return self._pause()
            try:
                connection = self._held.popleft() if self._held else self._port.accept()[0]
            except BlockingIOError:
                return None
            except OSError as error:  # no descriptor is left, or the caller has gone already
                logger.warning("accept: %s", error)
                return self._pause()
            if not any(worker.give(connection) for worker in takers):  # they are dying, and not known to be
                self._held.append(connection)
                return self._pause()
        return None

    def _takers(self) -> list[Worker]:
        """Who may be given a connection, the least busy first, and last those of whom nobody knows whether they hang."""
        for state in (State.READY, State.DRAINING):
            workers = [worker for worker in self._workers if worker.state is state]
            if workers:
                takers = [worker for worker in workers if not worker.is_full]
                return sorted(takers, key=lambda worker: (worker.is_silent, worker.connections))
        return []

    def _take_back(self, connection: socket.socket) -> None:
        """A worker could not take it: it is the next one's, or the same one's later."""
        self._held.append(connection)
        self._pause()

    def _pause(self) -> None:
        """Leave connections in the backlog for a while."""
        if self._is_paused:
            return
        self._is_paused = True
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._port)
        loop.call_later(_PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._is_paused = False
        asyncio.get_running_loop().add_reader(self._port, self._accept)
        self._accept()  # what is held makes no event

    async def _metrics(self) -> list[tuple[str, str]]:
        """(worker, its metrics as text), and those of workers that have ended; who does not answer counts as before."""

        async def ask(worker: Worker) -> None:
            worker.metrics = await asyncio.wait_for(worker.channel.call("metrics"), _METRICS_S)

        workers = [worker for worker in self._workers if worker.was_ready]
        for worker, error in zip(
            workers, await asyncio.gather(*map(ask, workers), return_exceptions=True), strict=True
        ):
            if error is not None:
                logger.warning("worker %d does not tell its metrics: %s", worker.number, error)
        return [("", self._retired), *((str(worker.number), worker.metrics) for worker in workers)]

    async def _change(self, name: str, is_loaded: bool) -> None:
        """Let all workers load or unload a model, or none: raises the first error. One that dies on the way follows later."""
        async with self._changing:
            workers = [worker for worker in self._workers if worker.state in (State.READY, State.DRAINING)]

            async def tell(step: str, argument: Any) -> list[Exception]:
                calls = (worker.channel.call(step, argument) for worker in workers)
                errors = await asyncio.gather(*calls, return_exceptions=True)
                return [
                    error
                    for worker, error in zip(workers, errors, strict=True)
                    if isinstance(error, Exception) and worker.state is not State.CLOSED
                ]

            if errors := await tell("prepare", [name, is_loaded]):
                await tell("abort", name)
                raise errors[0]
            self._changes[name] = is_loaded
            for error in await tell("commit", [name, is_loaded]):
                logger.error("a worker did not change model %s: %s", name, error)


def bound_port(host: str, port: int) -> socket.socket:
    """A socket bound to the address, which does not listen yet. Raises OSError."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    bound.setblocking(False)
    return bound
