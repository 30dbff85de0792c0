"""Knative's autoscaler: the scenarios of its own tests, the reconciler's way to zero, and what holds whatever comes.

Scenarios are worked out from knative/serving, pkg/autoscaler/scaling/autoscaler_test.go, pkg/autoscaler/aggregation/
bucketing_test.go and pkg/reconciler/autoscaling/kpa/scaler_test.go; each names its own.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.knative.autoscaling import Autoscaling
from torpor.knative.kpa import Activity, Decider, Kpa, Window


def scaling(target: float = 10, burst: float = 100, **settings: Any) -> Autoscaling:
    """Those tests' own: pods are aimed at `target`, up and down by ten at a time, in a window of a minute."""
    given = {"max_scale_up_rate": 10.0, "max_scale_down_rate": 10.0, **settings}
    return Autoscaling(target=target, target_utilization_percentage=100, target_burst_capacity=burst, **given)


def decider(target: float = 10, burst: float = 100, **settings: Any) -> Decider:
    return Decider(scaling(target, burst, **settings), 0.0)


def test_a_window_is_averaged_over_the_seconds_since_the_first_record() -> None:
    """TestTimedFloat64BucketsSimple, -ManyReps: a partial window is no window of zeros, two values of a second add up."""
    window = Window(60)
    window.record(0.0, 10)
    assert window.average(0.9) == 10
    window.record(1.2, 10)
    window.record(1.7, 5)
    assert window.average(1.9) == 12.5
    window.record(5.0, 0)
    assert window.average(5.0) == pytest.approx(25 / 6, abs=1e-6)


def test_a_window_forgets_what_is_older() -> None:
    """TestTimedFloat64BucketsWindowUpdate: the average of the last five seconds, with what is missing taken as nothing."""
    window = Window(5)
    for second in range(5):
        window.record(second, second + 1)
    assert window.average(4) == 3
    window.record(5, 6)
    assert window.average(5) == 4
    window.record(7, 6)  # 4, 5, 6, 0, 6
    assert window.average(7) == pytest.approx(21 / 5)


def test_a_window_without_late_records_is_averaged_over_what_it_has() -> None:
    """TestTimedFloat64BucketsHoles: 3 seconds after the last record the other 2 of 5 count; after 5 there is nothing."""
    window = Window(5)
    for second in range(5):
        window.record(second, second + 1)
    assert window.average(7) == 4.5
    assert window.average(9) == 0
    assert not window.is_empty(9)
    assert window.is_empty(10)


@given(st.integers(1, 20), st.lists(st.tuples(st.floats(0, 12), st.floats(0, 100)), max_size=60))
def test_a_window_is_the_mean_of_its_seconds(size: int, steps: list[tuple[float, float]]) -> None:
    """Against the definition: sums by second, from the first record after an empty window on."""
    window, now, sums, first = Window(size), 0.0, dict[int, float](), 0
    for step, value in steps:
        now += step
        second = math.floor(now)
        if not sums or second - max(sums) >= size:
            sums, first = {}, second
        sums[second] = sums.get(second, 0.0) + value
        window.record(now, value)
        kept = range(max(first, second - size + 1), second + 1)
        assert window.average(now) == pytest.approx(sum(sums.get(n, 0.0) for n in kept) / len(kept), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "ready", "stable", "panic", "pods", "excess"),
    [
        ("NoDataAtZeroNoAutoscale", {}, 1, 0, 0, 0, 10 - 100),
        ("StableModeUnlimitedTBC", {"target": 181, "burst": -1}, 1, 21, 26, 1, -1),
        ("0TBC", {"burst": 0}, 1, 50, 49, 5, 0),
        ("StableModeNoChange", {}, 1, 50, 50, 5, 10 - 100 - 50),
        ("StableModeNoChangeAlreadyScaled", {}, 5, 50, 50, 5, 50 - 100 - 50),
        ("IncreaseWithSmallScaleUpRate", {"target": 1, "max_scale_up_rate": 1.1}, 2, 3, 3.1, 3, 2 - 100 - 4),
        ("DecreaseWithSmallScaleDownRate", {"max_scale_down_rate": 1.1}, 100, 1, 1, 90, 1000 - 100 - 1),
        ("PanicModeDoublePodCount", {"burst": 84}, 1, 50, 100, 10, 10 - 84 - 100),
        ("RateLimitScaleUp", {}, 1, 1000, 1001, 10, 10 - 100 - 1001),
        ("RateLimitScaleDown", {}, 100, 1, 1, 10, 1000 - 100 - 1),
        ("UseOnePodAsMinimumIfEndpointsNotFound", {}, 0, 1000, 888, 10, -100 - 888),
        ("StableModeIncreaseWithConcurrencyDefault", {"burst": 101}, 1, 50, 10, 5, 10 - 101 - 10),
        ("ActivationScale", {"activation_scale": 2}, 1, 1, 0, 2, 10 - 100),
    ],
)
def test_one_decision(
    name: str, settings: dict[str, Any], ready: int, stable: float, panic: float, pods: int, excess: float
) -> None:
    """TestAutoscalerScale and the tests of one decision around it, by their names there."""
    assert decider(**settings).decide(0.0, ready, stable, panic) == (pods, excess)


