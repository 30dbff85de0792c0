"""A revision and its traffic, request by request, in virtual time.

    traffic ─► activator ─► pods: queue-proxy ─► batching policy ─► device
                  │  holds while no pod has room; by itself out of the way where there is capacity for a burst
    each second: what was in flight ─► KPA ─► pods that start (`Setup.start_s`) and go (`Setup.going_s`)

One activator. It gives a request to the first pod with room (containerConcurrency up to 3), to the next in turn, or with no
limit to the less busy of two (knative/serving, pkg/activator/net/lb_policy.go); without it a request goes to any pod.
"""

import math
import random
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from ..kpa import Kpa
from .outcome import Outcome
from .pod import Pod
from .request import Request
from .setup import Setup
from .traffic import Traffic

ACTIVATOR_QUEUE = 10_000
"""Requests that an activator holds for a revision; more are refused (pkg/activator/net/throttler.go)."""

Progress = Callable[[float], None]
"""Told at times which share is done."""


def simulate(
    setup: Setup, traffic: Traffic, *, awake: int | None = None, seed: int = 0, progress: Progress = lambda share: None
) -> Outcome:
    """awake: pods that are ready at the beginning; without it those of min-scale."""
    return _Simulation(setup, traffic, setup.scaling.min_scale if awake is None else awake, seed, progress).run()


