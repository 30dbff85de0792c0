"""Knative's autoscaler (KPA) as a state machine with the time as a parameter: one revision, no clock, no I/O.

    observe(now, ready, ...)  what was in flight, each second; at zero the first request is decided on at once
    tick(now, ready)          the autoscaler's decision, every `tick_s`
    scale(now, ready)         what the reconciler does with it: how many pods there should be, who gets the requests

It restates Knative Serving 1.23: pkg/autoscaler/aggregation/bucketing.go (`Window`), pkg/autoscaler/scaling/autoscaler.go and
aggregation/max (`Decider`), pkg/autoscaler/scaling/multiscaler.go and pkg/reconciler/autoscaling/kpa/{kpa,scaler}.go (`Kpa`).
Left out: several activators, unreachable revisions, weighted windows, a pod that never gets ready (it is never given up
here), and the probe by which the reconciler finds out that the activator has its requests: it succeeds at once.
"""

import math
from collections import deque
from enum import Enum
from typing import NamedTuple

from .autoscaling import Autoscaling


class Window:
    """The average of what was recorded in the last `window_s`, in buckets of a second; values of one second are added up.

    The average is over the seconds since the first record, as long as fewer than the window has.
    """

    def __init__(self, window_s: float) -> None:
        self._size = math.ceil(window_s)
        self._buckets = [0.0] * self._size
        self._total = 0.0
        self._first_s = 0
        self._last_s: int | None = None

    def record(self, now: float, value: float) -> None:
        """`now` must not go back."""
        second = math.floor(now)
        if self._last_s is None or second - self._last_s >= self._size:
            self._buckets = [0.0] * self._size
            self._total = 0.0
            self._first_s = second
        else:
            for gap in range(self._last_s + 1, second + 1):
                self._total -= self._buckets[gap % self._size]
                self._buckets[gap % self._size] = 0.0
        self._last_s = second
        self._buckets[second % self._size] += value
        self._total += value

    def is_empty(self, now: float) -> bool:
        """Nothing was recorded for longer than the window."""
        return self._last_s is None or math.floor(now) - self._last_s > self._size

    def average(self, now: float) -> float:
        second = math.floor(now)
        if self._last_s is None or second - self._last_s >= self._size:
            return 0.0
        total = self._total - sum(self._buckets[gap % self._size] for gap in range(self._last_s + 1, second + 1))
        seconds = min(self._last_s - self._first_s + 1, self._size - (second - self._last_s))
        return round(total / seconds, 6)


class Decision(NamedTuple):
    """excess_burst: how much more than the target burst capacity the pods can take; the activator is needed below 0."""

    pods: int
    excess_burst: float


class Decider:
    """How many pods the metric asks for. ready: pods there are at the beginning; more than one begin in panic."""

    def __init__(self, scaling: Autoscaling, now: float, ready: int = 0) -> None:
        self._scaling = scaling
        self._total = scaling.pod_target * 100 / scaling.target_utilization_percentage
        self._target = max(0.01, scaling.pod_target)
        self.panic_since_s: float | None = now if ready > 1 else None
        self._panic_pods = ready
        self._delay_ticks = math.ceil(scaling.scale_down_delay_s / scaling.tick_s)
        self._recent: deque[tuple[int, int]] = deque()

    def decide(self, now: float, ready: int, stable: float, panic: float) -> Decision:
        """stable, panic: the metric's averages over the two windows, of all pods together."""
        scaling = self._scaling
        pods = max(1, ready)
        most = math.ceil(scaling.max_scale_up_rate * pods)
        fewest = math.floor(pods / scaling.max_scale_down_rate)
        for_stable, for_panic = math.ceil(stable / self._target), math.ceil(panic / self._target)
        desired, in_panic = (min(max(wanted, fewest), most) for wanted in (for_stable, for_panic))
        if for_stable > 0:
            desired = max(desired, scaling.activation_scale)
        if for_panic > 0:
            in_panic = max(in_panic, scaling.activation_scale)

        if for_panic / pods >= scaling.panic_threshold_percentage / 100:
            self.panic_since_s = now
        elif self.panic_since_s is not None and self.panic_since_s + scaling.window_s < now:
            self.panic_since_s = None
            self._panic_pods = 0
        if self.panic_since_s is not None:  # then it only grows
            self._panic_pods = desired = max(desired, in_panic, self._panic_pods)

        if self._delay_ticks:
            desired = self._delayed(now, desired)
        return Decision(desired, self._excess_burst(ready, panic))

    def _delayed(self, now: float, desired: int) -> int:
        """The most that was desired within the scale-down delay."""
        tick = math.floor(now / self._scaling.tick_s)
        recent = self._recent
        while recent and recent[-1][1] <= desired:
            recent.pop()
        if not (recent and recent[-1][0] == tick):  # of two in one tick the larger counts
            recent.append((tick, desired))
        while recent[0][0] <= tick - self._delay_ticks:
            recent.popleft()
        return recent[0][1]

    def _excess_burst(self, ready: int, panic: float) -> float:
        burst = self._scaling.target_burst_capacity
        if burst <= 0:
            return burst
        return math.floor(ready * self._total - burst - panic)


