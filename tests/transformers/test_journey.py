"""A request on its way through a chain: what its predictor is told, and what becomes of the rest when it ends early."""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from torpor.predictors.batching.policy import BatchingSettings
from torpor.predictors.errors import DeadlineExceeded, ModelFailed, TorporError
from torpor.predictors.protocol.inference import InferRequest, Terms
from torpor.predictors.signature import Signature
from torpor.transformers.chain import Chain
from torpor.transformers.rows import Rows
from torpor.transformers.step import LoopStep, Method, Transformer
from virtual_time import run_virtually


class Slow:
    """Takes a second a request, and gives each row as long as it says."""

    async def preprocess(self, n: Annotated[np.ndarray, "int64[rows]"]) -> dict[str, Any]:
        await asyncio.sleep(1)
        return {"x": [np.zeros(length, np.float32) for length in n]}


class Predictor:
    """Answers when it is told to; remembers what it was asked, and what was taken back."""

    wants_headers = False
    measured = ()

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[int, ...], float | None]] = []
        self.answers: list[Any] = []
        self.cancelled: list[int] = []

    def start(
        self, request: InferRequest, headers: Mapping[str, str] | None, timeout_s: float | None, answer: Any
    ) -> int:
        self.asked.append((request.inputs["x"].shape, timeout_s))
        self.answers.append(answer)
        return len(self.asked) - 1

    def cancel(self, started: int) -> None:
        self.cancelled.append(started)


class Asked:
    """A chain of the two, and a request to it."""

    def __init__(self, *lengths: int, timeout_s: float | None = None) -> None:
        transformer = Transformer(Slow, None, {})
        transformer.load()
        method = Method.of(transformer, Slow, "preprocess")
        assert method is not None
        step = LoopStep(method, BatchingSettings(), "chain", "1")
        self.predictor = Predictor()
        self.chain = Chain("chain", "1", Signature(("n",)), step, self.predictor, None)  # type: ignore[arg-type]
        self.results: list[Rows | TorporError] = []
        request = InferRequest({"n": np.array(lengths)}, Terms(timeout_s=timeout_s))
        self.journey = self.chain.start(request, None, None, self.results.append)


def test_the_predictor_gets_the_time_that_is_left() -> None:
    """What preprocess took is gone; without a deadline there is none."""

    async def story() -> None:
        for timeout_s, left_s in ((3.0, 2.0), (None, None)):
            asked = Asked(1, timeout_s=timeout_s)
            await asyncio.sleep(1.5)
            assert asked.predictor.asked == [((1, 1), left_s)]

    run_virtually(story())


def test_a_deadline_that_passes_in_preprocess_asks_no_predictor() -> None:
    """Its caller is told once."""

    async def story() -> None:
        asked = Asked(1, timeout_s=0.5)
        await asyncio.sleep(2)
        assert [type(result) for result in asked.results] == [DeadlineExceeded]
        assert not asked.predictor.asked

    run_virtually(story())


def test_the_first_failure_of_a_request_takes_the_rest_back() -> None:
    """Rows of three shapes are three requests to the predictor: when one fails, nobody waits for the others."""

    async def story() -> None:
        asked = Asked(1, 2, 3)
        await asyncio.sleep(1.5)
        first, second, third = asked.predictor.answers
        second(ModelFailed("no"))
        assert sorted(asked.predictor.cancelled) == [0, 1, 2]
        first({"y": np.zeros(1)})
        third(ModelFailed("nor I"))
        assert [str(result) for result in asked.results] == ["no"]

    run_virtually(story())


def test_who_leaves_in_preprocess_asks_no_predictor() -> None:
    """And is not answered."""

    async def story() -> None:
        asked = Asked(1)
        await asyncio.sleep(0.5)
        asked.chain.cancel(asked.journey)
        await asyncio.sleep(2)
        assert not asked.predictor.asked
        assert not asked.results

    run_virtually(story())


def test_who_leaves_while_a_step_ends_asks_no_predictor() -> None:
    """The step's answer may be on its way already, which no cancelling holds up."""

    async def story() -> None:
        asked = Asked(1)
        go_on = asked.journey._then(asked.journey._predict)
        asked.chain.cancel(asked.journey)
        go_on({"x": np.zeros((1, 1), np.float32)})
        assert not asked.predictor.asked

    run_virtually(story())


def test_who_leaves_a_predictor_takes_all_back() -> None:
    """Every request that was made of its rows."""

    async def story() -> None:
        asked = Asked(1, 2)
        await asyncio.sleep(1.5)
        asked.chain.cancel(asked.journey)
        assert sorted(asked.predictor.cancelled) == [0, 1]
        asked.predictor.answers[0]({"y": np.zeros(1)})
        assert not asked.results

    run_virtually(story())
