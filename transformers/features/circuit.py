"""Whether Redis is asked at all: one that is gone must cost nobody the time-out of each request.

closed ──failures in a row──► open ──pause──► half-open: one probe, beside the requests
   ▲                            ▲                 │
   └────────── success ─────────┼─────────────────┤
                                └──── failure ────┘
"""

from enum import StrEnum


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Circuit:
    """A state machine with the time as a parameter. failures: in a row that open it; pause_s: from there to a probe."""

    def __init__(self, failures: int = 3, pause_s: float = 1.0) -> None:
        self.state = State.CLOSED
        self._failures = failures
        self._pause_s = pause_s
        self._failed = 0
        self._probe_at_s = 0.0

    @property
    def is_closed(self) -> bool:
        return self.state is State.CLOSED

    def succeeded(self) -> bool:
        """An answer came; True if that closed it."""
        has_closed = self.state is not State.CLOSED
        self.state = State.CLOSED
        self._failed = 0
        return has_closed

    def failed(self, now_s: float) -> bool:
        """No answer came; True if that opened a closed one."""
        self._failed += 1
        if self.state is State.OPEN or (self.state is State.CLOSED and self._failed < self._failures):
            return False
        has_opened = self.state is State.CLOSED
        self.state = State.OPEN
        self._probe_at_s = now_s + self._pause_s
        return has_opened

    def probes(self, now_s: float) -> bool:
        """True for the one who is to probe now, and must say how it went."""
        if self.state is not State.OPEN or now_s < self._probe_at_s:
            return False
        self.state = State.HALF_OPEN
        return True
