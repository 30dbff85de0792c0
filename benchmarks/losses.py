"""What clients that never retry lose while pods are told to end, replaced and killed, with and without Envoy.

Each measurement starts pods and the clients, of four ways at once, lets them find out what they reach in a loop, and
then come by themselves with 60 % of it, while something happens to the pods again and again. Every request counts in
one column: correct; inside, when it was sent on a connection of the killed process before that was dead, and not
answered; refused, before the endpoint was removed or the process was back, or after; lost; wrong.
"""

import asyncio
import contextlib
import http.client
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvloop

from environments import UnavailableError
from envoy import Envoy, envoy
from first_answers import Attempt, Callers
from loads import BadAnswerError, Rate
from measurements import THREADS, load_rows
from servers import Running, Torpor, running
from wires import ModelInfer, V2Binary, Wire

SHARE = 0.6
_TOLD = 5
"""Of each kind of failure, in full."""

_CAPACITY_S = 2.0
_QUIET_S = 1.0
_LIMIT_S = 60.0
_TICK_S = 0.02
COLUMNS = ("offered", "correct", "inside", "refused before", "refused after", "lost", "wrong")
FAILED = COLUMNS[4:]


@dataclass
class Trouble:
    """Something that happens to a pod: refusals from `began_s` to `ended_s` are expected."""

    began_s: float
    ended_s: float = float("inf")
    dead_s: float = 0.0
    ports: frozenset[int] = frozenset()
    """The callers' (or Envoy's) ends of the killed process's connections."""

    def excuses(self, attempt: Attempt) -> bool:
        return self.began_s <= attempt.sent_s <= self.ended_s

    def had_inside(self, attempt: Attempt) -> bool:
        return attempt.outcome == "lost" and attempt.port in self.ports and attempt.sent_s <= self.dead_s


@dataclass(frozen=True)
class Way:
    """How a client's requests reach the pods. upstream: what Envoy speaks to them; empty: there is no Envoy."""

    name: str
    wire: Wire
    upstream: str = ""


WAYS = (
    Way("HTTP/1.1", V2Binary("mlp")),
    Way("gRPC", ModelInfer("mlp")),
    Way("Envoy, HTTP/1.1", V2Binary("mlp"), "http"),
    Way("Envoy, HTTP/2", ModelInfer("mlp"), "http2"),
)


class Pods:
    """Servers that come and go, and who is told where they are. `there`: the endpoints, the oldest first."""

    def __init__(self, stack: ExitStack) -> None:
        self.there: list[Running] = []
        self.troubles: list[Trouble] = []
        self.envoys: list[Envoy] = []
        self.callers: list[Callers] = []
        """Those who ask the pods themselves."""
        self._stack = stack

    async def start(self, workers: int = 1, quiet_s: float = _QUIET_S) -> None:
        """Another pod; it becomes an endpoint when it is ready."""
        peer = Torpor("torpor", workers=workers, options=("--drain-quiet-s", str(quiet_s)))
        pod = await asyncio.to_thread(self._stack.enter_context, running(peer, "mlp", "", 64, THREADS["mlp"], ""))
        await _until(lambda: get(pod.port, "/v2/health/ready") is not None, f"a pod on {pod.port}", pod)
        self.there.append(pod)
        await self.tell()

    def ports(self) -> list[int]:
        return [pod.port for pod in self.there]

    async def tell(self) -> None:
        """Let everybody know the endpoints; returns when they do."""
        for callers in self.callers:
            callers.addresses = self.ports()
        for proxy in self.envoys:
            await asyncio.to_thread(proxy.set_endpoints, self.ports())

    async def end_oldest(self, removed_after_s: float) -> None:
        """SIGTERM, the removal of the endpoint so long after it, and the end with status 0."""
        pod = self.there[0]
        trouble = Trouble(time.monotonic())
        self.troubles.append(trouble)
        pod.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(removed_after_s)
        if pod.process.poll() is not None:
            raise BadAnswerError(f"the pod ended with {pod.process.returncode} while it was an endpoint")
        self.there.remove(pod)
        await self.tell()
        trouble.ended_s = time.monotonic()
        if status := await asyncio.wait_for(asyncio.to_thread(pod.process.wait), _LIMIT_S):
            raise BadAnswerError(f"the pod ended with status {status}: {pod.log.read_text()[-300:]}")

    async def kill_worker(self) -> None:
        """SIGKILL the worker with the most connections, and wait until there is a new one, ready and with its own connections.

        Until it has some, it takes nothing off the one that was left, whose queue may be full by then.
        """
        pod = self.there[0]
        victim = max(_children(pod.process.pid), key=lambda process: len(_connections(process)))
        trouble = Trouble(time.monotonic())
        self.troubles.append(trouble)
        trouble.ports, trouble.dead_s = await asyncio.to_thread(_kill_with_connections, victim)

        def is_back() -> bool:
            told = set(re.findall(rb'process="(\d+)"', get(pod.port, "/metrics") or b""))
            workers = _children(pod.process.pid)
            return len(told) == 2 and victim not in workers and all(map(_connections, workers))

        await _until(is_back, "a new worker", pod)
        trouble.ended_s = time.monotonic()


@dataclass(frozen=True)
class Happening:
    """Something that happens to pods again and again. first: the workers of each pod that there is at the start."""

    label: str
    first: tuple[int, ...]
    quiet_s: float
    happen: Callable[[Pods], Awaitable[None]]


async def _sigterm(pods: Pods) -> None:
    await pods.end_oldest(removed_after_s=2.0)
    await pods.start(2, 5.0)


