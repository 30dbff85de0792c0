"""What a batch will cost, learned from those that ran."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.predictors.batching import run_times
from torpor.predictors.batching.bucket import Bucket
from torpor.predictors.batching.run_times import RunTimes


def test_overhead_and_slope_are_found() -> None:
    """From batches that cost 3 ms and 0.1 ms a cell, a batch never seen is predicted."""
    times = RunTimes()
    for rows in (1, 3, 8):
        for length in (8, 24):
            times.observe(rows, Bucket("t", (length,)), 0.003 + 0.0001 * rows * length)
    assert times.coefficients("t") == pytest.approx((0.003, 0.0001))
    assert times.estimate_s(16, Bucket("t", (64,))) == pytest.approx(0.003 + 0.0001 * 16 * 64)


def test_a_batch_that_was_seen_is_predicted_from_itself() -> None:
    """The mean of its own runs counts more than the line, and follows a change."""
    times = RunTimes()
    bucket = Bucket("t", (8,))
    times.observe(4, bucket, 0.010)
    assert times.estimate_s(4, bucket) == pytest.approx(0.010)
    for _ in range(40):
        times.observe(4, bucket, 0.020)
    assert times.estimate_s(4, bucket) == pytest.approx(0.020, rel=0.01)


def test_nothing_known_is_no_time() -> None:
    """Before anything ran the estimate is 0: no request is sent early for a guess."""
    assert RunTimes().estimate_s(1, Bucket("t")) == 0.0


def test_one_size_seen_is_all_overhead() -> None:
    """One size says nothing of the slope: padding is not judged dear before it was measured."""
    times = RunTimes()
    times.observe(2, Bucket("t", (8,)), 0.004)
    assert times.coefficients("t") == (0.004, 0.0)


def test_a_batch_in_less_than_half_of_its_time_shows_that_the_rest_was_held_up() -> None:
    """Five small batches of 2 s were no overhead, as nine batches say that are larger and faster."""
    times = RunTimes()
    for rows in (1, 2, 3, 4, 5):
        times.observe(rows, Bucket("t", (8,)), 2.0)
    for rows in (16, 24, 32) * 3:
        times.observe(rows, Bucket("t", (16,)), 0.010 + 0.0002 * rows * 16)
    overhead_s, _ = times.coefficients("t")
    assert overhead_s < 0.1


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 512), st.floats(0, 100)), min_size=1, max_size=60))
def test_overhead_and_slope_are_times(batches: list[tuple[int, int, float]]) -> None:
    """Whatever batches took, 0 s by a coarse clock included: neither is negative, infinite or no number."""
    times = RunTimes()
    for rows, length, seconds in batches:
        times.observe(rows, Bucket("t", (length,)), seconds)
        assert all(0 <= value < math.inf for value in times.coefficients("t"))


def test_shapes_from_callers_do_not_grow_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest entries make room for new ones."""
    monkeypatch.setattr(run_times, "MAX_ENTRIES", 3)
    times = RunTimes()
    for family in range(10):
        times.observe(1, Bucket(family), 0.001)
    assert [n for n in range(10) if times.estimate_s(1, Bucket(n))] == [7, 8, 9]
    assert len(times._means) == len(times._lines) == 3
