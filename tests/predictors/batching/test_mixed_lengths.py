"""Sentences of mixed lengths from callers in a loop, on devices of all kinds, in virtual time: what sharing a batch brings."""

import math
import random
from collections.abc import Hashable
from heapq import heappop, heappush
from typing import NamedTuple

import pytest
from torpor.predictors.batching.bucket import Bucket
from torpor.predictors.batching.policy import Batch, BatchingPolicy, BatchingSettings, Item
from torpor.predictors.batching.run_times import RunTimes

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


class Run(NamedTuple):
    sentences_per_s: float
    padding: float
    """Its share of the cells that ran in the second half of the batches."""


def run(run_times: RunTimes, *, cell_s: float, callers: int, disturbed: int = 0, seed: int = 0) -> Run:
    """`callers` send a sentence each, and the next 1 ms after its answer.

    A batch takes OVERHEAD_S and `cell_s` a cell, give or take 15 %; warm-up and the first `disturbed` batches are held up
    for 0.1 to 0.5 s each.
    """
    chance = random.Random(seed)
    policy: BatchingPolicy[Item] = BatchingPolicy(BatchingSettings(32, 0.002), run_times)
    ran: list[Batch[Item]] = []
    events: list[tuple[float, int]] = [(0.001 * caller, 0) for caller in range(callers)]  # (time, batch that ends or 0)

    def seconds_of(rows: int, bucket: Bucket) -> float:
        extra_s = chance.uniform(0.1, 0.5) if disturbed and len(ran) <= disturbed else 0.0
        return (OVERHEAD_S + cell_s * rows * bucket.cells) * chance.lognormvariate(0, 0.15) + extra_s

    for rows in (1, 4):  # warm-up
        policy.run_times.observe(rows, Bucket("tokens", (16,)), seconds_of(rows, Bucket("tokens", (16,))))
    now, left, running_s = 0.0, SENTENCES, 0.0
    while events:
        now, ended = heappop(events)
        if ended:
            policy.complete(ran[-1], running_s)
            for _ in range(ran[-1].rows):
                heappush(events, (now + 0.001, 0))
        elif left:
            left -= 1
            tokens = min(128, max(4, round(chance.lognormvariate(3.0, 0.7))))
            policy.offer(Item(1, Bucket("tokens", (math.ceil(tokens / 8) * 8,))), now)
        if not policy.running_rows and (batch := policy.take(now, flush=True)) is not None:
            ran.append(batch)
            running_s = seconds_of(batch.rows, batch.bucket)
            heappush(events, (now + running_s, 1))
    late = ran[len(ran) // 2 :]
    cells = sum(piece.item.bucket.cells for batch in late for piece in batch.slices)
    return Run(SENTENCES / now, 1 - cells / sum(batch.rows * batch.bucket.cells for batch in late))


def rate(run_times: type[RunTimes], cells: int, callers: int) -> float:
    """Sentences a second where an overhead costs as much as `cells` cells."""
    return sum(run(run_times(), cell_s=OVERHEAD_S / cells, callers=callers, seed=n).sentences_per_s for n in (0, 1)) / 2


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
    paddings = [run(RunTimes(), cell_s=OVERHEAD_S / 40, callers=callers, disturbed=5, seed=n).padding for n in range(4)]
    assert max(paddings) < 0.1