class Activity(Enum):
    """The condition Active of the PodAutoscaler."""

    ACTIVATING = "Unknown"
    ACTIVE = "True"
    INACTIVE = "False"


class Scale(NamedTuple):
    """pods: replicas of the Deployment. proxied: requests go through the activator. again_s: ask again then, if not before."""

    pods: int
    proxied: bool
    again_s: float


class Kpa:
    """One revision from its deployment at `now` on, which begins with the initial scale."""

    def __init__(self, scaling: Autoscaling, now: float = 0.0) -> None:
        self.scaling = scaling
        self.desired = -1  # nothing is known yet
        self.activity = Activity.ACTIVATING
        self.pods = max(scaling.initial_scale, scaling.min_scale)
        burst = scaling.target_burst_capacity
        total = scaling.pod_target * 100 / scaling.target_utilization_percentage
        self.excess_burst = burst if burst <= 0 else float(int(scaling.initial_scale * total - burst))
        self._initialized = False
        self._since_s = now
        self._proxied_since_s: float | None = now
        self._stable = Window(scaling.window_s)
        self._panic = Window(scaling.panic_window_s)
        self._decider = Decider(scaling, now)

    @classmethod
    def at_rest(cls, scaling: Autoscaling, pods: int) -> "Kpa":
        """A revision that was deployed long ago and has had no requests of late; its `pods`, 0 for none, are ready."""
        kpa = cls(scaling, -math.inf)
        kpa.desired = kpa.pods = pods
        kpa.activity = Activity.ACTIVE if pods else Activity.INACTIVE
        kpa._initialized = True
        return kpa

    def observe(self, now: float, ready: int, concurrency: float, requests: float) -> None:
        """A second's report: the average of requests in flight, activator and pods together, and how many have come.

        The activator reports the first request in a while at once, as 1 and 1; the report of that second has one less, and
        its average is of the time since that request (pkg/activator/handler/concurrency_reporter.go).
        """
        value = requests if self.scaling.metric == "rps" else concurrency
        self._stable.record(now, value)
        self._panic.record(now, value)
        if self.desired == 0 and concurrency:
            self.tick(now, ready)

    def tick(self, now: float, ready: int) -> None:
        """Decide anew; without any report for a window the last decision stays, unless the activator always reports."""
        if self._stable.is_empty(now) and self.scaling.target_burst_capacity != -1:
            return
        averages = self._stable.average(now), self._panic.average(now)
        self.desired, self.excess_burst = self._decider.decide(now, ready, *averages)

    def scale(self, now: float, ready: int) -> Scale:
        """Act on the last decision. ready: pods that are."""
        again_s = self._reconcile(now, ready)
        while again_s <= now:  # its own changes wake the reconciler too
            again_s = self._reconcile(now, ready)
        return Scale(self.pods, self._proxied_since_s is not None, again_s)

    def _reconcile(self, now: float, ready: int) -> float:
        before = self.activity
        wanted, again_s = self.desired, math.inf
        if wanted >= 0 or self.activity is Activity.ACTIVATING:
            wanted, again_s = self._bounded(now)
        proxied = not ready or not (wanted > 0 and self.excess_burst >= 0)
        if not proxied:
            self._proxied_since_s = None
        elif self._proxied_since_s is None:
            self._proxied_since_s = now
        self._note_activity(now, wanted, ready)
        return again_s if self.activity is before else now

    def _bounded(self, now: float) -> tuple[int, float]:
        """What is wanted within the bounds, -1 where that is not known yet, and when to look again; `pods` follows."""
        scaling = self.scaling
        low = scaling.min_scale
        if scaling.initial_scale > 1 and not self._initialized:
            low = max(low, scaling.initial_scale)
        wanted = max(low, self.desired)
        if scaling.max_scale:
            wanted = min(wanted, scaling.max_scale)
        if wanted:
            self.pods = wanted
            return wanted, math.inf
        return self._to_zero(now)

    def _to_zero(self, now: float) -> tuple[int, float]:
        """Active for a window, then inactive for the retention and behind the activator for the grace period."""
        scaling, since_s = self.scaling, self._since_s
        if self.activity is Activity.ACTIVATING:
            return -1, math.inf
        if self.activity is Activity.ACTIVE:
            if now < since_s + scaling.window_s:
                self.pods = 1
                return 1, since_s + scaling.window_s
            return 0, math.inf
        if now < since_s + scaling.retention_s:
            return 0, since_s + scaling.retention_s
        proxied_since_s = now if self._proxied_since_s is None else self._proxied_since_s
        rested_s = min(proxied_since_s, since_s) + scaling.grace_s
        if now < rested_s:
            return 0, rested_s
        self.pods = 0
        return 0, math.inf

    def _note_activity(self, now: float, wanted: int, ready: int) -> None:
        scaling = self.scaling
        needed = max(scaling.min_scale, 1 if self._initialized else scaling.initial_scale)
        if ready >= needed:
            self._initialized = True
        if wanted == 0 or needed == 0:
            activity = Activity.INACTIVE
        elif wanted > 0 or self.activity is not Activity.INACTIVE:
            activity = Activity.ACTIVE if ready >= needed else Activity.ACTIVATING
        else:
            activity = Activity.INACTIVE
        if activity is not self.activity:
            self.activity, self._since_s = activity, now