class _Simulation:
    def __init__(self, setup: Setup, traffic: Traffic, awake: int, seed: int, progress: Progress) -> None:
        self._setup = setup
        self._traffic = traffic
        self._progress = progress
        self._chance = random.Random(seed)
        self._seconds = setup.batch_seconds()
        self._around_s = setup.around_s
        self._limit = setup.scaling.container_concurrency
        self._kpa = Kpa.at_rest(setup.scaling, awake)
        self._outcome = Outcome.over(traffic.duration_s)
        self._slot_s, self._slots = self._outcome.slot_s, self._outcome.slots
        # (time, sequence, what is called with the time and what it is called with)
        self._events: list[tuple[float, int, Callable[..., None], Pod | None]] = []
        self._sequence = count()
        self._ready: list[Pod] = []
        """Those that answer, the oldest first; Kubernetes calls the first `_known` of them ready."""
        self._known = 0
        self._starting: list[Pod] = []
        self._waiting: deque[Request] = deque()
        self._turn = 0
        self._axes = 0
        self._proxied = True
        self._in_flight = 0
        self._flight_seconds = 0.0
        self._flight_since_s = 0.0
        self._came = 0
        self._activator_reports = False
        self._reported_early = 0.0
        self._counts_since_s = 0.0
        self._scale_again_s = math.inf
        self._awake = awake

    def run(self) -> Outcome:
        outcome, events = self._outcome, self._events
        arrivals = iter(self._traffic.arrivals())
        following = next(arrivals, None)
        if following is not None:
            self._axes = len(following.sizes)
        for _ in range(self._awake):
            self._start_pod(-self._setup.start_s)
        self._ready, self._starting = self._starting, []
        self._known = self._awake
        self._scale(0.0)
        self._push(1.0, self._report, None)
        while following is not None or self._in_flight or self._flight_since_s < outcome.duration_s:
            if following is not None and following.sent_s <= events[0][0]:
                now, request = following.sent_s, following
                following = next(arrivals, None)
                self._arrive(request, now)
            else:
                now, _, happens, pod = heappop(events)
                if pod is None:
                    happens(now)
                else:
                    happens(now, pod)
        for pod in (*self._ready, *self._starting):
            self._count_pod(pod, math.inf, math.inf)
        return outcome

    def _arrive(self, request: Request, now: float) -> None:
        self._flight_seconds += self._in_flight * (now - self._flight_since_s)
        self._flight_since_s = now
        self._in_flight += 1
        self._came += 1
        slot = self._slots[int(now / self._slot_s)]
        slot.requests += 1
        if not self._ready:
            slot.cold += 1
            self._outcome.cold += 1
        self._outcome.requests += 1
        if self._proxied:
            if not self._activator_reports:
                self._activator_reports = True
                self._reported_early = 1.0
                self._counts_since_s = now
                self._kpa.observe(now, self._known, 1.0, 1.0)
                self._scale(now)
            pod = None if self._waiting else self._free_pod()
            if pod is None:
                if len(self._waiting) >= ACTIVATOR_QUEUE:
                    self._leave(request, now, refused=True)
                else:
                    self._waiting.append(request)
                return
        else:
            pod = self._ready[0 if self._known == 1 else self._chance.randrange(self._known)]
        if pod.offer(request, now):
            self._step(now, pod)
        else:
            self._leave(request, now, refused=True)

    def _free_pod(self) -> Pod | None:
        """Where the activator sends a request now."""
        pods, limit = self._ready, self._limit
        if len(pods) == 1:
            return pods[0] if pods[0].has_room else None
        if not pods:
            return None
        if not limit:
            one, other = self._chance.sample(pods, 2)
            return one if one.in_flight <= other.in_flight else other
        first = 0 if limit <= 3 else self._turn
        for step in range(len(pods)):
            at = (first + step) % len(pods)
            if pods[at].has_room:
                self._turn = at + 1
                return pods[at]
        return None

    def _step(self, now: float, pod: Pod) -> None:
        if pod.is_idle:
            return
        if pod.running is None:
            for request in pod.expired(now):
                self._leave(request, now, timed_out=True)
            ends_s = pod.step(now)
            if ends_s < math.inf:
                self._push(ends_s, self._end_batch, pod)
                return
        wake_s = pod.wake_s(now)
        if wake_s < pod.timer_s:
            pod.timer_s = wake_s
            self._push(wake_s, self._timer, pod)

    def _timer(self, now: float, pod: Pod) -> None:
        if pod.timer_s <= now:
            pod.timer_s = math.inf
            for request in pod.expired(now):
                self._leave(request, now, timed_out=True)
            self._step(now, pod)

    def _end_batch(self, now: float, pod: Pod) -> None:
        answered = pod.end()
        self._step(now, pod)  # before the answers, as the server has it
        for request in answered:
            self._leave(request, now)
        for request in pod.admit(now):
            self._leave(request, now, refused=True)
        if self._waiting:
            self._hand_out(now)
        if pod.running is None:
            self._step(now, pod)

    def _hand_out(self, now: float) -> None:
        """What the activator holds, to pods with room."""
        while self._waiting and (pod := self._free_pod()) is not None:
            request = self._waiting.popleft()
            if now - request.sent_s >= self._setup.timeout_s:
                self._leave(request, now, timed_out=True)
            elif pod.offer(request, now):
                self._step(now, pod)
            else:
                self._leave(request, now, refused=True)

    def _leave(self, request: Request, now: float, *, refused: bool = False, timed_out: bool = False) -> None:
        self._flight_seconds += self._in_flight * (now - self._flight_since_s)
        self._flight_since_s = now
        self._in_flight -= 1
        latency_s = now - request.sent_s + self._around_s
        if refused:
            self._outcome.refused += 1
        elif timed_out or latency_s > self._setup.timeout_s:
            self._outcome.timed_out += 1
        else:
            self._outcome.latencies.add(latency_s)
            self._slots[int(request.sent_s / self._slot_s)].latencies.add(latency_s)

    def _report(self, now: float) -> None:
        """Each second: what was in flight, and each tick the autoscaler's decision."""
        self._flight_seconds += self._in_flight * (now - self._flight_since_s)
        self._flight_since_s = now
        ready = self._known
        if ready or self._activator_reports:
            early = self._reported_early
            counted_s = now - self._counts_since_s
            concurrency = self._flight_seconds / counted_s if counted_s else 0.0
            self._kpa.observe(now, ready, max(0.0, concurrency - early), max(0.0, self._came - early))
        self._activator_reports = self._flight_seconds > 0
        self._flight_seconds, self._came, self._reported_early, self._counts_since_s = 0.0, 0, 0.0, now
        if now % self._setup.scaling.tick_s == 0:
            self._kpa.tick(now, ready)
        self._scale(now)
        self._push(now + 1.0, self._report, None)
        if now % 60 == 0:
            self._progress(min(1.0, now / self._outcome.duration_s))

    def _scale_again(self, now: float) -> None:
        if self._scale_again_s <= now:
            self._scale_again_s = math.inf
            self._scale(now)

    def _scale(self, now: float) -> None:
        """Let the pods be as many as the autoscaler wants."""
        pods, self._proxied, again_s = self._kpa.scale(now, self._known)
        there = len(self._ready) + len(self._starting)
        self._outcome.wakes += not there and pods > 0
        for _ in range(there, pods):
            self._start_pod(now)
        for _ in range(pods, there):  # those that are not ready go first, then the youngest
            pod = self._starting.pop() if self._starting else self._ready.pop()
            self._known = min(self._known, len(self._ready))
            pod.is_going = True
            self._count_pod(pod, now, now + self._setup.going_s)
        if again_s < self._scale_again_s:
            self._scale_again_s = again_s
            self._push(again_s, self._scale_again, None)
        if self._proxied and self._waiting:
            self._hand_out(now)

    def _start_pod(self, now: float) -> None:
        setup = self._setup
        ready_s = now + setup.start_s
        seconds, request_s = self._seconds, setup.measurement.request_s
        pod = Pod(self._limit, setup.batching, seconds, request_s, self._axes, ready_s)
        self._starting.append(pod)
        self._outcome.most_pods = max(self._outcome.most_pods, len(self._ready) + len(self._starting))
        if now >= 0:
            self._outcome.pods_started += 1
            self._push(ready_s, self._get_ready, pod)

    def _get_ready(self, now: float, pod: Pod) -> None:
        if pod.is_going:
            return
        self._starting.remove(pod)
        self._ready.append(pod)
        self._push(now + self._setup.known_after_s, self._get_known, pod)
        self._hand_out(now)

    def _get_known(self, now: float, pod: Pod) -> None:
        if not pod.is_going:
            self._known += 1
            self._scale(now)

    def _count_pod(self, pod: Pod, unready_s: float, gone_s: float) -> None:
        self._outcome.count_pod(pod.ready_s - self._setup.start_s, pod.ready_s, unready_s, gone_s)

    def _push(self, at_s: float, happens: Callable[..., None], pod: Pod | None) -> None:
        heappush(self._events, (at_s, next(self._sequence), happens, pod))
