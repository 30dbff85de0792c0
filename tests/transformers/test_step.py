"""A plain step: a thread that takes what came while it was busy, and what happens to those who wait for it."""

import asyncio
import threading
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import pytest
from torpor.predictors.batching.policy import BatchingSettings
from torpor.predictors.errors import DeadlineExceeded, ModelFailed, QueueFull, TorporError, Unavailable
from torpor.transformers.rows import Rows
from torpor.transformers.step import LoopStep, Method, Step, ThreadStep, Transformer

SETTINGS = BatchingSettings(max_batch_size=4, batch_timeout_s=0, max_queue_rows=6)


class Gated:
    """Waits at a gate before each call, and tells which rows it got. Row 666 is poison, row 999 ends the process."""

    def __init__(self) -> None:
        self.calls: list[list[float]] = []
        self.arrived, self.gate = threading.Event(), threading.Semaphore(0)
        self.is_loaded = False

    def load(self) -> None:
        self.is_loaded = True

    def unload(self) -> None:
        self.is_loaded = False

    def preprocess(self, x: Annotated[np.ndarray, "float32[rows, -1]"]) -> dict[str, Any]:
        self.calls.append(x[:, 0].tolist())
        self.arrived.set()
        self.gate.acquire()
        if (x == 666).any():
            raise RuntimeError("poison")
        if (x == 999).any():
            raise SystemExit
        return {"x": x + 1}


class Opened:
    """A step over one instance of `Gated`, and the answers so far."""

    def __init__(self, instance: Gated) -> None:
        self.instance = instance
        transformer = Transformer(lambda: instance, None, {})  # type: ignore[arg-type]
        method = Method.of(transformer, Gated, "preprocess")
        assert method is not None
        self.step = ThreadStep(method, SETTINGS, "gated", "1")
        self.answers: dict[float, Rows | TorporError] = {}
        self.news = asyncio.Event()

    def start(self, *values: float, width: int = 1, timeout_s: float | None = None) -> Any:
        rows = np.repeat(np.array(values, np.float32)[:, None], width, axis=1)
        bound = self.step.method.bind({"x": rows})

        def answer(result: Rows | TorporError) -> None:
            self.answers[values[0]] = result
            self.news.set()

        return self.step.start(bound, timeout_s, answer)

    async def until(self, first: float) -> None:
        """Until the request that begins with this value has its answer."""
        while first not in self.answers:
            self.news.clear()
            await self.news.wait()

    async def busy(self) -> None:
        """Let the first call begin."""
        self.start(0.0)
        await asyncio.to_thread(self.instance.arrived.wait, 20)

    def open_gate(self, calls: int = 100) -> None:
        self.instance.gate.release(calls)

    def values(self) -> dict[float, list[float]]:
        return {first: rows["x"][:, 0].tolist() for first, rows in self.answers.items()}  # type: ignore[index]


def run(story: Callable[[Opened], Any]) -> Opened:
    """Tell a story of an opened step, and close it."""

    async def tell() -> Opened:
        opened = Opened(Gated())
        await opened.step.open()
        try:
            await story(opened)
        finally:
            opened.open_gate()
            await opened.step.close()
        return opened

    return asyncio.run(tell())


def test_what_came_meanwhile_is_one_call() -> None:
    """As many rows as a call may have; those of another shape by themselves; each gets its own back."""

    async def story(opened: Opened) -> None:
        await opened.busy()
        opened.start(1.0, 2.0)
        opened.start(3.0)
        opened.start(4.0, width=2)
        opened.start(5.0)

    opened = run(story)
    assert opened.instance.calls == [[0.0], [1.0, 2.0, 3.0], [4.0], [5.0]]
    assert opened.values() == {0.0: [1.0], 1.0: [2.0, 3.0], 3.0: [4.0], 4.0: [5.0], 5.0: [6.0]}


def test_closing_answers_what_was_taken_and_unloads() -> None:
    """What waits runs; what comes then is refused in a way that clients retry."""

    async def story(opened: Opened) -> None:
        await opened.busy()
        opened.start(1.0)
        closing = asyncio.create_task(opened.step.close())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="unloaded or replaced"):
            opened.start(2.0)
        opened.open_gate()
        await closing

    opened = run(story)
    assert opened.values() == {0.0: [1.0], 1.0: [2.0]}
    assert not opened.instance.is_loaded


