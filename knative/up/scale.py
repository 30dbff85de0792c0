"""When the one instance of a component starts and stops: a state machine with the time as a parameter.

    ASLEEP ─request─► STARTING ─ready─► AWAKE ─idle for window + delay + retention─► STOPPING ─► ASLEEP
                         │ ▲              │
                         ▼ └─back-off─ CRASHED

As with Knative a revision starts once before it may sleep, unless its initial-scale is 0, and min-scale keeps it awake. One
thing is not as there: what keeps crashing while nobody asks falls asleep, once it has been ready.
"""

import math
from enum import Enum

from ..autoscaling import Autoscaling

_FIRST_BACKOFF_S = 0.5
_MOST_BACKOFF_S = 30.0
_HEALED_S = 60.0
"""Who has been ready for so long and then crashes is started again as if for the first time."""


class State(Enum):
    ASLEEP = "asleep"
    STARTING = "starting"
    AWAKE = "awake"
    STOPPING = "stopping"
    CRASHED = "crashed"


class Action(Enum):
    START = "start"
    STOP = "stop"


class Scale:
    """Told what happens; `step` says what to do, `wake_at` when to ask again. Times are monotonic seconds."""

    def __init__(self, autoscaling: Autoscaling) -> None:
        self.state = State.ASLEEP
        self.requests = 0
        """Those that wait or are being answered."""
        self.failures = 0
        """Ends in a row that nobody asked for."""
        self.is_closing = False
        self._stays = autoscaling.min_scale > 0
        self._was_ready = autoscaling.initial_scale == 0
        self.idle_s = autoscaling.window_s + autoscaling.scale_down_delay_s + autoscaling.retention_s
        self.idle_since_s = -math.inf
        self._ready_since_s = -math.inf
        self._again_s = -math.inf

    def began(self) -> None:
        """A request has come."""
        self.requests += 1

    def ended(self, now_s: float) -> None:
        """A request has been answered, or its caller has left."""
        self.requests -= 1
        self.idle_since_s = now_s

    def close(self) -> None:
        """Finish what is under way, then stop for good."""
        self.is_closing = True

    def ready(self, now_s: float) -> None:
        """The instance answers."""
        if self.state is State.STARTING:
            self.state = State.AWAKE
            self._was_ready = True
            self._ready_since_s = self.idle_since_s = now_s

    def exited(self, now_s: float) -> None:
        """The instance has ended, asked or not."""
        if self.state is State.STOPPING:
            self.state = State.ASLEEP
            self.failures = 0
            return
        if self.state is State.AWAKE and now_s - self._ready_since_s >= _HEALED_S:
            self.failures = 0
        self.failures += 1
        self.state = State.CRASHED
        self._again_s = now_s + min(_MOST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** (self.failures - 1))

    def step(self, now_s: float) -> Action | None:
        """What is to be done now; the state is then as if it had been done."""
        if self.state is State.ASLEEP and self._is_called_for():
            self.state = State.STARTING
            return Action.START
        if self.state is State.CRASHED:
            if not self._may_stay(now_s):
                self.state = State.ASLEEP
            elif now_s >= self._again_s:
                self.state = State.STARTING
                return Action.START
        if self.state is State.AWAKE and not self._may_stay(now_s):
            self.state = State.STOPPING
            return Action.STOP
        if self.state is State.STARTING and self.is_closing and not self.requests:
            self.state = State.STOPPING
            return Action.STOP
        return None

    def wake_at(self, now_s: float) -> float | None:
        """When `step` may say something else than now, if nothing happens until then."""
        if self.state is State.CRASHED:
            return self._again_s
        if self.state is State.AWAKE and not (self.requests or self._stays or self.is_closing):
            return self.idle_since_s + self.idle_s
        return None

    def _is_called_for(self) -> bool:
        return self.requests > 0 or (not self.is_closing and (self._stays or not self._was_ready))

    def _may_stay(self, now_s: float) -> bool:
        return self._is_called_for() or (not self.is_closing and now_s < self.idle_since_s + self.idle_s)
