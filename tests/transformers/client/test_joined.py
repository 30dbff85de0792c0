"""Small requests that meet go as one, and everybody gets what is theirs."""

import asyncio
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torpor.predictors.errors import (
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    OutOfMemory,
    PredictorFailed,
    QueueFull,
    TorporError,
    Unavailable,
)
from torpor.predictors.protocol.inference import InferRequest, InferResponse, Terms
from torpor.transformers.client import Backoff, BatchingSettings, PredictorClient
from virtual_time import run_virtually

TAKES_S = 0.5


class Doubling:
    """A predictor that takes half a second for any request, doubles x, and refuses 13 and fails with 17."""

    protocol = "test"

    def __init__(self, fits_rows: int = 1000) -> None:
        self._fits_rows = fits_rows
        self.requests: list[list[float]] = []
        self.kept: list[Mapping[str, str]] = []
        self.timeouts_s: list[float | None] = []

    def start(
        self, request: InferRequest, kept: Mapping[str, str], timeout_s: float | None, answer: Callable
    ) -> "Doubling":
        x = request.inputs["x"]
        self.requests.append(x.ravel().tolist())
        self.kept.append(dict(kept))
        self.timeouts_s.append(timeout_s)
        result: InferResponse | TorporError = InferResponse("m", "4", {"y": x * 2, "n": np.full(len(x), len(x))})
        if 13 in x:
            result = InvalidInput("13 is not to this model's taste")
        elif 17 in x:
            result = ModelFailed("the model raised")
        elif 99 in x:
            result = InferResponse("m", "4", {"y": x[:-1]})
        elif len(x) > self._fits_rows:
            result = OutOfMemory(len(x))
        asyncio.get_running_loop().call_later(TAKES_S, answer, result)
        return self

    def cancel(self) -> None:
        pass

    async def close(self) -> None:
        pass


def rows(*values: float, **terms) -> InferRequest:
    return InferRequest({"x": np.array(values, np.float32)}, Terms(**terms))


def client(carrier: Doubling, max_batch_size: int = 8, max_queue_rows: int = 100) -> PredictorClient:
    batching = BatchingSettings(max_batch_size, 0.002, max_queue_rows)
    asking = PredictorClient("a:1", "m", "v2-json", batching=batching, backoff=Backoff(0))
    asking.carrier = carrier
    return asking


def test_what_comes_while_the_predictor_is_busy_goes_as_one() -> None:
    """The first two go at once, the rest together, each with its own id and rows."""

    async def scenario() -> None:
        carrier = Doubling()
        asking = client(carrier)
        requests = [rows(n, n + 0.5, id=str(n)) for n in range(5)]
        answers = await asyncio.gather(*map(asking.infer, requests))
        for n, answer in enumerate(answers):
            assert answer.outputs["y"].tolist() == [2 * n, 2 * n + 1]
            assert (answer.id, answer.model_version, answer.model_name) == (str(n), "4", "m")
        assert carrier.requests == [[0, 0.5], [1, 1.5], [2, 2.5, 3, 3.5, 4, 4.5]]
        await asking.close()

    run_virtually(scenario())


@pytest.mark.parametrize(
    "others",
    [
        [InferRequest({"x": np.array([2, 3], np.float64)})],
        [InferRequest({"x": np.array([[2], [3]], np.float32)})],
        [rows(2, 3, outputs=("y",))],
        [rows(2, 3, parameters={"a": 1})],
        [rows(*range(9))],
    ],
    ids=["dtype", "shape", "outputs", "parameters", "large"],
)
def test_what_differs_is_never_joined(others: list[InferRequest]) -> None:
    """Another layout, other outputs, parameters of its own, or too many rows to win anything."""

    async def scenario() -> None:
        carrier = Doubling()
        asking = client(carrier)
        await asyncio.gather(*map(asking.infer, [rows(0), rows(0), rows(1), *others, rows(1)]))
        assert [1, 1] in carrier.requests
        assert others[0].inputs["x"].ravel().tolist() in carrier.requests
        assert len(carrier.requests) == 4

    run_virtually(scenario())


def test_credentials_are_never_shared_and_headers_only_when_alike() -> None:
    """Rows go with the authorization of their own caller; a trace goes on if all are of it."""

    async def scenario() -> None:
        carrier = Doubling()
        asking = client(carrier)
        a = {"authorization": "a", "tracestate": "same", "traceparent": "1"}
        a2 = {"authorization": "a", "tracestate": "same", "traceparent": "2"}
        b = {"authorization": "b"}
        await asyncio.gather(*(asking.infer(rows(n), h) for n, h in enumerate([a, a, a, a2, b, b])))
        sent = sorted(zip(carrier.requests[2:], carrier.kept[2:], strict=True), key=lambda one: one[0])
        assert sent == [([2, 3], {"authorization": "a", "tracestate": "same"}), ([4, 5], b)]

    run_virtually(scenario())


