"""The threads of a model's devices: overlap where a device takes two batches, and several devices as one."""

import asyncio
import math
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from threading import Event
from typing import Any

import numpy as np
import pytest
from torpor.predictors.errors import ModelFailed
from torpor.predictors.serving import device_thread
from torpor.predictors.serving.device_pool import DevicePool
from torpor.predictors.serving.device_thread import Result
from torpor.predictors.signature import Bound, Signature

TIMEOUT_S = 10
SIGNATURE = Signature(("x",))


def batch(number: float) -> list[Bound]:
    return [SIGNATURE.bind({"x": np.array([number])})]


class Pipelined:
    """Takes two batches; one that was begun ends when the test says so. It writes down what happens to each."""

    signature = SIGNATURE
    in_flight = 2

    def __init__(self) -> None:
        self.began: list[float] = []
        self.has_begun = {number: Event() for number in range(4)}
        self.may_end = {number: Event() for number in range(4)}
        self.clock_s = 0.0
        self.halved_s = -math.inf
        self.unloaded = Event()

    def unload(self) -> None:
        self.unloaded.set()

    def begin(self, parts: Sequence[Bound]) -> int:
        number = int(parts[0].arrays["x"][0])
        self.has_begun[number].set()
        return number

    def wait(self, begun: int) -> None:
        assert self.may_end[begun].wait(TIMEOUT_S)
        if begun == 3:
            raise RuntimeError("illegal memory access")

    def run(self, parts: Sequence[Bound], begun: int | None = None) -> list[Result]:
        if begun == 3:
            raise SystemExit("the model leaves")
        return [{"y": part.arrays["x"] * 2} for part in parts]


class Plain(Pipelined):
    in_flight = 1

    def run(self, parts: Sequence[Bound], begun: int | None = None) -> list[Result]:
        number = self.begin(parts)
        self.wait(number)
        return super().run(parts)


class Bench:
    def __init__(self, *executors: Any) -> None:
        self.pool = DevicePool("m", executors)
        self.pool.start()

    def submit(self, number: float, parts: int = 1) -> "asyncio.Future[tuple[list[Result], float]]":
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[tuple[list[Result], float]] = loop.create_future()
        self.pool.submit(batch(number) * parts, lambda results, seconds: ended.set_result((results, seconds)), loop)
        return ended


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, TIMEOUT_S))


async def happens(event: Event) -> None:
    assert await asyncio.to_thread(event.wait, TIMEOUT_S)


def test_a_pool_halves_when_any_of_its_devices_does() -> None:
    """Whoever waits for a batch does not know which of them has it."""
    early, late = Pipelined(), Pipelined()
    early.halved_s, late.halved_s = 3.0, 5.0
    assert DevicePool("m", [early, late]).halved_s == 5.0


def test_instances_are_loaded_one_after_the_other() -> None:
    """What they set for the time of their `load` is the process's, so that after one that fails none begins."""
    loaded: list[str] = []

    class Loading(Pipelined):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def load(self) -> None:
            loaded.append(self.name)
            if self.name == "second":
                raise RuntimeError("no weights")

    first, second, third = Bench(Loading("first"), Loading("second"), Loading("third")).pool.load()
    assert first.result(TIMEOUT_S) is None
    for failed in (second, third):
        with pytest.raises(RuntimeError, match="no weights"):
            failed.result(TIMEOUT_S)
    assert loaded == ["first", "second"]


def test_the_second_batch_begins_while_the_first_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its results come after the first one's; what it waited for the device is not counted as its time."""

    async def scenario() -> None:
        model = Pipelined()
        monkeypatch.setattr(device_thread.time, "perf_counter", lambda: model.clock_s)
        bench = Bench(model)
        first, second = bench.submit(0), bench.submit(1)
        await happens(model.has_begun[0])
        await happens(model.has_begun[1])
        assert not first.done()
        model.clock_s = 5.0
        model.may_end[0].set()
        results, seconds = await first
        assert (results[0]["y"].tolist(), seconds) == ([0], 5.0)  # type: ignore[index]
        assert not second.done()
        model.clock_s = 7.0
        model.may_end[1].set()
        results, seconds = await second
        assert (results[0]["y"].tolist(), seconds) == ([2], 2.0)  # type: ignore[index]
        bench.pool.stop()

    run(scenario())


