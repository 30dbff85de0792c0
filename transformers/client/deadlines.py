"""The deadlines of what is under way, by one timer: one for each request would cost more than all that it guards.

The timer is set for the earliest deadline and looks at all of them when it rings, mostly to find that whoever it was set for
has been answered.
"""

import asyncio
import math
from typing import Protocol

_LATE_S = 0.005
"""While deadlines pass one after the other, several share a look."""


class Guarded(Protocol):
    """Something with a deadline, on the loop's clock."""

    @property
    def end_s(self) -> float: ...
    def expire(self) -> None:
        """The deadline has passed. It is guarded no longer."""


class Deadlines:
    """Belongs to the event loop of its first deadline."""

    def __init__(self) -> None:
        self._guarded: dict[Guarded, None] = {}
        self._rings_s = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def guard(self, one: Guarded) -> None:
        self._guarded[one] = None
        if one.end_s < self._rings_s:
            self._set(one.end_s)

    def release(self, one: Guarded) -> None:
        self._guarded.pop(one, None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _set(self, rings_s: float) -> None:
        self.close()
        self._rings_s = rings_s
        self._timer = asyncio.get_running_loop().call_at(rings_s, self._ring)

    def _ring(self) -> None:
        now_s = asyncio.get_running_loop().time()
        self._rings_s, self._timer = math.inf, None
        for one in [one for one in self._guarded if one.end_s <= now_s]:
            if self._guarded.pop(one, 0) is None:  # an expiry may have ended it
                one.expire()
        if self._guarded:
            earliest_s = min(one.end_s for one in self._guarded)
            if earliest_s < self._rings_s:
                self._set(max(earliest_s, now_s + _LATE_S))
