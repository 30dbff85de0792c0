"""Tries, their waits and the deadline, in virtual time; a carrier stands for the predictor to provoke what it should."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.predictors.errors import (
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    NotFound,
    PredictorFailed,
    QueueFull,
    TorporError,
    Unavailable,
)
from torpor.predictors.protocol.inference import InferRequest, InferResponse, Terms
from torpor.transformers.client import Backoff, PredictorClient
from torpor.transformers.client.deadlines import Deadlines
from virtual_time import run_virtually

RESPONSE = InferResponse("m", "1", {})
CANNOT_REACH = Unavailable("cannot be reached", 0.0)


class Carrier:
    """Answers each try, after `takes_s`, with the next of `results`; None: never."""

    protocol = "test"

    def __init__(self, *results: InferResponse | TorporError | None, takes_s: float = 0.25) -> None:
        self._results = [*results]
        self._takes_s = takes_s
        self.tries: list[tuple[float, float | None]] = []
        """When, and with how much time left."""
        self.left = 0

    def start(
        self, request: InferRequest, kept: Mapping[str, str], timeout_s: float | None, answer: Callable
    ) -> "Carrier":
        loop = asyncio.get_running_loop()
        self.tries.append((round(loop.time() - 100, 6), timeout_s))
        result = self._results.pop(0)
        if result is not None:
            loop.call_later(self._takes_s, answer, result)
        return self

    def cancel(self) -> None:
        self.left += 1

    async def close(self) -> None:
        pass


def client(carrier: Carrier, **options) -> PredictorClient:
    asking = PredictorClient("a:1", "m", "v2-json", **{"backoff": Backoff(3, 0.1, 1.0, lambda: 1.0)} | options)
    asking.carrier = carrier
    return asking


def times(carrier: Carrier) -> list[float]:
    return [at for at, _ in carrier.tries]


def test_waits_grow_and_are_bounded(small) -> None:
    """0.1, 0.2, 0.4, then 0.5 s at most, where chance asks for all of it; the answer of the last try is the answer."""

    async def scenario() -> None:
        carrier = Carrier(*[CANNOT_REACH] * 4, RESPONSE)
        asking = client(carrier, backoff=Backoff(4, 0.1, 0.5, lambda: 1.0))
        assert await asking.infer(small) is RESPONSE
        assert times(carrier) == [0, 0.35, 0.8, 1.45, 2.2]

    run_virtually(scenario())


@given(st.integers(1, 40), st.floats(0, 1, exclude_max=True))
def test_any_wait_is_jittered_fully_within_its_bound(tried: int, chance: float) -> None:
    """From nothing to the doubling bound, so that callers that failed together do not come together."""
    backoff = Backoff(100, 0.1, 2.0, lambda: chance)
    wait_s = backoff.wait_s(CANNOT_REACH, tried)
    assert wait_s == chance * min(2.0, 0.1 * 2 ** (tried - 1))
    assert backoff.wait_s(Unavailable("", 7.0), tried) == 7.0 + wait_s
    assert backoff.wait_s(CANNOT_REACH, 101) is None


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("it did not say", None), InvalidInput("no"), NotFound("no"), ModelFailed("no"), PredictorFailed("no"),
        DeadlineExceeded("no"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_may_have_begun_is_never_sent_again(small, error: TorporError) -> None:
    """Nor what would be refused again."""

    async def scenario() -> None:
        carrier = Carrier(error)
        with pytest.raises(type(error)):
            await client(carrier).infer(small)
        assert len(carrier.tries) == 1

    run_virtually(scenario())


def test_a_refusal_is_waited_out_as_long_as_it_says(small) -> None:
    """The server knows when its queue will be empty."""

    async def scenario() -> None:
        carrier = Carrier(QueueFull("full", 3.0), RESPONSE)
        assert await client(carrier).infer(small, timeout_s=10) is RESPONSE
        assert carrier.tries == [(0, 10.0), (3.35, pytest.approx(6.65))]

    run_virtually(scenario())


def test_a_wait_beyond_the_deadline_is_not_begun(small) -> None:
    """The caller learns at once, from the refusal itself, while somebody else can still be asked."""

    async def scenario() -> None:
        carrier = Carrier(QueueFull("full", 3.0))
        with pytest.raises(QueueFull):
            await client(carrier).infer(small, timeout_s=2)
        assert asyncio.get_running_loop().time() == 100.25

    run_virtually(scenario())


@pytest.mark.parametrize(
    ("own_s", "callers_s", "expected_s", "told"),
    [
        (None, 2.0, 2.0, True),
        (1.0, 2.0, 1.0, True),
        (2.0, 1.0, 1.0, True),
        (1.0, None, 1.0, True),
        (None, None, 30.0, False),
    ],
)
def test_the_shortest_deadline_counts(small, own_s, callers_s, expected_s, told) -> None:
    """The request's, its caller's; without either the client's patience, of which the predictor is not told."""

    async def scenario() -> None:
        carrier = Carrier(None)
        request = InferRequest(small.inputs, Terms(timeout_s=own_s))
        with pytest.raises(DeadlineExceeded):
            await client(carrier, timeout_s=30.0).infer(request, timeout_s=callers_s)
        assert asyncio.get_running_loop().time() == 100 + expected_s
        assert carrier.tries == [(0, expected_s if told else None)]
        assert carrier.left == 1

    run_virtually(scenario())


