"""How many rows there is memory for, learned from the batches that there was none for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.predictors.batching import ceilings
from torpor.predictors.batching.bucket import Bucket
from torpor.predictors.batching.ceilings import Ceilings

MOST = 32


def tokens(count: int) -> Bucket:
    return Bucket("tokens", (count,))


def test_without_a_shortage_there_is_no_ceiling() -> None:
    """Every batch may be full, and nothing is shown."""
    assert Ceilings().rows(tokens(8), MOST) == MOST
    assert Ceilings().lowest() is None


def test_a_shortage_halves_the_rows_of_its_size_and_of_larger_ones() -> None:
    """Smaller rows, and other families, are as before; the larger of two ceilings counts where it is reached."""
    found = Ceilings()
    found.ran_out(tokens(64), 9)
    found.ran_out(tokens(16), 32)
    assert [found.rows(tokens(n), MOST) for n in (8, 16, 56, 64, 128)] == [32, 16, 16, 4, 4]
    assert found.rows(Bucket("other", (64,)), MOST) == MOST
    assert found.lowest() == 4


def test_a_shortage_of_larger_rows_leaves_smaller_ones_their_ceiling() -> None:
    """In whatever order they were learned."""
    found = Ceilings()
    found.ran_out(tokens(16), 32)
    found.ran_out(tokens(64), 9)
    assert [found.rows(tokens(n), MOST) for n in (8, 16, 56, 64)] == [32, 16, 16, 4]


@pytest.mark.parametrize("sizes", [(8, 8), (8, 64), (64, 8)])
def test_a_ceiling_is_kept_once(sizes: tuple[int, int]) -> None:
    """As high for larger rows, or as low for smaller ones, it says nothing more: both would have to be tried again."""
    found = Ceilings()
    for size in sizes:
        found.ran_out(tokens(size), 8)
    (steps,) = found.steps.values()
    assert [(step.cells, step.rows) for step in steps] == [(8, 4)]


def test_a_ceiling_is_tried_again_after_many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubled until it is none; a shortage there halves it to where it was."""
    monkeypatch.setattr(ceilings, "_TRIAL_BATCHES", 3)
    found = Ceilings()
    found.ran_out(tokens(8), 16)
    seen = []
    for _ in range(6):
        found.ran(tokens(64), MOST)
        seen.append(found.rows(tokens(8), MOST))
    assert seen == [8, 8, 16, 16, 16, 32]
    assert not found.steps
    found.ran_out(tokens(8), 16)
    for _ in range(3):
        found.ran(tokens(8), MOST)
    found.ran_out(tokens(8), 16)
    assert found.rows(tokens(8), MOST) == 8


def test_batches_of_smaller_rows_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that the ceiling holds for count."""
    monkeypatch.setattr(ceilings, "_TRIAL_BATCHES", 3)
    found = Ceilings()
    found.ran_out(tokens(64), 16)
    for _ in range(9):
        found.ran(tokens(8), MOST)
    assert found.rows(tokens(64), MOST) == 8


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5), st.integers(2, MOST)), max_size=200))
def test_larger_rows_never_get_more(steps: list[tuple[bool, int, int]]) -> None:
    """Whatever ran and ran out in whatever order; and what ran out gets fewer rows than it had."""
    found = Ceilings()
    trial, ceilings._TRIAL_BATCHES = ceilings._TRIAL_BATCHES, 3
    try:
        for did_run, size, rows in steps:
            if did_run:
                found.ran(tokens(size), MOST)
            else:
                found.ran_out(tokens(size), rows)
                assert 1 <= found.rows(tokens(size), MOST) <= rows // 2
            allowed = [found.rows(tokens(n), MOST) for n in range(1, 7)]
            assert allowed == sorted(allowed, reverse=True)
            assert bool(found.steps) == (allowed[-1] < MOST)
    finally:
        ceilings._TRIAL_BATCHES = trial
