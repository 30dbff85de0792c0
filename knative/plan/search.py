"""The settings that reach a goal with the fewest pod-seconds.

What a pod can do follows from the measurement: rows of a batch, containerConcurrency. What the autoscaler should do depends on
the traffic: target, window, retention and scale are tried by ticks, one after the other, until none of them gets better.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

from torpor.predictors.batching.policy import BatchingSettings
from torpor.predictors.settings import SettingError

from ..autoscaling import Autoscaling
from . import by_request, by_tick
from .measurement import BatchTimes, Measurement
from .outcome import Outcome
from .setup import Platform, Setup
from .table import PodTable
from .traffic import Traffic

_WINDOWS_S = (6, 15, 30, 60, 120, 300, 600)
_RETENTIONS_S = (0, 30, 60, 120, 300, 600, 1200, 3600)
_TARGET_PARTS = (1, 2, 4, 8)
_MOST_REQUESTS = 500_000
"""So many are simulated one by one; of a longer traffic the busiest hour is."""

_DAY_S = 86_400.0

_MIB = 1 << 20

_MOST_CONCURRENCY = 1000
"""Knative's container-concurrency-max-limit (config-defaults)."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Goal:
    """p99_s: latency of 99 % of the answers, cold starts among them. cold_share: of requests that may meet no ready pod."""

    p99_s: float
    cold_share: float

    def missed_by(self, outcome: Outcome) -> float:
        """0: reached. Else by which factors, added up."""
        lost = (outcome.refused + outcome.timed_out) / max(1.0, outcome.requests)
        late = outcome.latencies.at(0.99) / self.p99_s - 1
        cold = outcome.cold_share / max(self.cold_share, 1e-6) - 1
        return max(0.0, late) + max(0.0, cold) + 1000 * lost


@dataclass
class Plan:
    """by_requests: of `part` of the traffic, mostly all of it; by_ticks: of all of it. reasons: by setting."""

    setup: Setup
    goal: Goal
    traffic: Traffic
    part: Traffic
    by_requests: Outcome
    by_ticks: Outcome
    memory_bytes: int
    cpu_request: float
    cpu_limit: float
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def expected(self) -> Outcome:
        """Of all the traffic."""
        return self.by_requests if self.part is self.traffic else self.by_ticks

    @property
    def missed_by(self) -> float:
        return max(self.goal.missed_by(self.by_requests), self.goal.missed_by(self.expected))


@dataclass(frozen=True)
class Held:
    """Settings that are given and not searched."""

    max_batch_size: int | None = None
    batch_timeout_micros: int | None = None
    container_concurrency: int | None = None
    target: float | None = None
    min_scale: int | None = None
    max_scale: int | None = None
    window_s: float | None = None
    retention_s: float | None = None


def search(
    measurement: Measurement,
    traffic: Traffic,
    goal: Goal,
    *,
    held: Held | None = None,
    timeout_s: float = 60.0,
    platform: Platform | None = None,
    say: Say = lambda text: None,
) -> Plan:
    """Always the best that was found; `Plan.missed_by` says whether it reaches the goal.

    Raises SettingError for settings that contradict each other, and for requests of a form that was not measured.
    """
    held, platform = held or Held(), platform or Platform()
    if held.min_scale and held.max_scale and held.min_scale > held.max_scale:
        raise SettingError(f"min_scale = {held.min_scale}, must be at most max_scale, {held.max_scale}")
    smallest, largest = measurement.cells
    has_sizes = bool(traffic.sample(0.0, random.Random(0)).sizes)
    if has_sizes and largest == 1:
        raise SettingError("the traffic's rows have a size, those that were measured have none: must be alike")
    if not has_sizes and largest > 1:
        raise SettingError(f"--lengths is missing: the model's rows have a size, measured from {smallest} to {largest}")
    return _Search(measurement, traffic, goal, held, timeout_s, platform, say).run()