async def _restart(pods: Pods) -> None:
    await pods.start()
    await pods.end_oldest(removed_after_s=0.5)


async def _kill(pods: Pods) -> None:
    await pods.kill_worker()
    await asyncio.sleep(0.3)


HAPPENINGS = (
    Happening("SIGTERM", (2, 2), 5.0, _sigterm),  # the quiet is what it is outside of Knative
    Happening("rolling restarts", (1, 1), _QUIET_S, _restart),
    Happening("worker killed", (2,), _QUIET_S, _kill),
)


@dataclass
class Losses:
    """What happens, as often as the time holds, to the clients of every way at once; the value is what is not excused."""

    happening: Happening
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """By way: COLUMNS."""

    rates: dict[str, list[str]] = field(default_factory=dict)
    events: int = 0

    @property
    def label(self) -> str:
        return self.happening.label

    def measure(self, seconds: float) -> Rate:
        return uvloop.run(self._measure(seconds))

    async def _measure(self, seconds: float) -> Rate:
        from models import MODELS, run  # torch, which `--list` does not need

        rows = load_rows("mlp")
        expected = run(MODELS["mlp"](), rows)
        with ExitStack() as stack:
            pods = Pods(stack)
            for workers in self.happening.first:
                await pods.start(workers, self.happening.quiet_s)
            everybody: dict[str, Callers] = {}
            for way in WAYS:
                everybody[way.name] = callers = Callers(way.wire, [way.wire.encode(row) for row in rows], expected)
                if way.upstream:
                    pods.envoys.append(stack.enter_context(envoy(pods.ports(), way.upstream)))
                    callers.addresses = [pods.envoys[-1].port]
                else:
                    pods.callers.append(callers)
            await pods.tell()
            for length_s in (_CAPACITY_S / 2, _CAPACITY_S):
                capacities = await asyncio.gather(*(callers.capacity(length_s) for callers in everybody.values()))
            stop, began_s = asyncio.Event(), time.monotonic()
            loads = []
            for callers, capacity in zip(everybody.values(), capacities, strict=True):
                if callers.failures:
                    raise BadAnswerError(f"before anything happened: {callers.failures[0]}")
                callers.offered = callers.correct = 0
                loads.append(asyncio.create_task(callers.offer(SHARE * capacity, stop)))
            await asyncio.sleep(1.0)
            end_s = time.monotonic() + seconds
            while True:
                await self.happening.happen(pods)
                self.events += 1
                if time.monotonic() >= end_s:
                    break
            await asyncio.sleep(1.0)
            lasted_s = time.monotonic() - began_s
            stop.set()
            await asyncio.gather(*loads)
        failed = 0
        for (name, callers), capacity in zip(everybody.items(), capacities, strict=True):
            counts = _counted(name, callers, pods.troubles)
            self.counts[name] = self.counts.get(name, Counter()) + counts
            self.rates.setdefault(name, []).append(f"{callers.offered / lasted_s:.0f} of {capacity:.0f}")
            failed += sum(counts[column] for column in FAILED)
        return Rate(failed, np.nan, np.nan)


def _counted(name: str, callers: Callers, troubles: list[Trouble]) -> Counter[str]:
    counts = Counter(offered=callers.offered, correct=callers.correct)
    for attempt in callers.failures:
        column = attempt.outcome
        if any(trouble.had_inside(attempt) for trouble in troubles):
            column = "inside"
        elif column == "refused":
            column += " before" if any(trouble.excuses(attempt) for trouble in troubles) else " after"
        counts[column] += 1
        if column in FAILED and counts[column] <= _TOLD:
            since_s = min((attempt.sent_s - t.began_s for t in troubles if t.began_s <= attempt.sent_s), default=-1)
            print(f"  {name}: {column}, {since_s:.3f} s after it began: {attempt.reason}", file=sys.stderr)
    return counts


def get(port: int, path: str) -> bytes | None:
    """The body of an answer with status 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return body if response.status == 200 else None


async def _until(is_so: Callable[[], bool], what: str, pod: Running) -> None:
    limit_s = time.monotonic() + _LIMIT_S
    while not await asyncio.to_thread(is_so):
        pod.check_alive()
        if time.monotonic() > limit_s:
            held = {child: len(_connections(child)) for child in _children(pod.process.pid)}
            raise UnavailableError(
                f"waited {_LIMIT_S:g} s for {what}; connections by process {held}; {pod.log.read_text()[-300:]}"
            )
        await asyncio.sleep(_TICK_S)


def _kill_with_connections(process: int) -> tuple[frozenset[int], float]:
    """SIGKILL; the other ends of what was connected to it then, and the time at which it was dead."""
    os.kill(process, signal.SIGSTOP)
    while _state(process) not in ("T", ""):
        time.sleep(0)
    ports = _connections(process)
    os.kill(process, signal.SIGKILL)
    while not _is_dead(process):
        time.sleep(0)
    return ports, time.monotonic()


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _state(process: int) -> str:
    """Its letter (proc_pid_stat(5)), empty when there is nothing left of it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _is_dead(process: int) -> bool:
    """Whether its last thread has ended, and with it its connections; the first may be a zombie long before."""
    try:
        return len(os.listdir(f"/proc/{process}/task")) == 1 and _state(process) in ("Z", "")
    except OSError:
        return True


def _connections(process: int) -> frozenset[int]:
    """The other ends' ports of its TCP connections."""
    inodes = set()
    for link in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
    lines = [line.split() for line in Path(f"/proc/{process}/net/tcp").read_text().splitlines()[1:]]
    return frozenset(int(line[2].rpartition(":")[2], 16) for line in lines if line[9] in inodes)