def test_rows_that_do_not_fit_are_refused_at_once() -> None:
    """Those that run count as well: they are held until they are answered."""

    async def story(opened: Opened) -> None:
        await opened.busy()
        opened.start(1.0, 1.0, 1.0, 1.0, 1.0)
        with pytest.raises(QueueFull, match="rows in preprocess = 6, must stay within 6"):
            opened.start(2.0)
        with pytest.raises(QueueFull):
            opened.step.check_room()
        opened.open_gate()
        await opened.until(1.0)
        opened.step.check_room()
        opened.start(3.0)

    assert run(story).values()[3.0] == [4.0]


def test_who_leaves_is_not_run() -> None:
    """Its rows are passed over when the thread comes to them."""

    async def story(opened: Opened) -> None:
        await opened.busy()
        opened.step.cancel(opened.start(1.0))
        opened.start(2.0)

    opened = run(story)
    assert opened.instance.calls == [[0.0], [2.0]]
    assert opened.answers.keys() == {0.0, 2.0}


def test_a_deadline_is_kept_while_the_thread_is_busy() -> None:
    """Its caller is told then, and its rows are not run."""

    async def story(opened: Opened) -> None:
        await opened.busy()
        opened.start(1.0, timeout_s=0.001)
        with pytest.raises(DeadlineExceeded):
            opened.start(2.0, timeout_s=0.0)
        await opened.until(1.0)
        assert isinstance(opened.answers[1.0], DeadlineExceeded)

    assert run(story).instance.calls == [[0.0]]


@pytest.mark.parametrize(("row", "name"), [(666.0, "RuntimeError"), (999.0, "SystemExit")])
def test_what_fails_together_is_halved(row: float, name: str) -> None:
    """The bad row alone fails, and the thread goes on, whatever was raised."""

    async def story(opened: Opened) -> None:
        await opened.busy()
        for value in (1.0, 2.0, row, 3.0):
            opened.start(value)

    opened = run(story)
    assert isinstance(failure := opened.answers.pop(row), ModelFailed)
    assert f"preprocess raised {name}" in str(failure)
    assert opened.values() == {0.0: [1.0], 1.0: [2.0], 2.0: [3.0], 3.0: [4.0]}


def test_a_transformer_that_does_not_load_says_why() -> None:
    """What it raised comes to whoever loads it."""

    class Broken(Gated):
        def load(self) -> None:
            raise SystemExit("no")

    with pytest.raises(SystemExit, match="no"):
        asyncio.run(_open(Broken()))


async def _open(instance: Gated) -> None:
    await Opened(instance).step.open()


class Slow(Gated):
    """Its `load` begins, waits at the gate, and then fails if it is to."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails
        self.unloaded = threading.Event()

    def load(self) -> None:
        self.arrived.set()
        self.gate.acquire()
        if self.fails:
            raise SystemExit("no")
        super().load()

    def unload(self) -> None:
        super().unload()
        self.unloaded.set()

    async def postprocess(self, x: np.ndarray) -> dict[str, Any]:
        raise AssertionError


@pytest.mark.parametrize("kind", [ThreadStep, LoopStep])
@pytest.mark.parametrize("fails", [False, True])
def test_an_opening_that_is_given_up_leaves_nothing(kind: type[Step], fails: bool) -> None:
    """What `load` has made when it ends is unloaded, by its thread, which then ends too; the event loop may have closed."""
    instance = Slow(fails)
    method = Method.of(Transformer(lambda: instance, None, {}), Slow, "preprocess")  # type: ignore[arg-type]
    assert method is not None
    before = {*threading.enumerate()}

    async def give_up() -> None:
        opening = asyncio.create_task(kind(method, SETTINGS, "slow", "1").open())
        await asyncio.to_thread(instance.arrived.wait, 20)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    asyncio.run(give_up())
    left = {*threading.enumerate()} - before
    assert left
    instance.gate.release()
    for thread in left:
        thread.join(20)
        assert not thread.is_alive()
    assert instance.unloaded.is_set() is not fails
    assert not instance.is_loaded