class _Search:
    def __init__(
        self,
        measurement: Measurement,
        traffic: Traffic,
        goal: Goal,
        held: Held,
        timeout_s: float,
        platform: Platform,
        say: Say,
    ) -> None:
        self._measurement = measurement
        self._traffic = traffic
        self._goal = goal
        self._held = held
        self._timeout_s = timeout_s
        self._platform = platform
        self._say = say
        self._reasons: dict[str, str] = {}
        self._tried: dict[Autoscaling, tuple[tuple[float, float], Outcome]] = {}

    def run(self) -> Plan:
        self._say("batches")
        setup = self._with_batches()
        setup, table = self._with_concurrency(setup)
        setup = self._with_most_pods(setup, table)
        begin_s, end_s = self._traffic.busiest_s(_DAY_S)
        seen = self._traffic if end_s - begin_s >= self._traffic.duration_s else self._traffic.part(begin_s, end_s)
        setup = self._with_scaling(setup, table, seen)
        by_ticks = by_tick.simulate(setup, self._traffic, table)
        part = self._traffic
        if part.requests > _MOST_REQUESTS:
            part = part.part(*part.busiest_s(3600.0))
        setup = self._with_initial_scale(setup, by_ticks)
        self._say(f"{part.requests} requests, one by one")
        by_requests = by_request.simulate(
            setup, part, progress=lambda share: self._say(f"{part.requests} requests, one by one: {share:.0%}")
        )
        self._explain_scaling(setup, by_requests if part is self._traffic else by_ticks)
        memory_bytes = self._memory()
        cpu_request, cpu_limit = self._cpu(table, by_requests)
        return Plan(
            setup,
            self._goal,
            self._traffic,
            part,
            by_requests,
            by_ticks,
            memory_bytes,
            cpu_request,
            cpu_limit,
            self._reasons,
        )

    def _with_batches(self) -> Setup:
        """The smallest batch that is nearly as good as any within a third of the goal."""
        times, cells = BatchTimes(self._measurement.batches), self._usual_cells()
        most = self._measurement.most_rows
        sizes = [1 << power for power in range(most.bit_length()) if 1 << power <= most]
        fitting = [rows for rows in sizes if times(rows, cells) <= self._goal.p99_s / 3] or [1]
        per_s = {rows: rows / times(rows, cells) for rows in fitting}
        best = max(per_s.values())
        rows = next(rows for rows in fitting if per_s[rows] >= 0.9 * best)
        reason = f"a batch takes {_ms(times(rows, cells))}, {per_s[rows]:.0f} rows/s"
        if rows < fitting[-1]:
            reason += f"; {fitting[-1]} rows would bring {100 * (per_s[fitting[-1]] / per_s[rows] - 1):+.0f} %"
        elif rows < most:
            reason += f"; more would take over a third of the goal, {_ms(self._goal.p99_s)}"
        else:
            reason += ", the largest that was measured"
        if self._held.max_batch_size is not None:
            rows, reason = self._held.max_batch_size, "given"
        self._reasons["max_batch_size"] = reason
        micros = min(2000, int(1e6 * self._goal.p99_s / 20))
        reason = "a twentieth of the goal, 2 ms at most; it is not waited out when nobody is expected"
        if rows == 1:
            micros, reason = 0, "one row is a batch: there is nobody to wait for"
        if self._held.batch_timeout_micros is not None:
            micros, reason = self._held.batch_timeout_micros, "given"
        self._reasons["batch_timeout_micros"] = reason
        return Setup(
            self._measurement, Autoscaling(), BatchingSettings(rows, micros / 1e6), self._timeout_s, self._platform
        )

    def _usual_cells(self) -> int:
        chance = random.Random(0)
        sizes = sorted(math.prod(self._traffic.sample(0.0, chance).sizes) for _ in range(101))
        return sizes[50]

    def _with_concurrency(self, setup: Setup) -> tuple[Setup, PodTable]:
        """Two batches, as long as a full pod still answers in half of the goal."""
        rows = setup.batching.max_batch_size
        limit = self._held.container_concurrency
        reason = "given"
        if limit is None:
            limit = wanted = min(2 * rows, _MOST_CONCURRENCY)
            while True:
                table = PodTable(self._limited(setup, limit), self._traffic)
                full_s = limit / table.most_rate + setup.around_s
                if full_s <= self._goal.p99_s / 2 or limit == 1:
                    break
                limit //= 2
            full = f"a pod with as many answers in {_ms(full_s)}, {table.most_rate:.0f}/s"
            reason = f"two batches, one runs and one forms; {full}" if limit == wanted else f"{full}, half of the goal"
        self._reasons["container_concurrency"] = reason
        setup = self._limited(setup, limit)
        return setup, PodTable(setup, self._traffic)

    def _limited(self, setup: Setup, limit: int) -> Setup:
        return replace(setup, scaling=replace(setup.scaling, container_concurrency=limit))

    def _with_most_pods(self, setup: Setup, table: PodTable) -> Setup:
        begin_s, end_s = self._traffic.busiest_s(10.0)
        rate = sum(self._traffic.counts[int(begin_s) : int(end_s)]) / (end_s - begin_s)
        within = self._rate_within(table)
        needed = math.ceil(rate / within)
        pods = max(2, math.ceil(1.5 * needed))
        needs = f"{needed} pod{'s' * (needed > 1)} of at most {within:.0f}/s"
        reason = f"the busiest 10 s have {rate:.3g}/s: {needs}; half as many more"
        if self._held.max_scale is not None:
            pods, reason = self._held.max_scale, "given"
        self._reasons["max_scale"] = reason
        return replace(setup, scaling=replace(setup.scaling, max_scale=pods))

    def _rate_within(self, table: PodTable) -> float:
        """What a pod can do while its p99 is within the goal."""
        for share in (0.9, 0.75, 0.6, 0.45, 0.3, 0.15):
            if table.latency_s(share * table.most_rate, 0.99) <= self._goal.p99_s:
                return share * table.most_rate
        return 0.1 * table.most_rate

    def _with_scaling(self, setup: Setup, table: PodTable, seen: Traffic) -> Setup:
        """Coordinate descent: feasible first, then fewest pod-seconds."""

        def tried(scaling: Autoscaling) -> tuple[float, float]:
            if scaling not in self._tried:
                self._say(f"settings, {len(self._tried) + 1} tried")
                outcome = by_tick.simulate(replace(setup, scaling=scaling), seen, table)
                score = (round(self._goal.missed_by(outcome), 4), outcome.pod_seconds)
                self._tried[scaling] = score, outcome
            return self._tried[scaling][0]

        best = replace(setup.scaling, **self._first(setup.scaling.container_concurrency))
        while True:
            before = best
            for others in self._alternatives(best):
                best = min((best, *others), key=tried)
            if best == before:
                return replace(setup, scaling=best)

    def _first(self, limit: int) -> dict[str, Any]:
        held = self._held
        return {
            "target": held.target or float(limit or 100),
            "min_scale": held.min_scale or 0,
            "window_s": held.window_s or 60.0,
            "retention_s": held.retention_s or 0.0,
        }

    def _alternatives(self, best: Autoscaling) -> Iterator[list[Autoscaling]]:
        held, most = self._held, best.container_concurrency or 100
        if held.retention_s is None:
            yield [replace(best, retention_s=float(seconds)) for seconds in _RETENTIONS_S]
        if held.min_scale is None:
            yield [replace(best, min_scale=pods) for pods in (0, 1, 2, 3, 4) if pods <= (best.max_scale or 4)]
        if held.target is None:
            yield [replace(best, target=float(max(1, most // part))) for part in _TARGET_PARTS]
        if held.window_s is None:
            yield [replace(best, window_s=float(seconds)) for seconds in _WINDOWS_S]

    def _with_initial_scale(self, setup: Setup, outcome: Outcome) -> Setup:
        busy = [slot.ready for slot in outcome.slots if slot.ready]
        pods = max(1, setup.scaling.min_scale, round(sum(busy) / len(busy)) if busy else 1)
        self._reasons["initial_scale"] = (
            "a new revision begins with what serves this traffic on average while it is awake"
        )
        return replace(setup, scaling=replace(setup.scaling, initial_scale=pods))

    def _explain_scaling(self, setup: Setup, expected: Outcome) -> None:
        scaling, held = setup.scaling, self._held
        gained = self._compared(setup)
        per_pod = scaling.pod_target
        self._reasons["target"] = (
            f"the autoscaler adds pods beyond {per_pod:.3g} in flight each (70 %){gained('target')}"
        )
        self._reasons["window"] = f"averaged over, and so much quiet lets the last pod go{gained('window_s')}"
        self._reasons["retention"] = f"the last pod's stay beyond the window{gained('retention_s')}"
        sleeps = "sleeps when nobody asks" if not scaling.min_scale else "always there"
        share = f"{100 * expected.cold_share:.2g} % of the requests meet no pod, {expected.wakes} starts from zero"
        self._reasons["min_scale"] = f"{sleeps}: {share}{gained('min_scale')}"
        for name, field_name in (
            ("target", "target"), ("window", "window_s"), ("retention", "retention_s"), ("min_scale", "min_scale")
        ):  # fmt: skip
            if getattr(held, field_name) is not None:
                self._reasons[name] = "given"

    def _compared(self, setup: Setup) -> Callable[[str], str]:
        """How the nearest values of a setting that were tried would have done."""
        chosen = replace(setup.scaling, initial_scale=1)

        def compared(name: str) -> str:
            others = [
                (getattr(scaling, name), outcome)
                for scaling, (_, outcome) in self._tried.items()
                if scaling != chosen and replace(scaling, **{name: getattr(chosen, name)}) == chosen
            ]
            value = getattr(chosen, name)
            below = max((entry for entry in others if entry[0] < value), key=itemgetter(0), default=None)
            above = min((entry for entry in others if entry[0] > value), key=itemgetter(0), default=None)
            texts = [
                f"{other:g}: {outcome.pod_seconds:.0f} pod-s, p99 {_ms(outcome.latencies.at(0.99))}, "
                f"{100 * outcome.cold_share:.2g} % cold"
                for other, outcome in filter(None, (below, above))
            ]
            return f" (with {'; with '.join(texts)})" if texts else ""

        return compared

    def _memory(self) -> int:
        measured = self._measurement
        by_weights, by_peak = 2.5 * measured.parameter_bytes, 1.25 * measured.memory_bytes
        memory = math.ceil(max(by_weights, by_peak) / (32 * _MIB)) * 32 * _MIB
        self._reasons["memory"] = (
            f"measured {measured.memory_bytes / _MIB:.0f} MiB at most, a quarter more"
            if by_peak >= by_weights
            else f"2.5 x the {measured.parameter_bytes / _MIB:.0f} MiB of weights"
        )
        return memory

    def _cpu(self, table: PodTable, expected: Outcome) -> tuple[float, float]:
        cores = max(1.0, self._measurement.cores)
        busiest = max(
            (slot.requests / expected.slot_s / slot.ready for slot in expected.slots if slot.ready >= 0.5), default=0.0
        )
        share = min(1.0, busiest / table.most_rate)
        request = max(0.1, math.ceil(20 * share * cores) / 20)
        self._reasons["cpu_request"] = f"a pod has {busiest:.3g}/s at most here, {100 * share:.2g} % of what it can"
        self._reasons["cpu_limit"] = f"{self._measurement.cores:.2g} busy under full batches; a start needs one core"
        return request, float(math.ceil(cores - 0.1))


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"
