"""A row that comes while nothing else is there: prepared, run and postprocessed on one thread, by the rules of any other."""

import asyncio
import threading
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import pytest
from torpor.predictors.batching.policy import BatchingSettings
from torpor.predictors.catalog import Assembled
from torpor.predictors.errors import DeadlineExceeded, InvalidInput, ModelFailed, TorporError
from torpor.predictors.protocol.inference import InferRequest, Terms
from torpor.predictors.runtime.executor import Executor
from torpor.predictors.runtime.user_class import inspect_class
from torpor.predictors.serving.data_plane import DataPlane
from torpor.predictors.settings import resolve
from torpor.predictors.signature import Request
from torpor.transformers.assembly import assemble
from torpor.transformers.rows import Rows

DEVICE = "torpor-device-chain-0"


class Doubling:
    """Waits at a gate while it prepares; tells on which threads it was called. 666 is poison, 5 gives a row too wide."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.at_once, self.most_at_once = 0, 0
        self.arrived, self.gate = threading.Semaphore(0), threading.Semaphore(0)
        made.append(self)

    def preprocess(self, n: Annotated[np.ndarray, "float32[rows]"]) -> dict[str, Any]:
        self.threads.append(threading.current_thread().name)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.arrived.release()
        self.gate.acquire()
        self.at_once -= 1
        if 666 in n:
            raise RuntimeError("poison")
        return {"x": np.zeros((1, 3), np.float32) if 5 in n else np.repeat(n[:, None], 2, axis=1)}

    def postprocess(self, y: np.ndarray) -> dict[str, Any]:
        self.threads.append(threading.current_thread().name)
        return {"z": y * 2}


class Summing:
    def predict(self, x: Annotated[np.ndarray, "float32[rows, 2]"]) -> dict[str, Any]:
        return {"y": x.sum(axis=1)}


class Asking:
    def predict(self, x: Annotated[np.ndarray, "float32[rows, 2]"], request: Request) -> dict[str, Any]:
        return {"y": x.sum(axis=1)}


class Ahead(Executor):
    """On a device that begins a batch while it runs another."""

    def load(self) -> None:
        super().load()
        self.in_flight = 2


made: list[Doubling] = []


class Told:
    """A chain of both, and what was answered."""

    def __init__(self, chain: Any) -> None:
        self.chain = chain
        self.instance = made[-1]
        self.answers: dict[float, Rows | TorporError] = {}
        self.news = asyncio.Event()

    def start(self, *values: float, timeout_s: float | None = None) -> Any:
        def answer(result: Rows | TorporError) -> None:
            self.answers[values[0]] = result
            self.news.set()

        inputs = {"n": np.array(values, np.float32)}
        return self.chain.start(InferRequest(inputs, Terms(timeout_s=timeout_s)), None, None, answer)

    async def begun(self) -> None:
        """Until a call of preprocess has begun."""
        await asyncio.to_thread(self.instance.arrived.acquire, timeout=20)

    async def until(self, *firsts: float) -> None:
        while not self.answers.keys() >= {*firsts}:
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), 20)

    def open_gate(self) -> None:
        self.instance.gate.release(100)

    def values(self) -> dict[float, list[float]]:
        return {first: rows["z"].tolist() for first, rows in self.answers.items()}  # type: ignore[index]

    def observed(self) -> dict[str, int]:
        (model,) = self.chain.measured
        return {"preprocess": sum(self.chain.steps[0].seconds.counts), "predict": model.predict_seconds.count}


def run(story: Callable[[Told], Any], executor: Executor | None = None) -> Told:
    """Tell a story of a loaded chain, and close it."""

    async def tell() -> Told:
        executors = [executor or Executor(inspect_class(Summing))]
        predictor = Assembled(executors, BatchingSettings(batch_timeout_s=0), 0.0, 0.0)
        settings = resolve({}, {}, {})
        told = Told(await assemble(Doubling, None, {}, settings, predictor).load(DataPlane("0"), "chain", "1"))
        told.instance.threads.clear()  # of the first batch, which nobody waits for
        try:
            await story(told)
        finally:
            told.open_gate()
            await told.chain.close()
        return told

    return asyncio.run(tell())


def test_a_row_alone_stays_on_the_predictors_thread() -> None:
    """All of its way; the times of preprocess and of the model are told apart."""

    async def story(told: Told) -> None:
        told.open_gate()
        for value in (1.0, 2.0):
            told.start(value)
            await told.until(value)
        assert told.observed() == {"preprocess": 2, "predict": 2}

    told = run(story)
    assert told.values() == {1.0: [4.0], 2.0: [8.0]}
    assert told.instance.threads == [DEVICE] * 4


def test_rows_that_come_meanwhile_meet_on_their_own_thread() -> None:
    """They do not wait for the predictor to be free, but the class is never called twice at a time."""

    async def story(told: Told) -> None:
        told.start(1.0)
        await told.begun()
        assert told.chain.preprocess.turn.locked()
        told.start(2.0)
        told.start(3.0)
        told.open_gate()
        await told.until(1.0, 2.0, 3.0)

    told = run(story)
    assert told.values() == {1.0: [4.0], 2.0: [8.0], 3.0: [12.0]}
    assert told.instance.threads.count("torpor-preprocess") >= 1
    assert told.instance.threads[0] == DEVICE
    assert told.instance.most_at_once == 1


def test_rows_that_come_together_are_not_alone() -> None:
    """Two rows of one request go by the thread where they would meet others."""

    async def story(told: Told) -> None:
        told.open_gate()
        told.start(1.0, 2.0)
        await told.until(1.0)

    told = run(story)
    assert told.values() == {1.0: [4.0, 8.0]}
    assert told.instance.threads[0] == "torpor-preprocess"


def test_a_row_does_not_hold_the_predictor_up_while_its_class_is_called() -> None:
    """Other rows are prepared on their own thread: this one waits for them there."""

    async def story(told: Told) -> None:
        told.start(1.0, 2.0)
        await told.begun()
        told.start(3.0)
        told.open_gate()
        await told.until(1.0, 3.0)

    threads = run(story).instance.threads
    assert threads.count("torpor-preprocess") == 2


@pytest.mark.parametrize(("predictor_class", "executor_class"), [(Asking, Executor), (Summing, Ahead)])
def test_some_predictors_prepare_nothing(predictor_class: type, executor_class: type[Executor]) -> None:
    """One that wants its request, which is made of what preprocess gave; one whose batches begin before they are awaited."""

    async def story(told: Told) -> None:
        told.open_gate()
        told.start(1.0)
        await told.until(1.0)

    told = run(story, executor_class(inspect_class(predictor_class)))
    assert told.values() == {1.0: [4.0]}
    assert told.instance.threads[0] == "torpor-preprocess"


@pytest.mark.parametrize(
    ("value", "text"),
    [(666.0, "preprocess raised RuntimeError"), (5.0, "what preprocess gave does not fit the predictor: input 'x'")],
)
def test_what_preprocess_fails_with_is_the_answer(value: float, text: str) -> None:
    """Its own error, or what the predictor would not take; the next row is served."""

    async def story(told: Told) -> None:
        told.open_gate()
        told.start(value)
        await told.until(value)
        error = told.answers.pop(value)
        assert isinstance(error, ModelFailed)
        assert text in str(error)
        told.start(1.0)
        await told.until(1.0)

    assert run(story).values() == {1.0: [4.0]}


def test_a_deadline_passes_while_a_row_is_prepared() -> None:
    """Its caller is told then, not when the class has come to an end."""

    async def story(told: Told) -> None:
        told.start(1.0, timeout_s=0.05)
        await told.until(1.0)
        assert isinstance(told.answers[1.0], DeadlineExceeded)
        told.open_gate()

    run(story)


def test_who_leaves_gets_no_answer() -> None:
    """Nobody is told what comes of a row whose caller has gone."""

    async def story(told: Told) -> None:
        journey = told.start(1.0)
        await told.begun()
        told.chain.cancel(journey)
        told.open_gate()
        told.start(2.0)
        await told.until(2.0)

    assert run(story).values() == {2.0: [8.0]}


def test_a_chain_closes_when_the_row_has_been_answered() -> None:
    """The class is unloaded after its last call."""

    async def story(told: Told) -> None:
        told.start(1.0)
        await told.begun()
        closing = asyncio.create_task(told.chain.close())
        await asyncio.sleep(0)
        with pytest.raises(TorporError):
            told.start(2.0)
        told.open_gate()
        await closing

    assert run(story).values() == {1.0: [4.0]}


def test_bad_input_is_refused_before_anything_begins() -> None:
    """By the caller's own names."""

    async def story(told: Told) -> None:
        with pytest.raises(InvalidInput, match="input 'n': datatype = FP64, must be FP32"):
            told.chain.start(InferRequest({"n": np.zeros(1)}, Terms()), None, None, lambda result: None)

    assert run(story).instance.threads == []