def test_a_plain_device_runs_one_batch_at_a_time() -> None:
    """The CPU's second batch begins when the first has ended."""

    async def scenario() -> None:
        model = Plain()
        bench = Bench(model)
        first, second = bench.submit(0), bench.submit(1)
        await happens(model.has_begun[0])
        assert not model.has_begun[1].is_set()
        model.may_end[0].set()
        await first
        model.may_end[1].set()
        await second
        bench.pool.stop()

    run(scenario())


def test_a_batch_that_fails_on_its_way_is_answered_for() -> None:
    """Whatever `wait` raises and whatever `run` raises: each of its callers gets an error, and both threads go on."""

    async def scenario() -> None:
        model = Pipelined()
        bench = Bench(model)
        model.may_end[3].set()
        model.may_end[1].set()
        results, _ = await bench.submit(3, parts=2)
        assert [type(result) for result in results] == [ModelFailed] * 2
        results, _ = await bench.submit(1)
        assert isinstance(results[0], dict)
        bench.pool.stop()

    run(scenario())


def test_both_threads_end_when_the_device_is_stopped() -> None:
    """A model that is loaded anew again and again leaves none."""

    async def scenario() -> None:
        model = Pipelined()
        bench = Bench(model)
        model.may_end[0].set()
        await bench.submit(0)
        bench.pool.stop()
        (device,) = bench.pool._threads
        for thread in (device._thread, device._waiter):
            await asyncio.to_thread(thread.join, TIMEOUT_S)
            assert not thread.is_alive()

    run(scenario())


def test_a_batch_goes_to_the_device_that_has_fewest() -> None:
    """With two devices two batches run at once, and the third goes where one has ended."""

    async def scenario() -> None:
        models = [Plain(), Plain()]
        bench = Bench(*models)
        assert (bench.pool.devices, bench.pool.in_flight) == (2, 2)
        first, second = bench.submit(0), bench.submit(1)
        await happens(models[0].has_begun[0])
        await happens(models[1].has_begun[1])
        models[1].may_end[1].set()
        await second
        third = bench.submit(2)
        await happens(models[1].has_begun[2])
        for model in models:
            model.may_end[0].set()
            model.may_end[2].set()
        await asyncio.gather(first, third)
        bench.pool.stop()

    run(scenario())


def test_each_device_has_an_instance_of_its_own() -> None:
    """A call reaches every executor on its own thread, and so does the end: each unloads after its batches."""

    async def scenario() -> None:
        models = [Plain(), Plain()]
        bench = Bench(*models)
        calls: list[Future[int]] = bench.pool.call(id)
        assert [await asyncio.wrap_future(call) for call in calls] == [*map(id, models)]
        ended = bench.submit(0)
        await happens(models[0].has_begun[0])
        bench.pool.stop()
        await happens(models[1].unloaded)
        assert not models[0].unloaded.is_set()
        models[0].may_end[0].set()
        await happens(models[0].unloaded)
        assert ended.done() or await ended

    run(scenario())


def test_a_call_that_nobody_waits_for_any_more_does_not_end_its_thread() -> None:
    """A load whose server is told to leave: the model is unloaded after it, and what had not begun does not begin."""

    async def scenario() -> None:
        model = Plain()
        bench = Bench(model)
        began, may_end, began_too = Event(), Event(), Event()

        def load(executor: Any) -> None:
            began.set()
            may_end.wait(TIMEOUT_S)

        calls = [*bench.pool.call(load), *bench.pool.call(lambda executor: began_too.set())]
        waiting = asyncio.gather(*map(asyncio.wrap_future, calls))
        await happens(began)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        may_end.set()
        bench.pool.stop()
        await happens(model.unloaded)
        assert not began_too.is_set()

    run(scenario())
