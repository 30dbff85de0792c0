"""How pods do at a steady rate, from short simulations request by request: what the simulation by ticks looks up.

An entry is made when it is first asked for: latencies, and from them by Little's law what is in flight. Rates are
interpolated between steps of a quarter, numbers of pods between powers of two, since what is dealt out in turn comes more
evenly than by itself.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from . import by_request
from .outcome import Latencies
from .request import Request
from .setup import Setup
from .traffic import STEP_S, Traffic

_STEP = 1.25
_REQUESTS = 4000
_LEAST_S = 20.0
_WARM_S = 4.0
"""The first seconds, which a steady state does not know."""


@dataclass(frozen=True)
class Entry:
    """Shares of the latencies' bins; in_flight: requests a pod has, on average."""

    shares: Latencies
    mean_s: float


class _Steady(Traffic):
    """Poisson arrivals at a rate, requests like those of some traffic."""

    name = "steady"
    counts: Sequence[int] = ()

    def __init__(self, like: Traffic, rate: float, seconds: float) -> None:
        self._like, self._rate, self._seconds = like, rate, seconds
        self.counts = [0] * math.ceil(seconds / STEP_S)

    def arrivals(self) -> Iterator[Request]:
        chance = random.Random(0)
        now = chance.expovariate(self._rate)
        while now < self._seconds:
            yield self._like.sample(now, chance)
            now += chance.expovariate(self._rate)

    def part(self, begin_s: float, end_s: float) -> "_Steady":
        return _Steady(self._like, self._rate, end_s - begin_s)

    def sample(self, sent_s: float, chance: random.Random) -> Request:
        return self._like.sample(sent_s, chance)


class _AtOnce(_Steady):
    """A number of requests at 0."""

    def arrivals(self) -> Iterator[Request]:
        chance = random.Random(0)
        for _ in range(round(self._rate)):
            yield self._like.sample(0.0, chance)


class PodTable:
    """Of one setup: only measurement, batching and containerConcurrency count. Rates are requests a second and pod."""

    def __init__(self, setup: Setup, like: Traffic) -> None:
        self._setup = setup
        self._like = like
        self._entries: dict[tuple[int, int], Entry] = {}
        self.most_rate = self._most_rate()

    def entry(self, step: int, pods: int) -> Entry:
        """At a rate of `_STEP ** step`, of `2 ** pods` pods."""
        entry = self._entries.get((step, pods))
        if entry is None:
            entry = self._entries[step, pods] = self._made(_STEP**step, 2**pods)
        return entry

    def steps(self, rate: float, pods: int) -> tuple[tuple[int, int, float], ...]:
        """The entries around a rate, (step, pods, weight) each; a rate beyond `most_rate` counts as a little less."""
        at = math.log(max(1e-3, min(rate, 0.97 * self.most_rate))) / math.log(_STEP)
        low = math.floor(at)
        power = min(3, round(math.log2(pods)))
        return ((low, power, 1 - (at - low)), (low + 1, power, at - low))

    def mean_s(self, rate: float, pods: int) -> float:
        return sum(weight * self.entry(step, power).mean_s for step, power, weight in self.steps(rate, pods))

    def latency_s(self, rate: float, share: float) -> float:
        """Of one pod."""
        mixed = Latencies()
        for step, power, weight in self.steps(rate, 1):
            mixed.add_all(self.entry(step, power).shares, weight)
        return mixed.at(share)

    def _made(self, rate: float, pods: int) -> Entry:
        rate = min(rate, 0.97 * self.most_rate)
        seconds = max(_LEAST_S, _REQUESTS / (rate * pods)) if rate * pods > 1 else _REQUESTS / 10 / (rate * pods)
        outcome = by_request.simulate(self._fixed(pods), _Steady(self._like, rate * pods, _WARM_S + seconds))
        latencies = Latencies()
        for slot in outcome.slots:
            if slot.begin_s >= _WARM_S or rate * pods <= 1:
                latencies.add_all(slot.latencies)
        shares = Latencies()
        shares.add_all(latencies, 1 / (latencies.total or 1.0))
        return Entry(shares, latencies.mean_s)

    def _most_rate(self) -> float:
        """Of a pod that always has as many requests as it takes."""
        limit = self._setup.scaling.container_concurrency or 2 * self._setup.batching.max_batch_size
        requests = max(1000, 20 * limit)
        setup = replace(self._fixed(1), timeout_s=math.inf)
        outcome = by_request.simulate(setup, _AtOnce(self._like, requests, STEP_S))
        return outcome.latencies.total / (outcome.latencies.at(1.0) - setup.around_s)

    def _fixed(self, pods: int) -> Setup:
        scaling = replace(self._setup.scaling, min_scale=pods, max_scale=pods, initial_scale=pods)
        return replace(self._setup, scaling=scaling)
