"""The requests that a plan is made for: of a file, of a described shape, of rates that Prometheus has seen.

Where rates are known and no requests, these are drawn as Poisson has them, by a seed: first how many come in each tick, then
when within it. So the simulation by requests and the one by ticks see the same.
"""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass

from torpor.predictors.batching.load import Arrival, Call, Lengths
from torpor.predictors.batching.trace import Trace

TICK_S = 2.0


@dataclass(frozen=True)
class Mix:
    """What requests are like where only their rate is known: rows of each, and the sizes of a named axis."""

    rows: int = 1
    lengths: Lengths | None = None

    def draw(self, chance: random.Random) -> Call:
        return Call(self.rows, () if self.lengths is None else self.lengths.draw(chance))


class Traffic(ABC):
    """Requests from 0 to a whole number of ticks."""

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def counts(self) -> Sequence[int]:
        """How many come in each tick."""

    @abstractmethod
    def arrivals(self) -> Iterator[Arrival]:
        """In order of time; each time new calls, the same."""

    @abstractmethod
    def part(self, begin_s: float, end_s: float) -> "Traffic":
        """The same requests of a stretch, whose bounds are whole ticks; its time begins at 0."""

    @abstractmethod
    def sample(self, chance: random.Random) -> Call:
        """A call like those that come."""

    @property
    def duration_s(self) -> float:
        return len(self.counts) * TICK_S

    @property
    def requests(self) -> int:
        return sum(self.counts)

    @property
    def mean_rate(self) -> float:
        return self.requests / self.duration_s

    def busiest_s(self, seconds: float) -> tuple[float, float]:
        """(begin, end) of the `seconds` that have most requests, or all of it."""
        ticks = math.ceil(seconds / TICK_S)
        if ticks >= len(self.counts):
            return 0.0, self.duration_s
        current = most = sum(self.counts[:ticks])
        begin = 0
        for first in range(1, len(self.counts) - ticks + 1):
            current += self.counts[first + ticks - 1] - self.counts[first - 1]
            if current > most:
                begin, most = first, current
        return begin * TICK_S, (begin + ticks) * TICK_S


class Drawn(Traffic):
    """Poisson arrivals at `rates` a second, one for each tick."""

    name = ""
    counts: Sequence[int] = ()

    def __init__(self, name: str, rates: Sequence[float], mix: Mix | None = None, seed: int = 0) -> None:
        import numpy as np  # here, since `torpor serve` knows of this command too

        means = np.asarray(rates, float) * TICK_S
        self.name = name
        self.counts = np.random.default_rng(seed).poisson(means).tolist()
        self._mix = mix or Mix()
        self._seed = seed
        self._first = 0

    def arrivals(self) -> Iterator[Arrival]:
        draw = self._mix.draw
        for tick, count in enumerate(self.counts):
            if count:
                chance = random.Random(self._seed << 32 | self._first + tick)
                begin_s = tick * TICK_S
                for at in sorted([chance.random() for _ in range(count)]):
                    yield Arrival(begin_s + TICK_S * at, draw(chance))

    def part(self, begin_s: float, end_s: float) -> "Drawn":
        first, last = round(begin_s / TICK_S), round(end_s / TICK_S)
        part = copy(self)
        part.name = f"{self.name}, {begin_s:g} s to {end_s:g} s"
        part.counts = self.counts[first:last]
        part._first += first
        return part

    def sample(self, chance: random.Random) -> Call:
        return self._mix.draw(chance)


RecordedCall = tuple[float, int, tuple[int, ...], float | None]


class Recorded(Traffic):
    """Requests as a file has them: arrival in seconds, rows, sizes, deadline in seconds after the arrival; in order."""

    name = ""
    counts: Sequence[int] = ()

    def __init__(self, name: str, calls: Sequence[RecordedCall], ticks: int) -> None:
        self.name = name
        self.counts = [0] * ticks
        self._calls = calls
        for arrival_s, *_ in calls:
            self.counts[int(arrival_s / TICK_S)] += 1

    @classmethod
    def of(cls, name: str, trace: Trace) -> "Recorded":
        """The first request comes at 0; the time ends with the tick of the last one."""
        found = [*trace.scheduled()]
        first_s = found[0].arrival_s
        calls = [(at_s - first_s, call.rows, call.sizes, call.patience_s) for at_s, call in found]
        return cls(name, calls, int(calls[-1][0] / TICK_S) + 1)

    def arrivals(self) -> Iterator[Arrival]:
        for arrival_s, rows, sizes, patience_s in self._calls:
            yield Arrival(arrival_s, Call(rows, sizes, patience_s))

    def part(self, begin_s: float, end_s: float) -> "Recorded":
        calls = [(at_s - begin_s, *rest) for at_s, *rest in self._calls if begin_s <= at_s < end_s]
        name = f"{self.name}, {begin_s:g} s to {end_s:g} s"
        return Recorded(name, calls, round((end_s - begin_s) / TICK_S))

    def sample(self, chance: random.Random) -> Call:
        _, rows, sizes, patience_s = chance.choice(self._calls)
        return Call(rows, sizes, patience_s)