def test_panic_ends_a_window_after_the_last_surge() -> None:
    """TestAutoscalerUnpanicAfterSlowIncrease: from 10 to 25 at once, then slowly on; after the window the stable one counts."""
    found = decider(1)
    assert found.decide(0.0, 10, 11, 25).pods == 25
    assert found.decide(30.0, 40, 30, 41).pods == 41
    assert found.panic_since_s == 0.0
    assert found.decide(62.0, 55, 50, 56).pods == 50
    assert found.panic_since_s is None


def test_a_new_surge_extends_panic() -> None:
    """TestAutoscalerExtendPanicWindow."""
    found = decider(1)
    assert found.decide(0.0, 10, 11, 25).pods == 25
    assert found.decide(30.0, 40, 30, 80).pods == 80
    assert found.panic_since_s == 30.0


def test_in_panic_nothing_goes_down() -> None:
    """TestAutoscalerPanicThenUnPanicScaleDown: traffic drops off, and a window later the pods do."""
    found = decider()
    assert found.decide(0.0, 1, 100, 100).pods == 10
    assert found.decide(1.0, 10, 100, 1000).pods == 100
    assert found.decide(31.0, 10, 1, 1).pods == 100
    assert found.decide(62.0, 10, 1, 1).pods == 1


def test_scaling_down_waits_for_the_delay() -> None:
    """TestAutoscalerScaleDownDelay, simple and gradual: the most of the last five minutes counts."""
    found = decider(panic_threshold_percentage=1000, max_scale_up_rate=100.0, scale_down_delay_s=300)
    assert found.decide(2.0, 1, 40, 40).pods == 4
    assert found.decide(300.0, 1, 0, 0).pods == 4
    assert found.decide(302.0, 1, 0, 0).pods == 0
    assert found.decide(540.0, 1, 40, 40).pods == 4
    assert found.decide(600.0, 1, 30, 30).pods == 4
    assert found.decide(660.0, 1, 0, 0).pods == 4
    assert found.decide(840.0, 1, 0, 0).pods == 3
    assert found.decide(900.0, 1, 0, 0).pods == 0


def run(kpa: Kpa, begin: int, end: int, ready: int, concurrency: float, requests: float = 0.0) -> list[int]:
    """Reports each second and ticks each two; the pods wanted after each second."""
    wanted = []
    for second in range(begin, end):
        kpa.observe(second, ready, concurrency, requests)
        if second % 2 == 0:
            kpa.tick(second, ready)
        wanted.append(kpa.scale(second, ready).pods)
    return wanted


def test_at_zero_the_first_request_starts_a_pod_at_once() -> None:
    """MultiScaler.Poke: no tick is waited for."""
    kpa = Kpa.at_rest(Autoscaling(), 0)
    assert kpa.scale(100.0, 0) == (0, True, math.inf)
    kpa.observe(100.3, 0, 1.0, 1.0)
    assert kpa.scale(100.3, 0).pods == 1
    assert kpa.activity is Activity.ACTIVATING


def test_quiet_for_a_window_is_zero() -> None:
    """With window 6s a cluster took 5.7 to 8.0 s; the activator has had the requests all along."""
    kpa = Kpa.at_rest(Autoscaling(window_s=6, container_concurrency=10), 0)
    kpa.observe(0.0, 0, 1.0, 1.0)
    kpa.scale(0.0, 0)
    run(kpa, 1, 60, 1, 5.0)
    wanted = run(kpa, 60, 75, 1, 0.0)
    assert 6 <= wanted.index(0) <= 8


def test_the_last_pod_stays_for_its_retention() -> None:
    """Beyond the window; a cluster took 17 s with window 6s and 10s of it."""
    kpa = Kpa.at_rest(Autoscaling(window_s=6, retention_s=10, container_concurrency=10), 0)
    kpa.observe(0.0, 0, 1.0, 1.0)
    kpa.scale(0.0, 0)
    run(kpa, 1, 60, 1, 5.0)
    wanted = run(kpa, 60, 90, 1, 0.0)
    assert 16 <= wanted.index(0) <= 18


def test_behind_no_activator_zero_waits_for_the_grace_period() -> None:
    """TestScaler, "waits to scale to zero after idle period" and its like: proxied for 30 s before the last pod goes."""
    kpa = Kpa.at_rest(Autoscaling(window_s=6, target_burst_capacity=0), 0)
    kpa.observe(0.0, 0, 1.0, 1.0)
    kpa.scale(0.0, 0)
    run(kpa, 1, 60, 1, 5.0)
    assert kpa.scale(60.0, 1).proxied is False
    wanted = run(kpa, 60, 110, 1, 0.0)
    assert 36 <= wanted.index(0) <= 38


