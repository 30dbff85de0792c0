"""What to do next in a rollout: a state machine of the time and of what was seen. It knows no cluster and no clock.

    waiting ──ready──► smoking ──answered──► shifting ──route has it──► holding ──good──► shifting … ──► promoting ──► promoted
       │                  │                     │                          │                                 │
       └──────────────────┴─────────────────────┴──────── returning ◄──────┴─────────────────────────────────┘
                                                              └──route has it──► returned

Whoever drives it asks `next` with what stands now, does what that says, and comes again. It is said until it is seen done, so
that a call that failed, or a rollout that was cut off, goes on by asking again.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from .counts import Counts
from .judgement import Tolerance, judge


@dataclass(frozen=True)
class Terms:
    """How a candidate is tried.

    steps: its shares of the traffic in percent, ascending; 100 promotes. hold_s: the least time of a step below 100, over
    which it is judged. step_timeout_s: for a verdict on a step. ready_timeout_s: for the candidate's pods. route_timeout_s: for
    the route to give what was asked. failing_s: how long a failure has to last to be one, since conditions are false for a
    moment too. smoke_tries: of the request before any traffic.
    """

    steps: tuple[int, ...] = (10, 50, 100)
    hold_s: float = 30.0
    step_timeout_s: float = 300.0
    ready_timeout_s: float = 300.0
    route_timeout_s: float = 60.0
    failing_s: float = 10.0
    smoke_tries: int = 3
    tolerance: Tolerance = field(default_factory=Tolerance)

    def __post_init__(self) -> None:
        """Raises ValueError."""
        rising = all(a < b for a, b in zip(self.steps, self.steps[1:], strict=False))
        if not self.steps or not rising or self.steps[0] <= 0 or self.steps[-1] != 100:
            shown = ",".join(map(str, self.steps))
            raise ValueError(f"steps = {shown}, must be rising percentages above 0, the last of them 100")


@dataclass(frozen=True)
class Seen:
    """What stands now. percent: the candidate's share by the route, None where it says nothing yet. ready: the candidate is.
    failing: what keeps it from being so, '' for nothing. smoke: the answer's fault, '' for none, None while none was asked.
    candidate, stable: counted since the step began. restarts: of the candidate's containers since then. has_stable: there is a
    revision to compare with and to return to.
    """

    percent: int | None
    ready: bool = False
    failing: str = ""
    smoke: str | None = None
    candidate: Counts = field(default_factory=Counts)
    stable: Counts = field(default_factory=Counts)
    restarts: int = 0
    has_stable: bool = True


class Do(StrEnum):
    """wait: nothing to do. smoke: ask the candidate. shift: give it `percent` of the traffic. end: it is over."""

    WAIT = "wait"
    SMOKE = "smoke"
    SHIFT = "shift"
    END = "end"


@dataclass(frozen=True)
class Order:
    do: Do
    percent: int = 0


class Course:
    """One rollout. phase: as in the picture above. why: of the return. step: which one is held or shifted to."""

    def __init__(self, terms: Terms, now_s: float, percent: int = 0) -> None:
        """percent: what an earlier try of the same rollout had reached; that step is held anew."""
        self.terms = terms
        self.phase = "waiting"
        self.why = ""
        self.doubt = ""
        self.step = next((n for n, step in enumerate(terms.steps) if step >= percent), 0) if percent else -1
        self._since_s = now_s
        self._failing_since_s: float | None = None
        self._smokes = 0

    @property
    def percent(self) -> int:
        """That the candidate is to have."""
        if self.phase in ("waiting", "smoking", "returning", "returned"):
            return 0
        return self.terms.steps[self.step]

    def next(self, now_s: float, seen: Seen) -> Order:
        """What to do. now_s: monotonic, never less than before."""
        order: Order = getattr(self, f"_{self.phase}")(now_s, seen)
        return order

    def take_back(self, now_s: float, why: str) -> None:
        """From outside: somebody asked for it, or nothing can be seen any more."""
        self.why = self.why or why
        self._enter("returning", now_s)

    def _enter(self, phase: str, now_s: float) -> None:
        self.phase = phase
        self._since_s = now_s
        self._failing_since_s = None

    def _return(self, now_s: float, seen: Seen, why: str) -> Order:
        self.take_back(now_s, why)
        return self._returning(now_s, seen)

    def _waiting(self, now_s: float, seen: Seen) -> Order:
        if seen.ready:
            self._enter("smoking", now_s)
            return self._smoking(now_s, seen)
        if failed := self._failed(now_s, seen):
            return self._return(now_s, seen, failed)
        if now_s - self._since_s >= self.terms.ready_timeout_s:
            return self._return(now_s, seen, f"not ready after {self.terms.ready_timeout_s:g} s")
        return Order(Do.WAIT)

    def _smoking(self, now_s: float, seen: Seen) -> Order:
        if seen.smoke == "":
            if not seen.has_stable:
                self.step = len(self.terms.steps) - 1
                self._enter("promoting", now_s)
                return self._promoting(now_s, seen)
            return self._shift(now_s, seen, max(self.step, 0))
        if seen.smoke is not None:
            self._smokes += 1
            if self._smokes >= self.terms.smoke_tries:
                return self._return(now_s, seen, f"the smoke request: {seen.smoke}")
        return Order(Do.SMOKE)

    def _shift(self, now_s: float, seen: Seen, step: int) -> Order:
        self.step = step
        self._enter("promoting" if self.terms.steps[step] == 100 else "shifting", now_s)
        return self.next(now_s, seen)

    def _shifting(self, now_s: float, seen: Seen) -> Order:
        if seen.percent == self.percent:
            self._enter("holding", now_s)
            return Order(Do.WAIT)
        if now_s - self._since_s >= self.terms.route_timeout_s:
            why = f"the route still gives {seen.percent} % after {self.terms.route_timeout_s:g} s, not {self.percent} %"
            return self._return(now_s, seen, why)
        return Order(Do.SHIFT, self.percent)

    def _holding(self, now_s: float, seen: Seen) -> Order:
        verdict = judge(seen.candidate, seen.stable, self.terms.tolerance)
        self.doubt = verdict.why
        if verdict.good is False:
            return self._return(now_s, seen, verdict.why)
        if seen.restarts:
            return self._return(now_s, seen, f"a container of the candidate was restarted at {self.percent} %")
        if failed := self._failed(now_s, seen):
            return self._return(now_s, seen, failed)
        held_s = now_s - self._since_s
        if verdict.good and held_s >= self.terms.hold_s:
            return self._shift(now_s, seen, self.step + 1)
        if held_s >= max(self.terms.step_timeout_s, self.terms.hold_s):
            return self._return(now_s, seen, f"no verdict in {held_s:.0f} s at {self.percent} %: {verdict.why}")
        return Order(Do.WAIT)

    def _promoting(self, now_s: float, seen: Seen) -> Order:
        if seen.percent == 100:
            self._enter("promoted", now_s)
            return Order(Do.END)
        if now_s - self._since_s >= self.terms.route_timeout_s:
            return self._return(
                now_s, seen, f"the route gives {seen.percent} % after {self.terms.route_timeout_s:g} s, not 100 %"
            )
        return Order(Do.SHIFT, 100)

    def _returning(self, now_s: float, seen: Seen) -> Order:
        """Never given up here: whoever drives it says when nobody can wait any longer."""
        if seen.percent == 0 or not seen.has_stable:
            self._enter("returned", now_s)
            return Order(Do.END)
        return Order(Do.SHIFT, 0)

    def _promoted(self, now_s: float, seen: Seen) -> Order:
        return Order(Do.END)

    _returned = _promoted

    def _failed(self, now_s: float, seen: Seen) -> str:
        if not seen.failing:
            self._failing_since_s = None
        elif self._failing_since_s is None:
            self._failing_since_s = now_s
        elif now_s - self._failing_since_s >= self.terms.failing_s:
            return seen.failing
        return ""
