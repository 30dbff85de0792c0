"""The requests that a plan is made for: of a file, of a described shape, of rates that Prometheus has seen.

Where rates are known and no requests, these are drawn as Poisson has them, by a seed: first how many come in each second, then
when within it. So the simulation by requests and the one by ticks see the same.
"""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass

from torpor.predictors.batching.load import Lengths, Trace

from .request import Request

STEP_S = 1.0
"""Counts are of a second each: what pods and activator report to the autoscaler."""


@dataclass(frozen=True)
class Mix:
    """What requests are like where only their rate is known: rows of each, and the sizes of a named axis."""

    rows: int = 1
    lengths: Lengths | None = None

    def draw(self, sent_s: float, chance: random.Random) -> Request:
        return Request(sent_s, self.rows, () if self.lengths is None else self.lengths.draw(chance))


class Traffic(ABC):
    """Requests from 0 to a whole number of seconds."""

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def counts(self) -> Sequence[int]:
        """How many come in each second."""

    @abstractmethod
    def arrivals(self) -> Iterator[Request]:
        """In order of time; each time new ones, the same."""

    @abstractmethod
    def part(self, begin_s: float, end_s: float) -> "Traffic":
        """The same requests of a stretch, whose bounds are whole seconds; its time begins at 0."""

    @abstractmethod
    def sample(self, sent_s: float, chance: random.Random) -> Request:
        """A request like those that come."""

    @property
    def duration_s(self) -> float:
        return len(self.counts) * STEP_S

    @property
    def requests(self) -> int:
        return sum(self.counts)

    def busiest_s(self, seconds: float) -> tuple[float, float]:
        """(begin, end) of the `seconds` that have most requests, or all of it."""
        spans = math.ceil(seconds / STEP_S)
        if spans >= len(self.counts):
            return 0.0, self.duration_s
        current = most = sum(self.counts[:spans])
        begin = 0
        for first in range(1, len(self.counts) - spans + 1):
            current += self.counts[first + spans - 1] - self.counts[first - 1]
            if current > most:
                begin, most = first, current
        return begin * STEP_S, (begin + spans) * STEP_S


class Drawn(Traffic):
    """Poisson arrivals at `rates` a second, one for each second."""

    name = ""
    counts: Sequence[int] = ()

    def __init__(self, name: str, rates: Sequence[float], mix: Mix | None = None, seed: int = 0) -> None:
        import numpy as np  # here, since `torpor serve` knows of this command too

        means = np.asarray(rates, float) * STEP_S
        self.name = name
        self.counts = np.random.default_rng(seed).poisson(means).tolist()
        self._mix = mix or Mix()
        self._seed = seed
        self._first = 0

    def arrivals(self) -> Iterator[Request]:
        draw = self._mix.draw
        for second, count in enumerate(self.counts):
            if count:
                chance = random.Random(self._seed << 32 | self._first + second)
                begin_s = second * STEP_S
                for at in sorted([chance.random() for _ in range(count)]):
                    yield draw(begin_s + STEP_S * at, chance)

    def part(self, begin_s: float, end_s: float) -> "Drawn":
        first, last = round(begin_s / STEP_S), round(end_s / STEP_S)
        part = copy(self)
        part.name = f"{self.name}, {begin_s:g} s to {end_s:g} s"
        part.counts = self.counts[first:last]
        part._first += first
        return part

    def sample(self, sent_s: float, chance: random.Random) -> Request:
        return self._mix.draw(sent_s, chance)


RecordedCall = tuple[float, int, tuple[int, ...], float | None]


class Recorded(Traffic):
    """Requests as a file has them: arrival in seconds, rows, sizes, deadline in seconds after the arrival; in order."""

    name = ""
    counts: Sequence[int] = ()

    def __init__(self, name: str, calls: Sequence[RecordedCall], seconds: int) -> None:
        self.name = name
        self.counts = [0] * seconds
        self._calls = calls
        for arrival_s, *_ in calls:
            self.counts[int(arrival_s / STEP_S)] += 1

    @classmethod
    def of(cls, name: str, trace: Trace) -> "Recorded":
        """The first request comes at 0; the time ends with the second of the last one."""
        found = [*trace.scheduled()]
        first_s = found[0].arrival_s
        calls = [(at_s - first_s, call.rows, call.sizes, call.patience_s) for at_s, call in found]
        return cls(name, calls, int(calls[-1][0] / STEP_S) + 1)

    def arrivals(self) -> Iterator[Request]:
        for arrival_s, rows, sizes, patience_s in self._calls:
            yield Request(arrival_s, rows, sizes, patience_s)

    def part(self, begin_s: float, end_s: float) -> "Recorded":
        calls = [(call[0] - begin_s, *call[1:]) for call in self._calls if begin_s <= call[0] < end_s]
        name = f"{self.name}, {begin_s:g} s to {end_s:g} s"
        return Recorded(name, calls, round((end_s - begin_s) / STEP_S))

    def sample(self, sent_s: float, chance: random.Random) -> Request:
        _, rows, sizes, patience_s = chance.choice(self._calls)
        return Request(sent_s, rows, sizes, patience_s)
