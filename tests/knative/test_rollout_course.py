"""The course of a rollout, in virtual time, and the verdict that it goes by."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.knative.rollout.counts import Counts, Window, counted
from torpor.knative.rollout.course import Course, Do, Seen, Terms
from torpor.knative.rollout.judgement import Tolerance, judge
from torpor.knative.samples import samples

INF = float("inf")
TERMS = Terms(steps=(10, 50, 100), hold_s=30, step_timeout_s=120, ready_timeout_s=60, route_timeout_s=20, failing_s=10)
GOOD = Counts(100, 0)
BAD = Counts(10, 10)


class Route:
    """A cluster that does as it is told at once; the time is what the test says."""

    def __init__(self, course: Course, **seen: object) -> None:
        self.course = course
        self.now_s = 0.0
        self.seen = Seen(percent=0, ready=True, candidate=GOOD, stable=GOOD)
        self.change(**seen)
        self.shares: list[int] = []

    def change(self, **seen: object) -> None:
        self.seen = dataclasses.replace(self.seen, **seen)  # type: ignore[arg-type]

    def run(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            order = self.course.next(self.now_s, self.seen)
            self.change(smoke=None)
            if order.do is Do.SMOKE:
                self.change(smoke="")
            elif order.do is Do.SHIFT:
                self.shares.append(order.percent)
                self.change(percent=order.percent)
            elif order.do is Do.END:
                return
            self.now_s += 1


def test_a_good_candidate_gets_each_share_and_is_promoted() -> None:
    """Two steps of half a minute, and the few looks between them."""
    route = Route(Course(TERMS, 0.0))
    route.run(200)
    assert route.course.phase == "promoted"
    assert route.shares == [10, 50, 100]
    assert 60 <= route.now_s < 75


def test_errors_take_it_back_at_the_next_look() -> None:
    """No step is waited for: three errors of three are enough."""
    route = Route(Course(TERMS, 0.0))
    route.run(20)
    route.change(candidate=Counts(3, 3))
    began_s = route.now_s
    route.run(100)
    assert route.course.phase == "returned"
    assert route.shares == [10, 0]
    assert route.now_s - began_s <= 2
    assert "3 errors of 3" in route.course.why


def test_a_candidate_that_is_never_ready_gets_nothing() -> None:
    """It is given up when its time is over."""
    route = Route(Course(TERMS, 0.0), ready=False)
    route.run(100)
    assert (route.course.phase, route.shares) == ("returned", [])
    assert route.now_s == 60


def test_a_failure_has_to_last() -> None:
    """Conditions are false for a moment while a revision comes up."""
    route = Route(Course(TERMS, 0.0), ready=False, failing="no image")
    route.run(5)
    route.change(failing="")
    route.run(1)
    route.change(failing="no image")
    route.run(9)
    assert route.course.phase == "waiting"
    route.run(5)
    assert (route.course.phase, route.course.why) == ("returned", "no image")


def test_the_smoke_request_is_tried_a_few_times() -> None:
    """A route may need a moment for a new address; three failures are one."""
    course = Course(TERMS, 0.0)
    seen = Seen(percent=0, ready=True)
    assert course.next(0.0, seen).do is Do.SMOKE
    for now_s in (1.0, 2.0):
        assert course.next(now_s, dataclasses.replace(seen, smoke="500")).do is Do.SMOKE
    assert course.next(3.0, dataclasses.replace(seen, smoke="500")).do is Do.END
    assert course.why == "the smoke request: 500"


def test_a_restart_takes_it_back() -> None:
    """A container that died of its requests counted none of them."""
    route = Route(Course(TERMS, 0.0))
    route.run(10)
    route.change(restarts=1)
    route.run(5)
    assert route.course.phase == "returned"
    assert "restarted at 10 %" in route.course.why


def test_what_took_it_back_first_is_the_reason() -> None:
    """Not what happens to it on its way back."""
    course = Course(TERMS, 0.0)
    course.take_back(1.0, "asked for")
    course.take_back(2.0, "the API server refuses: no")
    assert course.why == "asked for"


def test_too_few_requests_are_no_verdict() -> None:
    """It waits for more, and at the end says how many there were."""
    route = Route(Course(TERMS, 0.0), candidate=Counts(19, 0))
    route.run(100)
    assert (route.course.phase, route.course.percent) == ("holding", 10)
    route.run(100)
    assert route.course.phase == "returned"
    assert "19 requests of the 20" in route.course.why


def test_a_route_that_does_not_follow_ends_the_step() -> None:
    """It says what the route gives instead."""
    course = Course(TERMS, 0.0)
    seen = Seen(percent=0, ready=True, smoke="")
    assert course.next(0.0, seen).percent == 10
    assert course.next(19.0, seen).percent == 10
    course.next(20.0, seen)
    assert course.phase == "returned"
    assert "still gives 0 %" in course.why


def test_a_rollout_that_was_cut_off_goes_on_at_its_step() -> None:
    """The share that it had reached is held anew, and none before it is given again."""
    route = Route(Course(TERMS, 0.0, percent=50), percent=50)
    route.run(100)
    assert (route.course.phase, route.shares) == ("promoted", [100])
    assert route.now_s > TERMS.hold_s


def test_the_first_revision_needs_no_comparison() -> None:
    """The route gives it everything by itself."""
    route = Route(Course(TERMS, 0.0), percent=100, has_stable=False)
    route.run(10)
    assert (route.course.phase, route.shares) == ("promoted", [])


@pytest.mark.parametrize("steps", [(), (10, 50), (50, 10, 100), (0, 100), (100, 100)])
def test_steps_rise_to_a_hundred(steps: tuple[int, ...]) -> None:
    """Anything else is refused, and shown."""
    with pytest.raises(ValueError, match="must be rising percentages"):
        Terms(steps=steps)


@given(
    st.lists(
        st.builds(
            Seen,
            percent=st.sampled_from((None, 0, 10, 50, 100)),
            ready=st.booleans(),
            failing=st.sampled_from(("", "no image")),
            smoke=st.sampled_from((None, "", "500")),
            candidate=st.sampled_from((GOOD, BAD, Counts())),
            stable=st.just(GOOD),
            restarts=st.sampled_from((0, 0, 1)),
        ),
        max_size=60,
    )
)
def test_whatever_is_seen_shares_rise_by_steps_and_nothing_follows_a_return(seen: list[Seen]) -> None:
    """Once it goes back, no share but 0 is asked for; before that they never fall, and each comes after the one below it."""
    course = Course(TERMS, 0.0)
    asked: list[int] = []
    for number, each in enumerate(seen):
        order = course.next(number * 7.0, each)
        if order.do is Do.SHIFT:
            asked.append(order.percent)
    rising = [percent for percent in asked if percent]
    assert rising == sorted(rising)
    assert list(dict.fromkeys(rising)) == [10, 50, 100][: len(set(rising))]
    if 0 in asked:
        assert not any(asked[asked.index(0) :])


def histogram(*counts: tuple[float, float]) -> dict[str, dict[float, float]]:
    return {"torpor_request_seconds": dict(counts)}


@pytest.mark.parametrize(
    ("candidate", "stable", "good"),
    [
        (Counts(20, 0), Counts(100, 0), True),
        (Counts(2, 2), Counts(100, 0), None),
        (Counts(3, 3), Counts(100, 0), False),
        (Counts(200, 100), Counts(100, 50), True),  # as bad as what it takes the place of
        (Counts(200, 10), Counts(2000, 0), False),
        (Counts(200, 2), Counts(2000, 0), True),
        (Counts(60, 2), Counts(600, 0), None),  # 3 %: too many, and it may be chance
        (Counts(100, 0, histogram((0.01, 90), (0.5, 90), (INF, 100))), Counts(1, 0, histogram((0.01, 9), (INF, 9))), False),
        (Counts(100, 0, histogram((0.01, 90), (0.5, 99), (INF, 100))), Counts(1, 0, histogram((0.5, 9), (INF, 9))), True),
    ],
)  # fmt: skip
def test_the_verdict(candidate: Counts, stable: Counts, good: bool | None) -> None:
    """By errors and slow answers, beside the stable revision's."""
    assert judge(candidate, stable, Tolerance()).good is good