def test_a_deadline_that_has_passed_is_refused_unsent(small) -> None:
    """There is nothing to wait for."""

    async def scenario() -> None:
        carrier = Carrier()
        with pytest.raises(DeadlineExceeded):
            await client(carrier).infer(small, timeout_s=0)

    run_virtually(scenario())


def test_a_deadline_may_pass_while_a_try_is_waited_for(small) -> None:
    """No try is begun afterwards, and nobody is called twice."""

    async def scenario() -> None:
        answers: list[object] = []
        carrier = Carrier(CANNOT_REACH, RESPONSE, takes_s=0.5)
        client(carrier).start(small, None, 1.0, answers.append)
        await asyncio.sleep(5)
        assert [type(answer) for answer in answers] == [DeadlineExceeded]
        assert times(carrier) == [0, 0.6]

    run_virtually(scenario())


@pytest.mark.parametrize("at_s", [0.1, 0.3, 0.5])
def test_a_cancelled_call_is_not_answered(small, at_s: float) -> None:
    """During a try, between two, and during the next."""

    async def scenario() -> None:
        answers: list[object] = []
        carrier = Carrier(CANNOT_REACH, RESPONSE)
        call = client(carrier).start(small, None, 2.0, answers.append)
        await asyncio.sleep(at_s)
        call.cancel()
        call.cancel()
        await asyncio.sleep(5)
        assert not answers
        assert len(carrier.tries) == (1 if at_s < 0.35 else 2)

    run_virtually(scenario())


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=20))
def test_every_deadline_rings_once_and_hardly_late(calls: list[tuple[float, bool]]) -> None:
    """Whatever their order, and whoever is released before."""
    from_loop: list[tuple[float, float]] = []

    class One:
        def __init__(self, end_s: float) -> None:
            self.end_s = end_s

        def expire(self) -> None:
            from_loop.append((self.end_s, loop.time()))

    class Loop:
        """As much of a loop as a timer needs."""

        now = 0.0
        timers: list[tuple[float, Callable[[], None]]] = []

        def time(self) -> float:
            return self.now

        def call_at(self, when: float, callback: Callable[[], None]) -> "Loop":
            self.timers = [(when, callback)]
            return self

        def cancel(self) -> None:
            self.timers = []

    loop = Loop()
    deadlines = Deadlines()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "get_running_loop", lambda: loop)
        kept = []
        for end_s, is_released in calls:
            one = One(end_s)
            deadlines.guard(one)
            if is_released:
                deadlines.release(one)
            else:
                kept.append(end_s)
        while loop.timers:
            ((loop.now, ring),) = loop.timers
            loop.timers = []
            ring()
    assert sorted(end_s for end_s, _ in from_loop) == sorted(kept)
    assert all(end_s <= rang_s <= end_s + 0.005 for end_s, rang_s in from_loop)
