"""When a component starts and stops: Knative's rules for one instance, as a function of the time."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torpor.knative.autoscaling import Autoscaling
from torpor.knative.up.scale import Action, Scale, State

ZERO = Autoscaling(window_s=6)


def awake(autoscaling: Autoscaling = ZERO, now_s: float = 0.0) -> Scale:
    scale = Scale(autoscaling)
    assert scale.step(now_s) is Action.START
    scale.ready(now_s)
    return scale


def test_it_starts_once_before_it_may_sleep() -> None:
    """A revision must have been ready once, though nobody asks."""
    scale = Scale(ZERO)
    assert scale.step(0.0) is Action.START
    assert scale.step(1000.0) is None
    scale.ready(1000.0)
    assert scale.step(1005.9) is None
    assert scale.step(1006.0) is Action.STOP


def test_an_initial_scale_of_0_waits_for_the_first_request() -> None:
    """What a cluster allows with allow-zero-initial-scale."""
    scale = Scale(Autoscaling(initial_scale=0))
    assert scale.step(0.0) is None
    scale.began()
    assert scale.step(1.0) is Action.START


def test_it_sleeps_a_window_a_delay_and_a_retention_after_the_last_request() -> None:
    """The three add up, and count from the last answer, not from the last start."""
    scale = awake(Autoscaling(window_s=6, scale_down_delay_s=10, retention_s=100))
    scale.began()
    assert scale.wake_at(500.0) is None
    assert scale.step(500.0) is None
    scale.ended(500.0)
    assert scale.wake_at(500.0) == 616.0
    assert scale.step(615.9) is None
    assert scale.step(616.0) is Action.STOP
    scale.exited(617.0)
    assert scale.state is State.ASLEEP


def test_min_scale_keeps_it_awake() -> None:
    """Which KServe writes unless minReplicas is 0."""
    scale = awake(Autoscaling(min_scale=1))
    assert scale.step(1e9) is None
    assert scale.wake_at(1e9) is None


def test_a_request_while_it_stops_starts_it_again() -> None:
    """After the old process has ended: there is one instance."""
    scale = awake()
    assert scale.step(6.0) is Action.STOP
    scale.began()
    assert scale.step(6.1) is None
    scale.exited(7.0)
    assert scale.step(7.0) is Action.START


def test_a_crash_loop_backs_off() -> None:
    """Twice as long each time, 30 s at most; a long healthy run forgets it."""
    scale = Scale(ZERO)
    now_s, gaps = 0.0, []
    for _ in range(9):
        assert scale.step(now_s) is Action.START
        scale.exited(now_s)
        assert scale.step(now_s) is None
        again_s = scale.wake_at(now_s)
        assert again_s is not None
        gaps.append(again_s - now_s)
        now_s = again_s
    assert gaps == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert scale.step(now_s) is Action.START
    scale.ready(now_s)
    scale.began()
    scale.exited(now_s + 60)
    assert scale.wake_at(now_s + 60) == now_s + 60.5


def test_what_crashes_while_nobody_asks_falls_asleep() -> None:
    """Once it has been ready: before, a revision never sleeps."""
    scale = awake()
    scale.exited(100.0)
    assert scale.step(100.0) is None
    assert scale.state is State.ASLEEP


def test_closing_finishes_a_wake_that_somebody_waits_for() -> None:
    """Ctrl-C in the middle of a wake loses nobody."""
    scale = Scale(Autoscaling(initial_scale=0))
    scale.began()
    assert scale.step(0.0) is Action.START
    scale.close()
    assert scale.step(1.0) is None
    scale.ready(2.0)
    assert scale.step(2.0) is None
    scale.ended(3.0)
    assert scale.step(3.0) is Action.STOP


def test_closing_stops_a_start_that_nobody_waits_for() -> None:
    """And what is asleep stays so."""
    scale = Scale(ZERO)
    assert scale.step(0.0) is Action.START
    scale.close()
    assert scale.step(1.0) is Action.STOP
    scale.exited(2.0)
    assert scale.step(2.0) is None


class Life(RuleBasedStateMachine):
    """Whatever happens in whatever order: one instance, and nobody waits without a start to come."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Scale(Autoscaling(window_s=6, initial_scale=0))
        self.now_s = 0.0
        self.runs = False

    @rule(seconds=st.floats(0, 40))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.step()

    @rule()
    def request(self) -> None:
        self.scale.began()
        self.step()

    @precondition(lambda self: self.scale.requests)
    @rule()
    def answer(self) -> None:
        self.scale.ended(self.now_s)
        self.step()

    @precondition(lambda self: self.runs)
    @rule()
    def becomes_ready(self) -> None:
        self.scale.ready(self.now_s)
        self.step()

    @precondition(lambda self: self.runs)
    @rule()
    def exits(self) -> None:
        self.runs = False
        self.scale.exited(self.now_s)
        self.step()

    def step(self) -> None:
        action = self.scale.step(self.now_s)
        if action is Action.START:
            assert not self.runs
            self.runs = True
        elif action is Action.STOP:
            assert self.runs
            assert not self.scale.requests

    @invariant()
    def state_is_true(self) -> None:
        assert self.runs is (self.scale.state in (State.STARTING, State.AWAKE, State.STOPPING))
        if self.scale.requests and not self.runs:
            again_s = self.scale.wake_at(self.now_s)
            assert again_s is not None
            assert again_s <= self.now_s + 30


TestLife = Life.TestCase
