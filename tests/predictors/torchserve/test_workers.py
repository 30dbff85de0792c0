"""The worker processes of an archive as the batcher sees them."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from torpor.predictors.batching.bucket import Bucket
from torpor.predictors.errors import ModelFailed, Unavailable
from torpor.predictors.torchserve import process
from torpor.predictors.torchserve.process import OnEnd
from torpor.predictors.torchserve.workers import Row, Workers
from virtual_time import run_virtually

ANSWER = {"status": 200, "headers": {}}


class Process:
    """A worker that the test answers for."""

    def __init__(self, number: int, at_once: int, on_end: OnEnd) -> None:
        self.number, self.at_once, self.name = number, at_once, f"m worker {number}"
        self.asked: list[tuple[list[Any], Any, Any]] = []
        self._on_end = on_end

    def run(self, head: Any, parts: Any, done: Any, on_piece: Any, timeout_s: float) -> None:
        self.asked.append(([call["text"] for call in head["calls"]], done, on_piece))

    @property
    def texts(self) -> list[list[Any]]:
        return [texts for texts, _, _ in self.asked]

    def answer(self, place: int = 0) -> None:
        texts, done, _ = self.asked.pop(place)
        done([ANSWER] * len(texts), [()] * len(texts))

    def end(self, unread: int = 0) -> None:
        self._on_end(self, "it died", unread)  # type: ignore[arg-type]

    async def stop(self) -> None: ...


class Bench:
    """Workers of a model, and what they answered, by text."""

    def __init__(self, count: int, at_once: int) -> None:
        self.started: list[Process] = []
        self.answers: dict[str, Any] = {}
        self.seconds: list[float] = []
        self.workers = Workers("m", count, self._start, 1.0, ModelFailed)
        self._at_once = at_once

    async def _start(self, on_end: OnEnd) -> Any:
        self.started.append(Process(len(self.started), self._at_once, on_end))
        return self.started[-1]

    def submit(self, *texts: str) -> None:
        rows = [Row(Bucket(("predictions", False)), {"text": text}, []) for text in texts]

        def done(results: Any, seconds: float) -> None:
            self.answers |= dict(zip(texts, results, strict=True))
            self.seconds.append(seconds)

        self.workers.submit(rows, done, asyncio.get_running_loop())

    async def restarted(self) -> Process:
        """The next one, when it has come."""
        before = len(self.started)
        await asyncio.sleep(10)
        assert len(self.started) == before + 1
        return self.started[-1]

    def failed(self) -> set[str]:
        return {text for text, answer in self.answers.items() if isinstance(answer, ModelFailed)}


def run(scenario: Callable[[Bench], Coroutine[Any, Any, None]], count: int = 1, at_once: int = 2) -> None:
    async def with_bench() -> None:
        bench = Bench(count, at_once)
        await bench.workers.open()
        await scenario(bench)
        await bench.workers.close()

    run_virtually(with_bench())


def test_a_batch_for_nobody_is_refused() -> None:
    """It was formed before the last worker was taken away, and has not begun."""

    async def scenario(bench: Bench) -> None:
        bench.submit("a", "b")
        assert [type(answer) for answer in bench.answers.values()] == [Unavailable, Unavailable]
        assert str(bench.answers["a"]) == "the model has no workers: there are none"

    run(scenario, count=0)


def test_a_batch_goes_to_whom_has_least_to_do() -> None:
    """An idle one first, then one that takes a second batch; a third waits."""

    async def scenario(bench: Bench) -> None:
        first, second = bench.started
        assert bench.workers.in_flight == 4
        for text in "abcde":
            bench.submit(text)
        assert (first.texts, second.texts) == ([["a"], ["c"]], [["b"], ["d"]])
        second.answer()
        assert second.texts == [["d"], ["e"]]

    run(scenario, count=2)


def test_a_second_batchs_time_begins_when_the_first_has_ended() -> None:
    """Until then it stands behind it, which says nothing of its own cost."""

    async def scenario(bench: Bench) -> None:
        bench.submit("a")
        bench.submit("b")
        (worker,) = bench.started
        await asyncio.sleep(3)
        worker.answer()
        await asyncio.sleep(2)
        worker.answer()
        assert bench.seconds == [3.0, 2.0]

    run(scenario)


def test_of_two_batches_each_request_runs_alone_after_their_worker_died() -> None:
    """A single one too, as the other batch may have been the end of it; then only the one that ends it again fails."""

    async def scenario(bench: Bench) -> None:
        (worker,) = bench.started
        bench.submit("a")
        bench.submit("b", "c")
        worker.end()
        worker = await bench.restarted()
        assert worker.texts == [["a"]]
        worker.answer()
        assert worker.texts == [["b"]]
        worker.end()
        worker = await bench.restarted()
        assert worker.texts == [["c"]]
        bench.submit("d")
        assert worker.texts == [["c"]]
        worker.answer()
        worker.answer()
        assert (set(bench.answers), bench.failed()) == ({"a", "b", "c", "d"}, {"b"})

    run(scenario)


def test_a_batch_that_its_worker_had_not_read_was_not_the_end_of_it() -> None:
    """It runs again as it was, after the one that may have been, which is alone to blame."""

    async def scenario(bench: Bench) -> None:
        (worker,) = bench.started
        bench.submit("a")
        bench.submit("b", "c")
        worker.end(unread=1)
        assert bench.failed() == {"a"}
        worker = await bench.restarted()
        assert worker.texts == [["b", "c"]]

    run(scenario)


def test_a_request_whose_pieces_have_gone_fails_with_its_worker() -> None:
    """Its caller has the beginning of an answer; those without run again."""

    async def scenario(bench: Bench) -> None:
        (worker,) = bench.started
        bench.submit("a", "b")
        worker.asked[0][2]({"piece": 1}, memoryview(b"x"))
        worker.end()
        worker = await bench.restarted()
        assert worker.texts == [["a"]]
        worker.answer()
        assert bench.failed() == {"b"}

    run(scenario)


def test_of_too_many_those_leave_that_have_nothing_to_do() -> None:
    """The others when they have answered all that they have."""

    async def scenario(bench: Bench) -> None:
        first, second, _third = bench.started
        for text in "abcde":
            bench.submit(text)
        bench.started[2].answer()
        bench.workers.shrink(1)
        assert bench.workers.alive == 2
        assert bench.workers.in_flight == 2
        for worker in (first, first, second):
            worker.answer()
        assert (bench.workers.alive, bench.workers.processes()) == (1, [second])

    run(scenario, count=3)


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_worker_takes_as_many_batches_as_it_says(at_once: int) -> None:
    """Once it is loaded."""

    async def scenario(bench: Bench) -> None:
        bench.submit("a")
        bench.submit("b")
        assert len(bench.started[0].asked) == at_once

    run(scenario, at_once=at_once)


def test_what_a_process_is_asked_after_its_end_has_not_begun(monkeypatch) -> None:
    """Its socket has ended and its owner has not been told yet: nothing was sent, so another one may answer it."""
    loads_and_ends = """
import os, sys
from torpor.predictors.torchserve import frames
os.read(int(sys.argv[1]), 1 << 16)
os.write(int(sys.argv[1]), b"".join(frames.pack({"loaded": True})))
"""
    monkeypatch.setattr(process, "_COMMAND", loads_and_ends)

    class AskedLate(process.WorkerProcess):
        def connection_lost(self, error: Exception | None) -> None:
            super().connection_lost(error)
            self.run({}, [], lambda replies, blobs: None, lambda said, piece: None, 0.0)

    async def ask() -> tuple[str, int]:
        told: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
        worker = AskedLate("m", 1, lambda worker, reason, unread: told.set_result((reason, unread)), print)
        await worker.load({}, os.environ, 20.0)
        return await told

    assert asyncio.run(ask()) == ("the handler ended its process with status 0", 1)