def test_a_row_to_blame_fails_alone() -> None:
    """What the predictor refuses, or fails with, is sent again in halves."""

    async def scenario() -> None:
        carrier = Doubling()
        asking = client(carrier)
        values = [0, 1, 2, 13, 4, 17, 6]
        answers = await asyncio.gather(*(asking.infer(rows(v)) for v in values), return_exceptions=True)
        kinds = [type(answer) for answer in answers]
        assert kinds == [ModelFailed if v == 17 else InvalidInput if v == 13 else InferResponse for v in values]
        assert all(
            a.outputs["y"].tolist() == [2 * v] for a, v in zip(answers, values, strict=True) if v not in (13, 17)
        )

    run_virtually(scenario())


def test_a_predictor_out_of_memory_gets_fewer_rows() -> None:
    """507 for a joined request means a smaller one, by the policy's own rule."""

    async def scenario() -> None:
        carrier = Doubling(fits_rows=2)
        asking = client(carrier)
        answers = await asyncio.gather(*(asking.infer(rows(n)) for n in range(8)))
        assert [answer.outputs["y"].tolist() for answer in answers] == [[2 * n] for n in range(8)]
        assert max(map(len, carrier.requests[3:])) <= 3

    run_virtually(scenario())


def test_an_answer_with_other_rows_is_nobodys() -> None:
    """Rows that cannot be told apart must not go to the wrong caller."""

    async def scenario() -> None:
        asking = client(Doubling())
        for asked in ((rows(99), rows(99)), (rows(0), rows(0), rows(1), rows(99))):
            answers = await asyncio.gather(*map(asking.infer, asked), return_exceptions=True)
            assert "must have" in str(answers[-1])
            assert isinstance(answers[-1], PredictorFailed)

    run_virtually(scenario())


def test_each_waits_to_its_own_deadline() -> None:
    """The joined request has the longest of them; whoever is less patient leaves alone."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        carrier = Doubling()
        asking = client(carrier)
        first = [asyncio.create_task(asking.infer(rows(0))) for _ in range(2)]
        patient, hasty = asking.infer(rows(1), timeout_s=3.0), asking.infer(rows(2), timeout_s=0.75)
        patient, hasty = asyncio.create_task(patient), asyncio.create_task(hasty)
        with pytest.raises(DeadlineExceeded):
            await hasty
        assert loop.time() == 100.75
        assert (await patient).outputs["y"].tolist() == [2]
        assert loop.time() == 101
        assert carrier.requests[2:] == [[1, 2]]
        assert carrier.timeouts_s == [None, None, 2.5]
        await asyncio.gather(*first)

    run_virtually(scenario())


def test_one_without_a_deadline_gives_it_to_nobody() -> None:
    """A joined request waits as long as the most patient of its callers."""

    async def scenario() -> None:
        carrier = Doubling()
        asking = client(carrier)
        await asyncio.gather(*(asking.infer(rows(n), timeout_s=None if n == 2 else 9.0) for n in range(4)))
        assert carrier.requests == [[0], [1], [2, 3]]
        assert carrier.timeouts_s == [9.0, 9.0, None]

    run_virtually(scenario())


def test_who_leaves_while_waiting_is_not_sent() -> None:
    """Its rows are dropped, and those of the others go."""

    async def scenario() -> None:
        carrier = Doubling()
        asking = client(carrier)
        tasks = [asyncio.create_task(asking.infer(rows(n))) for n in range(4)]
        await asyncio.sleep(0.1)
        tasks[2].cancel()
        await asyncio.wait(tasks)
        assert carrier.requests == [[0], [1], [3]]

    run_virtually(scenario())


def test_what_does_not_fit_the_queue_is_refused() -> None:
    """At once, and closing refuses what waits."""

    async def scenario() -> None:
        asking = client(Doubling(), max_queue_rows=2)
        tasks = [asyncio.create_task(asking.infer(rows(n))) for n in range(4)]
        await asyncio.sleep(0.1)
        with pytest.raises(QueueFull):
            await asking.infer(rows(9))
        await asking.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [InferResponse] * 2 + [Unavailable] * 2

    run_virtually(scenario())


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(st.tuples(st.integers(1, 5), st.floats(0, 2)), min_size=1, max_size=30))
def test_everybody_gets_the_rows_that_they_sent(calls: list[tuple[int, float]]) -> None:
    """Any number of rows at any time, with a predictor that has memory for five."""

    async def scenario() -> None:
        asking = client(Doubling(fits_rows=5))

        async def one(number: int, count: int, at_s: float) -> None:
            await asyncio.sleep(at_s)
            x = np.arange(count, dtype=np.float32) / 16 + 100 + number
            assert (await asking.infer(InferRequest({"x": x}))).outputs["y"].tolist() == (x * 2).tolist()

        await asyncio.gather(*(one(number, *call) for number, call in enumerate(calls)))
        await asking.close()

    run_virtually(scenario())
