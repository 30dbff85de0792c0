"""What came of a simulation: latencies, pods over time, cold starts."""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

_STEPS = 200
"""Bins of latencies a factor of e: half a percent each."""


class Latencies:
    """A histogram whose bins are half a percent wide; counts may be fractions."""

    def __init__(self) -> None:
        self.counts: dict[int, float] = defaultdict(float)

    def add(self, seconds: float, count: float = 1.0) -> None:
        self.counts[int(math.log(seconds + 1e-9) * _STEPS)] += count

    def add_all(self, other: "Latencies", factor: float = 1.0) -> None:
        for step, count in other.counts.items():
            self.counts[step] += factor * count

    @property
    def total(self) -> float:
        return sum(self.counts.values())

    @property
    def mean_s(self) -> float:
        """0 without any."""
        total = self.total
        return sum(math.exp(step / _STEPS) * count for step, count in self.counts.items()) / total if total else 0.0

    def at(self, share: float) -> float:
        """Seconds that `share` of them stay within; 0 without any."""
        left = share * self.total
        for step, count in sorted(self.counts.items()):
            left -= count
            if left <= 1e-9:
                return math.exp(step / _STEPS)
        return math.exp(max(self.counts) / _STEPS) if self.counts else 0.0


@dataclass
class Slot:
    """A stretch of the time. pods: the mean of those that there were, ready: of those that took requests."""

    begin_s: float
    pods: float = 0.0
    ready: float = 0.0
    requests: float = 0.0
    cold: float = 0.0
    latencies: Latencies = field(default_factory=Latencies)


@dataclass
class Outcome:
    """cold: requests that came while no pod was ready. wakes: how often the revision left zero. pods_started: in all.

    pod_seconds: of pods from their creation until they are gone, starting and draining included, within the traffic's time;
    ready_pod_seconds: of those that took requests. refused: 503s; timed_out: 504s.
    """

    duration_s: float
    slot_s: float
    slots: list[Slot]
    requests: float = 0.0
    refused: float = 0.0
    timed_out: float = 0.0
    cold: float = 0.0
    wakes: int = 0
    pods_started: int = 0
    most_pods: int = 0
    pod_seconds: float = 0.0
    ready_pod_seconds: float = 0.0
    latencies: Latencies = field(default_factory=Latencies)

    @classmethod
    def over(cls, duration_s: float) -> "Outcome":
        """Of nothing yet; at most 360 slots, each of whole ticks of 2 s."""
        slot_s = 2.0 * max(1, math.ceil(duration_s / 720))
        return cls(duration_s, slot_s, [Slot(number * slot_s) for number in range(math.ceil(duration_s / slot_s))])

    def count_pod(self, created_s: float, ready_s: float, unready_s: float, gone_s: float) -> None:
        """A pod that there was; infinity for what has not happened."""
        self.pod_seconds += self._spread(created_s, gone_s, "pods")
        self.ready_pod_seconds += self._spread(min(ready_s, unready_s), unready_s, "ready")

    def _spread(self, begin_s: float, end_s: float, name: str) -> float:
        begin_s, end_s = max(0.0, begin_s), min(end_s, self.duration_s)
        if begin_s >= end_s:
            return 0.0
        for slot in self.slots[int(begin_s / self.slot_s) : math.ceil(end_s / self.slot_s)]:
            share = (min(end_s, slot.begin_s + self.slot_s) - max(begin_s, slot.begin_s)) / self.slot_s
            setattr(slot, name, getattr(slot, name) + share)
        return end_s - begin_s

    @property
    def cold_share(self) -> float:
        return self.cold / self.requests if self.requests else 0.0

    def summary(self) -> dict[str, Any]:
        """What a run on a cluster is compared with, by names with their units."""
        return {
            "requests": round(self.requests),
            "seconds": self.duration_s,
            **{f"latency_p{share:g}_ms": 1e3 * self.latencies.at(share / 100) for share in (50, 95, 99)},
            "cold_starts": self.wakes,
            "cold_requests": round(self.cold),
            "cold_share": self.cold_share,
            "pods_started": self.pods_started,
            "pods_max": self.most_pods,
            "pod_seconds": self.pod_seconds,
            "ready_pod_seconds": self.ready_pod_seconds,
            "refused": round(self.refused),
            "timed_out": round(self.timed_out),
        }
