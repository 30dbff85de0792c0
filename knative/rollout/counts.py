"""What the pods of a revision counted, and how much of it belongs to a time that one looks at."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..samples import Sample

LATENCIES = {"torpor_request_seconds": "requests"}
"""torpor's histogram of time, and what it is called in a verdict."""


@dataclass(frozen=True)
class Counts:
    """Of one pod since it began, or of many in some time.

    requests, errors: by torpor_requests_total; an error is any status but 200 and OK. histograms: by name, observations up to
    each bound in seconds, as Prometheus has it.
    """

    requests: float = 0.0
    errors: float = 0.0
    histograms: Mapping[str, Mapping[float, float]] = field(default_factory=dict)

    def __add__(self, other: "Counts") -> "Counts":
        return self._with(other, 1)

    def __sub__(self, other: "Counts") -> "Counts":
        return self._with(other, -1)

    def _with(self, other: "Counts", sign: int) -> "Counts":
        histograms = {}
        for name in {**self.histograms, **other.histograms}:
            mine, theirs = self.histograms.get(name, {}), other.histograms.get(name, {})
            histograms[name] = {bound: mine.get(bound, 0) + sign * theirs.get(bound, 0) for bound in {**mine, **theirs}}
        return Counts(self.requests + sign * other.requests, self.errors + sign * other.errors, histograms)

    def observed(self, name: str) -> float:
        """How many a histogram holds."""
        return self.histograms.get(name, {}).get(math.inf, 0.0)

    def p99_s(self, name: str) -> float:
        """The bound below which 99 % lie; the highest finite one where they do not, 0 for an empty histogram."""
        buckets = sorted(self.histograms.get(name, {}).items())
        finite = [bound for bound, _ in buckets if bound < math.inf]
        if not self.observed(name) or not finite:
            return 0.0
        enough = 0.99 * self.observed(name)
        return min(next(bound for bound, count in buckets if count >= enough), finite[-1])

    def slower(self, name: str, seconds: float) -> float:
        """How many took longer for certain: those above the first bound that is not below `seconds`."""
        above = [(bound, count) for bound, count in self.histograms.get(name, {}).items() if bound >= seconds]
        return self.observed(name) - min(above)[1] if above else 0.0


class Window:
    """The counts of a revision's pods since a moment, whatever pods come, restart and go meanwhile."""

    def __init__(self) -> None:
        self._since: dict[str, Counts] = {}
        self._last: dict[str, Counts] = {}
        self._before_restarts: dict[str, Counts] = {}
        self._open = False

    def begin(self) -> None:
        """From what was last seen."""
        self._since = dict(self._last)
        self._before_restarts = {}
        self._open = True

    def see(self, pods: Mapping[str, Counts]) -> None:
        """By each pod's name, what it has counted since its start. One that is missing may come again, or never.

        A pod that is new since the window began belongs to it from its first request.
        """
        for name, counts in pods.items():
            last = self._last.get(name)
            if last is not None and counts.requests < last.requests:
                since = self._since.pop(name, Counts())
                self._before_restarts[name] = self._before_restarts.get(name, Counts()) + (last - since)
            elif not self._open:
                self._since[name] = counts
            self._last[name] = counts

    def counts(self) -> Counts:
        """Since it began."""
        total = Counts()
        for name, last in self._last.items():
            total += (last - self._since.get(name, Counts())) + self._before_restarts.get(name, Counts())
        return total


def counted(samples: Iterable[Sample]) -> Counts:
    """Of a pod's samples; what is not torpor's is passed over."""
    requests = errors = 0.0
    histograms: dict[str, dict[float, float]] = {}
    for name, labels, value in samples:
        if name == "torpor_requests_total":
            requests += value
            errors += 0 if labels.get("status") in ("200", "OK") else value
        elif "le" in labels and (histogram := name.removesuffix("_bucket")) in LATENCIES:
            buckets = histograms.setdefault(histogram, {})
            at = float(labels["le"])
            buckets[at] = buckets.get(at, 0.0) + value
    return Counts(requests, errors, histograms)