def test_a_pod_younger_than_the_window_stays() -> None:
    """TestScaler, "does not scale to zero while active for less than the window": one is kept for the rest of it."""
    kpa = Kpa.at_rest(Autoscaling(window_s=60), 0)
    kpa.observe(0.5, 0, 1.0, 1.0)
    kpa.scale(0.5, 0)
    kpa.scale(3.0, 1)
    kpa.desired = 0
    found = kpa.scale(40.0, 1)
    assert (found.pods, found.again_s) == (1, 63.0)


def test_a_pod_that_is_not_ready_yet_is_not_let_go() -> None:
    """TestScaler, "does not scale while activating": nobody asks any more, and the start goes on."""
    kpa = Kpa.at_rest(Autoscaling(window_s=6), 0)
    kpa.observe(0.0, 0, 1.0, 1.0)
    kpa.scale(0.0, 0)
    assert {*run(kpa, 1, 100, 0, 0.0)} == {1}


def test_a_new_revision_begins_with_its_initial_scale() -> None:
    """Until that many are ready it has no fewer; then the metric decides."""
    kpa = Kpa(Autoscaling(initial_scale=3, window_s=6))
    assert kpa.scale(0.0, 0).pods == 3
    assert {*run(kpa, 0, 10, 2, 0.0)} == {3}
    assert run(kpa, 10, 60, 3, 0.0)[-1] == 1  # at most halved at once
    assert run(kpa, 60, 100, 1, 0.0).index(0) == 30  # three had room for a burst: the activator was away


def test_bounds_hold_whatever_is_desired() -> None:
    """TestScaler, "scales up to maxScale" and "scales down to minScale"."""
    kpa = Kpa.at_rest(Autoscaling(min_scale=2, max_scale=5, window_s=6), 2)
    assert {*run(kpa, 0, 30, 2, 0.0)} == {2}
    assert run(kpa, 30, 40, 5, 10_000.0)[-1] == 5


def test_the_activator_leaves_when_there_is_capacity_for_a_burst() -> None:
    """Excess burst capacity: 100 a pod, 211 of a burst, 10 in flight: three pods."""
    kpa = Kpa.at_rest(replace(Autoscaling(), min_scale=2), 2)
    run(kpa, 0, 10, 2, 10.0)
    assert kpa.scale(10.0, 2).proxied
    run(kpa, 10, 20, 3, 10.0)
    assert not kpa.scale(20.0, 3).proxied


def test_requests_a_second_are_a_metric_too() -> None:
    """150/s of target: 400/s are three pods."""
    kpa = Kpa.at_rest(Autoscaling(metric="rps", target=150, target_utilization_percentage=100), 1)
    assert run(kpa, 0, 70, 1, 1.0, 400.0)[-1] == 3


settings = st.builds(
    Autoscaling,
    container_concurrency=st.sampled_from([0, 1, 10, 100]),
    min_scale=st.integers(0, 3),
    max_scale=st.sampled_from([0, 3, 8]),
    initial_scale=st.integers(1, 3),
    activation_scale=st.integers(1, 3),
    scale_down_delay_s=st.sampled_from([0.0, 10.0]),
    window_s=st.sampled_from([6.0, 20.0]),
    retention_s=st.sampled_from([0.0, 15.0]),
    target_burst_capacity=st.sampled_from([-1.0, 0.0, 50.0]),
)


@given(settings, st.lists(st.tuples(st.integers(1, 15), st.sampled_from([0.0, 0.3, 3.0, 60.0, 2000.0])), max_size=12))
def test_what_holds_whatever_comes(scaling: Autoscaling, load: list[tuple[int, float]]) -> None:
    """Bounds; zero only after quiet; at zero the activator has the requests; panic never shrinks; quiet ends at the bottom."""
    kpa, ready, second, quiet_s, before = Kpa.at_rest(scaling, scaling.min_scale), scaling.min_scale, 0, 99, 0
    for length, concurrency in [*load, (150, 0.0)]:
        for _ in range(length):
            panicked, pods_before = kpa._decider.panic_since_s is not None, kpa.pods
            kpa.observe(second, ready, concurrency, concurrency)
            if second % 2 == 0:
                kpa.tick(second, ready)
            found = kpa.scale(second, ready)
            quiet_s = 0 if concurrency else quiet_s + 1
            assert found.pods >= scaling.min_scale
            assert found.pods <= (scaling.max_scale or math.inf)
            assert found.again_s > second
            if found.pods == 0:
                assert quiet_s >= min(scaling.window_s, 99) - 1 or before == 0
                assert found.proxied or ready
            if panicked and kpa._decider.panic_since_s is not None and pods_before:
                assert found.pods >= pods_before
            before, ready, second = found.pods, found.pods, second + 1
    assert kpa.pods == scaling.min_scale
