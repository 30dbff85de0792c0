"""Sentences of mixed lengths from callers in a loop, on devices of all kinds, in virtual time: what sharing a batch brings."""

import random
from collections.abc import Hashable

import pytest
from torpor.predictors.batching.load import Call, ClosedLoop, Lengths
from torpor.predictors.batching.policy import BatchingSettings
from torpor.predictors.batching.run_times import RunTimes
from torpor.predictors.batching.simulation import LinearDevice, Report, simulate

SENTENCES = 800
OVERHEAD_S = 0.005


class Never(RunTimes):
    """No padding is worth an overhead of nothing: each length has its own batches."""

    def coefficients(self, family: Hashable) -> tuple[float, float]:
        return 0.0, 1.0


class Always(RunTimes):
    """Padding that costs nothing is always worth it."""

    def coefficients(self, family: Hashable) -> tuple[float, float]:
        return 1.0, 0.0


class DisturbedDevice(LinearDevice):
    """Its first batches are held up for 0.1 to 0.5 s each: warm-up's two, and as many more as `disturbed` says."""

    def __init__(self, cell_s: float, disturbed: int = 0, seed: int = 0) -> None:
        super().__init__(OVERHEAD_S, cell_s, noise=0.15, seed=seed)
        self._disturbed = disturbed and disturbed + 2
        self._delays = random.Random(seed)

    def __call__(self, rows: int, cells: int) -> float:
        seconds = super().__call__(rows, cells)
        if self._disturbed:
            self._disturbed -= 1
            seconds += self._delays.uniform(0.1, 0.5)
        return seconds


def run(run_times: RunTimes, *, cell_s: float, callers: int, disturbed: int = 0, seed: int = 0) -> Report:
    """`callers` send a sentence each, and the next 1 ms after its answer; a batch's time varies by 15 %."""
    lengths = Lengths(20, 4, 128, sigma=0.7)
    load = ClosedLoop(callers, SENTENCES, lambda chance: Call(1, lengths.draw(chance)), seed)
    return simulate(load, DisturbedDevice(cell_s, disturbed, seed), BatchingSettings(32, 0.002), run_times)


def rate(run_times: type[RunTimes], cells: int, callers: int) -> float:
    """Sentences a second where an overhead costs as much as `cells` cells."""
    runs = [run(run_times(), cell_s=OVERHEAD_S / cells, callers=callers, seed=seed) for seed in (0, 1)]
    return sum(run.summary()["rows_per_s"] for run in runs) / len(runs)


@pytest.mark.parametrize("callers", [4, 16, 64])
@pytest.mark.parametrize("cells", [20, 50, 2000, 20000])
def test_sharing_is_right_on_every_device(cells: int, callers: int) -> None:
    """Whether an overhead is worth few cells (a CPU) or many (a GPU): what was learned does as well as the better extreme."""
    assert rate(RunTimes, cells, callers) > 0.97 * max(rate(Never, cells, callers), rate(Always, cells, callers))


@pytest.mark.parametrize(("cells", "gain"), [(400, 1.2), (2000, 1.06)])
def test_some_sharing_is_better_than_all_or_none(cells: int, gain: float) -> None:
    """Rows that would pay too much for company wait for their own kind, and the device does more."""
    assert rate(RunTimes, cells, 64) > gain * max(rate(Never, cells, 64), rate(Always, cells, 64))


@pytest.mark.parametrize("callers", [16, 32, 64])
def test_a_disturbed_start_is_forgotten(callers: int) -> None:
    """Small batches that were held up look like overhead; those that follow are too large to deny it, but not so slow."""
    for seed in range(4):
        batches = run(RunTimes(), cell_s=OVERHEAD_S / 40, callers=callers, disturbed=5, seed=seed).batches
        late = batches[len(batches) // 2 :]
        assert sum(batch.cells for batch in late) > 0.85 * sum(batch.padded_cells for batch in late)
