"""A revision and its traffic by the autoscaler's ticks of 2 s and the reports, one a second, between them.

The autoscaler is the same, pods do as a table says (`PodTable`). Where there is more than they can take, or none of them, a
second is cut finer and requests are a fluid that the pods let through at their highest rate.
"""

import math
from collections import defaultdict, deque

from ..kpa import Kpa
from .by_request import ACTIVATOR_QUEUE, Progress
from .outcome import Outcome
from .pod import DEEP
from .setup import Setup
from .table import PodTable
from .traffic import Traffic

_FINE = 20
"""Parts of a second where requests wait."""

_SMOOTH = 0.3
"""Weight of the newest second in the rate that the table is asked for: a second's count scatters by chance."""

_BELOW = 0.97
"""Of a pod's highest rate: up to here it is steady."""


def simulate(
    setup: Setup,
    traffic: Traffic,
    table: PodTable,
    *,
    awake: int | None = None,
    progress: Progress = lambda share: None,
) -> Outcome:
    """awake: pods that are ready at the beginning; without it those of min-scale."""
    return _Simulation(setup, traffic, table, setup.scaling.min_scale if awake is None else awake, progress).run()


class _Simulation:
    def __init__(self, setup: Setup, traffic: Traffic, table: PodTable, awake: int, progress: Progress) -> None:
        self._setup = setup
        self._traffic = traffic
        self._table = table
        self._progress = progress
        self._outcome = Outcome.over(traffic.duration_s)
        self._kpa = Kpa.at_rest(setup.scaling, awake)
        self._proxied = True
        self._pods = [-setup.known_after_s] * awake
        """When each is ready, the oldest first."""
        self._waiting: deque[tuple[float, float]] = deque()
        """When they came, and how many."""
        self._backlog = 0.0
        self._rate = 0.0
        self._steady: list[dict[tuple[int, int], float]] = [defaultdict(float) for _ in self._outcome.slots]
        """For each slot, how many requests were answered as an entry of the table says."""
        self._slot = 0
        self._reported_lately = False

    def run(self) -> Outcome:
        outcome = self._outcome
        self._scale(0.0)
        for second, count in enumerate(self._traffic.counts):
            self._slot = int(second / outcome.slot_s)
            outcome.slots[self._slot].requests += count
            outcome.requests += count
            self._second(float(second), count)
            if second % 600 == 0:
                self._progress(second / outcome.duration_s)
        for ready_s in self._pods:
            outcome.count_pod(ready_s - self._setup.start_s, ready_s, math.inf, math.inf)
        for slot, steady in zip(outcome.slots, self._steady, strict=True):
            for key, weight in steady.items():
                slot.latencies.add_all(self._table.entry(*key).shares, weight)
            outcome.latencies.add_all(slot.latencies)
        return outcome

    def _second(self, now: float, count: int) -> None:
        end_s = now + 1.0
        self._rate += _SMOOTH * (count - self._rate)
        ready = self._ready(now)
        early, counts_since_s = 0.0, now
        if count and not self._reported_lately and self._proxied:
            early = 1.0
            counts_since_s = now + 1 / (count + 1)
            self._kpa.observe(counts_since_s, self._known(counts_since_s), 1.0, 1.0)
            self._scale(counts_since_s)
        if not count and not self._waiting:
            in_flight = 0.0
        elif ready and not self._waiting and count <= _BELOW * self._table.most_rate * ready:
            in_flight = self._pass(count, ready)
        else:
            in_flight = self._queue(now, count)
        ready = self._known(end_s)
        if ready or self._reported_lately or in_flight:
            concurrency = in_flight / (end_s - counts_since_s)
            self._kpa.observe(end_s, ready, max(0.0, concurrency - early), max(0.0, count - early))
        self._reported_lately = in_flight > 0
        if end_s % self._setup.scaling.tick_s == 0:
            self._kpa.tick(end_s, ready)
        self._scale(end_s)

    def _pass(self, count: float, ready: int) -> float:
        """Requests that the pods answer as they do at this rate; how many were in flight on average."""
        in_flight = 0.0
        steady = self._steady[self._slot]
        for step, power, weight in self._table.steps(self._rate / ready, ready):
            steady[step, power] += weight * count
            in_flight += weight * count * self._table.entry(step, power).mean_s
        return in_flight

    def _queue(self, now: float, count: int) -> float:
        """A second in which requests wait, for a pod or for room; how many were in flight on average."""
        in_flight, part_s = 0.0, 1 / _FINE
        for number in range(_FINE):
            at_s = now + (number + 0.5) * part_s
            ready = self._ready(at_s)
            self._come(at_s, count * part_s, ready)
            room = ready * self._table.most_rate * part_s
            while self._waiting and room > 1e-9:
                came_s, waiting = self._waiting[0]
                through = min(waiting, room)
                room -= through
                self._backlog -= through
                if through < waiting:
                    self._waiting[0] = (came_s, waiting - through)
                else:
                    self._waiting.popleft()
                in_flight += self._answer(at_s - came_s, through, ready)
            in_flight += self._backlog * part_s
        return in_flight

    def _come(self, at_s: float, count: float, ready: int) -> None:
        if not ready:
            self._outcome.cold += count
            self._outcome.slots[self._slot].cold += count
        limit = self._setup.scaling.container_concurrency
        most = ACTIVATOR_QUEUE if self._proxied or not limit else (DEEP + 1) * limit * ready
        refused = max(0.0, min(count, self._backlog + count - most))
        self._outcome.refused += refused
        if count > refused:
            self._waiting.append((at_s, count - refused))
            self._backlog += count - refused

    def _answer(self, waited_s: float, count: float, ready: int) -> float:
        """In flight on average while the pods answer these, beside their wait."""
        if waited_s <= 0:
            return self._pass(count, ready)
        usual_s = self._table.mean_s(self._rate / ready, ready)
        if waited_s + usual_s > self._setup.timeout_s:
            self._outcome.timed_out += count
        else:
            self._outcome.slots[self._slot].latencies.add(waited_s + usual_s, count)
        return usual_s * count

    def _ready(self, now: float) -> int:
        pods = self._pods
        ready = len(pods)
        while ready and pods[ready - 1] > now:
            ready -= 1
        return ready

    def _known(self, now: float) -> int:
        """Those that Kubernetes calls ready."""
        return self._ready(now - self._setup.known_after_s)

    def _scale(self, now: float) -> None:
        pods, self._proxied, _ = self._kpa.scale(now, self._known(now))
        there = len(self._pods)
        if pods > there:
            self._outcome.wakes += not there
            self._outcome.pods_started += pods - there
            self._pods += [now + self._setup.start_s] * (pods - there)
        for _ in range(pods, there):
            ready_s = self._pods.pop()
            self._outcome.count_pod(ready_s - self._setup.start_s, ready_s, now, now + self._setup.going_s)
        self._outcome.most_pods = max(self._outcome.most_pods, len(self._pods))
