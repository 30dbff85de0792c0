"""Warm-up: what runs before a model's first request, and what it learns behind its callers (`test_batcher.py`: when)."""

import asyncio
import time
from collections.abc import Sequence
from threading import Event, Thread, current_thread

import numpy as np
import pytest
from torpor.predictors.batching.policy import BatchingSettings
from torpor.predictors.errors import InvalidInput, ModelFailed, OutOfMemory
from torpor.predictors.serving.data_plane import DataPlane
from torpor.predictors.serving.device_pool import DevicePool
from torpor.predictors.serving.device_thread import Result
from torpor.predictors.serving.warm_up import warm_up
from torpor.predictors.signature import Bound, Signature, TensorSpec

TIMEOUT_S = 10
ALLOCATION_S, OVERHEAD_S, ROW_S = 5.0, 0.010, 0.002
SIGNATURE = Signature(("x",), {"x": TensorSpec.parse("x", "float32[rows]")})


def zeros(rows: int) -> Bound:
    return SIGNATURE.bind({"x": np.zeros(rows, np.float32)})


class Model:
    """Takes 10 ms a batch and 2 ms a row on a clock of its own; its first run allocates for 5 s.

    compiles: see Executor. fails: what each run answers instead. most: rows that it has memory for.
    """

    in_flight = 1
    signature = SIGNATURE

    def __init__(self, compiles: bool = False, fails: Exception | None = None, most: int = 8) -> None:
        self.compiles, self.fails, self.most = compiles, fails, most
        self.now_s = 0.0
        self.runs: list[int] = []
        self.has_seen_all = Event()
        self.thread: Thread | None = None
        self.is_unloaded = False

    def load(self) -> None:
        self.thread = current_thread()

    def unload(self) -> None:
        self.is_unloaded = True

    def warm_up(self, rows: int) -> Bound | None:
        return zeros(rows)

    def run(self, parts: Sequence[Bound], begun: None = None) -> list[Result]:
        rows = sum(part.rows for part in parts)
        self.now_s += OVERHEAD_S + ROW_S * rows + (0 if self.runs else ALLOCATION_S)
        self.runs.append(rows)
        if len(self.runs) == 3:
            self.has_seen_all.set()
        if rows > self.most:
            return [OutOfMemory(rows) for _ in parts]
        return [self.fails or {"y": part.arrays["x"]} for part in parts]  # type: ignore[misc]


def first_runs(*models: Model, max_batch_size: int = 8) -> list[int]:
    """The rows of the lessons that are left when the first batches have run."""

    async def scenario() -> list[int]:
        devices = DevicePool("m", models)
        devices.start()
        try:
            return [lesson.rows for lesson in await warm_up(devices, max_batch_size)]
        finally:
            devices.stop()

    return asyncio.run(scenario())


def test_one_row_runs_on_each_device_before_the_first_request() -> None:
    """A start waits for that alone; the lessons are of two sizes, none larger than a batch may be."""
    first, second = Model(), Model()
    assert first_runs(first, second) == [1, 4]
    assert first.runs == second.runs == [1]
    assert first_runs(Model(), max_batch_size=2) == [1, 2]


def test_what_is_compiled_has_seen_both_sizes_before_the_first_request() -> None:
    """Compiling takes minutes, and would be a caller's time."""
    model = Model(compiles=True)
    assert first_runs(model) == [1, 4]
    assert model.runs == [1, 4]


def test_a_model_that_takes_no_zeros_is_not_warmed_up() -> None:
    """Its own refusal is no failure; a lesson would be refused too."""
    assert first_runs(Model(fails=InvalidInput("zeros"))) == []


def test_a_model_that_raises_for_no_bytes_is_not_warmed_up(caplog: pytest.LogCaptureFixture) -> None:
    """An empty text or picture is nothing that it need be able to read; the log has it."""
    model = Model(fails=ModelFailed("the model raised JSONDecodeError"))
    model.signature = Signature(("x",), {"x": TensorSpec.parse("x", "bytes[rows]")})
    assert first_runs(model) == []
    assert "not warmed up" in caplog.text
    assert "JSONDecodeError" in caplog.text
    model.fails = OutOfMemory(1)
    with pytest.raises(OutOfMemory):
        first_runs(model)


def test_a_model_without_room_for_one_row_fails_its_load() -> None:
    """It could answer nobody; a model that raises is as bad."""
    for error in (OutOfMemory(1), ModelFailed("it raised")):
        with pytest.raises(type(error)):
            first_runs(Model(fails=error))


def test_a_lesson_that_memory_is_too_small_for_keeps_nobody_from_serving() -> None:
    """It is met again, and the policy learns from it how many rows there is room for."""
    model = Model(compiles=True, most=2)
    assert first_runs(model) == [1, 4]
    assert model.runs == [1, 4]


def test_a_load_that_fails_unloads_what_it_has_loaded() -> None:
    """The threads of its devices end."""

    async def scenario(model: Model) -> None:
        with pytest.raises(ModelFailed):
            await DataPlane("0").load("m", "1", [model], BatchingSettings())

    model = Model(fails=ModelFailed("it raised"))
    asyncio.run(scenario(model))
    assert model.thread is not None
    model.thread.join(TIMEOUT_S)
    assert (model.thread.is_alive(), model.is_unloaded) == (False, True)


def test_the_first_run_allocates_and_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run times' prior comes from the lessons after it: overhead and slope as they are, without the allocation."""

    async def scenario() -> list[float]:
        model = Model()
        monkeypatch.setattr(time, "perf_counter", lambda: model.now_s)
        monkeypatch.setattr("torpor.predictors.serving.batcher._QUIET_S", 0.001)
        served = await DataPlane("0").load("m", "1", [model], BatchingSettings(max_batch_size=8))
        assert model.runs == [1]
        assert await asyncio.to_thread(model.has_seen_all.wait, TIMEOUT_S)
        await served.batcher.close()
        assert model.runs == [1, 1, 4]
        times = served.batcher.policy.run_times
        return [times.estimate_s(rows, zeros(1).bucket) for rows in (1, 8)]

    one, eight = asyncio.run(scenario())
    assert one == pytest.approx(OVERHEAD_S + ROW_S)
    assert eight == pytest.approx(OVERHEAD_S + 8 * ROW_S)
