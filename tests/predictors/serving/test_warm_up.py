"""Warm-up: what a model learns of its own run times before its first request."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from torpor.predictors.batching.policy import BatchingSettings
from torpor.predictors.serving import data_plane
from torpor.predictors.serving.data_plane import DataPlane
from torpor.predictors.serving.device_thread import Result
from torpor.predictors.signature import Bound, Signature, TensorSpec

ALLOCATION_S, OVERHEAD_S, ROW_S = 5.0, 0.010, 0.002


class Model:
    """Takes 10 ms a batch and 2 ms a row on a clock of its own; its first run allocates for 5 s."""

    in_flight = 1
    signature = Signature(("x",), {"x": TensorSpec.parse("x", "float32[rows]")})

    def __init__(self) -> None:
        self.now_s = 0.0
        self.runs: list[int] = []

    def load(self) -> None:
        pass

    def warm_up(self, rows: int) -> Bound | None:
        return self.signature.bind({"x": np.zeros(rows, np.float32)})

    def run(self, parts: Sequence[Bound], begun: None = None) -> list[Result]:
        rows = sum(part.rows for part in parts)
        self.now_s += OVERHEAD_S + ROW_S * rows + (0 if self.runs else ALLOCATION_S)
        self.runs.append(rows)
        return [{"y": part.arrays["x"]} for part in parts]


def test_the_first_run_allocates_and_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run times' prior comes from the runs after it: overhead and slope as they are, without the allocation."""

    async def scenario() -> tuple[float, float]:
        model = Model()
        monkeypatch.setattr(data_plane.time, "perf_counter", lambda: model.now_s)
        served = await DataPlane("0").load("m", "1", [model], BatchingSettings(max_batch_size=8))
        assert model.runs == [1, 1, 4]
        bound = model.signature.bind({"x": np.zeros(1, np.float32)})
        return tuple(served.batcher.policy.run_times.estimate_s(n, bound.bucket) for n in (1, 8))  # type: ignore[return-value]

    one, eight = asyncio.run(scenario())
    assert one == pytest.approx(OVERHEAD_S + ROW_S)
    assert eight == pytest.approx(OVERHEAD_S + 8 * ROW_S)
