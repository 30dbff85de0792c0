"""Loads for the simulator: who sends what, and when."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from .bucket import Bucket, rounded
from .policy import Item

FAMILY = "simulated"
"""All rows of a load may share a batch."""


class Call(Item):
    """One request: rows of `sizes` along the named axes. patience_s: how long after its arrival it is of use, or None."""

    def __init__(self, rows: int = 1, sizes: tuple[int, ...] = (), patience_s: float | None = None) -> None:
        super().__init__(rows, Bucket(FAMILY, rounded(sizes)))
        self.sizes = sizes
        self.patience_s = patience_s
        self.cells = math.prod(sizes)
        self.answered_rows = 0


class Arrival(NamedTuple):
    """A call, and when it comes."""

    arrival_s: float
    call: Call


class Load(Protocol):
    """What comes by itself, in order of time, and what a caller sends after it was answered or refused."""

    def scheduled(self) -> Iterator[Arrival]: ...
    def after(self, now: float) -> Arrival | None: ...


@dataclass(frozen=True)
class Lengths:
    """Sizes of one named axis: log-normal with a median, `sigma` of their logarithm, cut to a range."""

    median: int
    shortest: int
    longest: int
    sigma: float = 0.6

    def draw(self, chance: random.Random) -> tuple[int, ...]:
        drawn = round(chance.lognormvariate(math.log(self.median), self.sigma))
        return (min(self.longest, max(self.shortest, drawn)),)


class Trace:
    """Calls at given times, in any order."""

    def __init__(self, arrivals: list[Arrival]) -> None:
        self._arrivals = sorted(arrivals, key=lambda arrival: arrival.arrival_s)

    def scheduled(self) -> Iterator[Arrival]:
        return iter(self._arrivals)

    def after(self, now: float) -> Arrival | None:
        return None


class Poisson:
    """An open loop: `calls` calls, on average `rate` a second, whether earlier ones were answered or not."""

    def __init__(self, rate: float, calls: int, draw: Callable[[random.Random], Call], seed: int = 0) -> None:
        self._rate = rate
        self._calls = calls
        self._draw = draw
        self._seed = seed

    def scheduled(self) -> Iterator[Arrival]:
        chance = random.Random(self._seed)
        now = 0.0
        for _ in range(self._calls):
            now += chance.expovariate(self._rate)
            yield Arrival(now, self._draw(chance))

    def after(self, now: float) -> Arrival | None:
        return None


class ClosedLoop:
    """`callers` callers, `calls` calls in all: each sends its next one `gap_s` after its last was answered."""

    def __init__(
        self, callers: int, calls: int, draw: Callable[[random.Random], Call], seed: int = 0, gap_s: float = 0.001
    ) -> None:
        self._callers = callers
        self._left = calls
        self._draw = draw
        self._chance = random.Random(seed)
        self._gap_s = gap_s

    def scheduled(self) -> Iterator[Arrival]:
        for caller in range(self._callers):
            if (arrival := self.after(caller * self._gap_s)) is not None:
                yield arrival

    def after(self, now: float) -> Arrival | None:
        if not self._left:
            return None
        self._left -= 1
        return Arrival(now + self._gap_s, self._draw(self._chance))