@given(st.integers(0, 2000), st.integers(0, 2000))
def test_without_errors_and_slow_answers_none_is_bad(requests: int, stable: int) -> None:
    """Whatever the stable revision does."""
    assert judge(Counts(requests, 0), Counts(stable, stable // 2), Tolerance()).good is not False


def test_a_window_counts_pods_that_come_restart_and_go() -> None:
    """A pod's own count begins anew with its container; what it had counted before is kept."""
    window = Window()
    window.see({"a": Counts(100, 5), "b": Counts(50, 0)})
    window.begin()
    assert window.counts() == Counts()
    window.see({"a": Counts(110, 6), "b": Counts(50, 0), "new": Counts(3, 1)})
    assert (window.counts().requests, window.counts().errors) == (13, 2)
    window.see({"a": Counts(4, 0)})  # restarted; b and new are gone
    assert (window.counts().requests, window.counts().errors) == (17, 2)
    window.begin()
    window.see({"a": Counts(5, 0)})
    assert window.counts().requests == 1


def test_metrics_are_read_as_torpor_writes_them() -> None:
    """What renders `/metrics` is the server's own code."""
    from torpor.predictors.serving.metrics import ServerMetrics

    metrics = ServerMetrics()
    metrics.requests.update({("rest", "200"): 7, ("grpc", "OK"): 2, ("rest", "500"): 3, ("grpc", "INTERNAL"): 1})
    text = metrics.render().decode()
    assert (counted(samples(text)).requests, counted(samples(text)).errors) == (13, 4)
    bucket = 'torpor_request_seconds_bucket{model_name="m",le='
    lines = f'{bucket}"0.5"}} 4.0\n{bucket}"+Inf"}} 5.0\n'
    counts = counted(samples(f'{lines}{lines}torpor_request_seconds_sum{{model_name="m"}} 3.0\nother 1\n'))
    assert counts.histograms == {"torpor_request_seconds": {0.5: 8.0, INF: 10.0}}
    assert counts.p99_s("torpor_request_seconds") == 0.5
