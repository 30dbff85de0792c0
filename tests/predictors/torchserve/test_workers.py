"""The worker processes of an archive as the batcher sees them."""

import asyncio
import itertools
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from torpor.predictors.batching.bucket import Bucket
from torpor.predictors.errors import HandlerRefused, InvalidInput, ModelFailed, OutOfMemory, TorporError, Unavailable
from torpor.predictors.torchserve import beginning, process
from torpor.predictors.torchserve.manifest import ArchiveError
from torpor.predictors.torchserve.process import OnEnd
from torpor.predictors.torchserve.workers import Reply, Row, Workers
from virtual_time import run_virtually

ANSWER = {"status": 200, "headers": {}}


class Process:
    """A worker that the test answers for."""

    def __init__(self, number: int, at_once: int, on_end: OnEnd) -> None:
        self.number, self.at_once, self.name = number, at_once, f"m worker {number}"
        self.asked: list[tuple[list[Any], Any, Any]] = []
        self.has_stopped = False
        self.stop_s = 0.0
        self._on_end = on_end

    def run(self, head: Any, parts: Any, done: Any, on_piece: Any, timeout_s: float) -> None:
        self.asked.append(([call["text"] for call in head["calls"]], done, on_piece))

    @property
    def texts(self) -> list[list[Any]]:
        return [texts for texts, _, _ in self.asked]

    def answer(self, place: int = 0, reply: Any = ANSWER) -> None:
        texts, done, _ = self.asked.pop(place)
        done([reply] * len(texts), [()] * len(texts))

    def end(self, unread: int = 0) -> None:
        self._on_end(self, "it died", unread)  # type: ignore[arg-type]

    async def stop(self) -> None:
        await asyncio.sleep(self.stop_s)
        self.has_stopped = True


class Bench:
    """Workers of a model, and what they answered, by text. fail: how many of the next starts do; each takes `start_s`."""

    def __init__(self, count: int, at_once: int) -> None:
        self.fail = 0
        self.start_s = 0.0
        self.tries_s: list[float] = []
        self.started: list[Process] = []
        self.answers: dict[str, Any] = {}
        self.seconds: list[float] = []
        self.rows: list[Row] = []
        """Of what was submitted last."""
        self.workers = Workers("m", count, self._start, 1.0, ModelFailed)
        self._at_once = at_once

    async def _start(self, on_end: OnEnd) -> Any:
        self.tries_s.append(asyncio.get_running_loop().time())
        fails, self.fail = self.fail > 0, self.fail - 1
        await asyncio.sleep(self.start_s)
        if fails:
            raise ArchiveError("no weights")
        self.started.append(Process(len(self.started), self._at_once, on_end))
        return self.started[-1]

    def submit(self, *texts: str) -> None:
        rows = self.rows = [Row(Bucket(("predictions", False)), {"text": text}, []) for text in texts]

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

    def waits(self, since_s: float) -> list[float]:
        """Before each of the tries to start one, which began after that."""
        return [after - before for before, after in itertools.pairwise([since_s, *self.tries_s])]


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
        assert (worker.texts, bench.failed()) == ([], {"b"})

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


def test_one_that_is_to_leave_is_given_nothing_more() -> None:
    """However much comes, it has soon answered what it has."""

    async def scenario(bench: Bench) -> None:
        first, second = bench.started
        for text in "abcdef":
            bench.submit(text)
        bench.workers.shrink(1)
        second.answer()
        first.answer()
        assert (first.texts, second.texts) == ([["c"], ["e"]], [["d"]])
        second.answer()
        assert bench.workers.processes() == [first]

    run(scenario, count=2)


@pytest.mark.parametrize(("at_once", "count", "has"), [(1, 1, 2), (1, 2, 1), (2, 1, 2), (2, 2, 2)])
def test_a_worker_has_its_next_batch_if_it_overlaps_them_or_is_alone(at_once: int, count: int, has: int) -> None:
    """Beside others a batch would wait for one while another is free."""

    async def scenario(bench: Bench) -> None:
        for text in "abcde":
            bench.submit(text)
        assert [len(worker.asked) for worker in bench.started] == [has] * count
        assert (bench.workers.in_flight, bench.workers.overlaps) == (has * count, at_once == 2)

    run(scenario, count, at_once)


def test_a_worker_that_cannot_be_started_is_tried_again_ever_later(caplog: pytest.LogCaptureFixture) -> None:
    """At once the first time, as most come back; what waits meanwhile, and what comes, is told why, with each try."""

    async def scenario(bench: Bench) -> None:
        caplog.set_level(logging.INFO)
        bench.fail = 12
        bench.tries_s.clear()
        began_s = asyncio.get_running_loop().time()
        bench.started[0].end()
        bench.submit("a")
        await asyncio.sleep(0)
        await asyncio.sleep(0.5)
        assert str(bench.answers["a"]) == "the model has no workers: they cannot be started: no weights"
        assert isinstance(bench.answers["a"], Unavailable)
        await asyncio.sleep(300)
        assert bench.waits(began_s) == pytest.approx([0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 55, 55])
        assert bench.workers.alive == 1

    run(scenario)
    assert caplog.messages == ["m worker 0: it died", *["no weights"] * 12, "m: its worker is back"]


def test_a_worker_that_answers_is_back_for_good() -> None:
    """One that ends before that again is started later; after an answer, at once."""

    async def scenario(bench: Bench) -> None:
        loop = asyncio.get_running_loop()
        bench.started[0].end()
        worker = await bench.restarted()
        for wait_s in (1.0, 1.0, 2.0):
            bench.tries_s.clear()
            ended_s = loop.time()
            worker.end()
            worker = await bench.restarted()
            assert bench.waits(ended_s) == pytest.approx([wait_s])
        bench.submit("a")
        worker.answer()
        bench.tries_s.clear()
        ended_s = loop.time()
        worker.end()
        await bench.restarted()
        assert bench.waits(ended_s) == pytest.approx([0])

    run(scenario)


def test_what_waits_for_a_worker_has_others() -> None:
    """While one is left, nothing is refused for another that cannot be started."""

    async def scenario(bench: Bench) -> None:
        first, second = bench.started
        bench.fail = 2
        second.end()
        for text in "abc":
            bench.submit(text)
        await asyncio.sleep(0.5)
        assert not bench.answers
        first.answer()
        assert first.texts == [["b"], ["c"]]

    run(scenario, count=2)


def test_workers_that_cannot_all_be_started_are_none() -> None:
    """The start fails with the archive's own words, and those that were there leave."""

    async def scenario() -> None:
        bench = Bench(2, 1)
        bench.fail = 1
        with pytest.raises(ArchiveError, match="no weights"):
            await bench.workers.open()
        assert bench.workers.alive == 0
        assert [worker.has_stopped for worker in bench.started] == [True]

    run_virtually(scenario())


def test_workers_come_with_a_greater_number() -> None:
    """As many as are missing: one that is on its way is one of them."""

    async def scenario(bench: Bench) -> None:
        bench.start_s = 5.0
        bench.started[0].end()
        await asyncio.sleep(1)
        await bench.workers.grow(3)
        assert [worker.number for worker in bench.workers.processes()] == [1, 2, 3]
        bench.submit("a")
        bench.workers.processes()[0].answer()  # type: ignore[attr-defined]
        assert [worker.number for worker in bench.workers.processes()] == [1, 2, 3]
        await bench.workers.grow(3)
        assert (bench.workers.devices, len(bench.started)) == (3, 4)

    run(scenario)


def test_a_number_that_cannot_be_had_leaves_it_as_it_was() -> None:
    """Those that could be started leave, before those that have something to do."""

    async def scenario(bench: Bench) -> None:
        (worker,) = bench.started
        bench.submit("a")
        bench.fail = 1
        with pytest.raises(ArchiveError, match="no weights"):
            await bench.workers.grow(3)
        assert (bench.workers.devices, bench.workers.processes()) == (1, [worker])
        await asyncio.sleep(1)
        assert [one.has_stopped for one in bench.started] == [False, True]
        await asyncio.sleep(100)
        assert len(bench.tries_s) == 3
        worker.answer()
        worker.end()
        await bench.restarted()

    run(scenario)


def test_nobody_is_started_anew_who_is_not_wanted() -> None:
    """One that had been on its way when the number fell leaves, and one whose try failed is not tried again."""

    async def scenario(bench: Bench) -> None:
        bench.start_s = 5.0
        for fail in (0, 1):
            bench.fail = fail
            before = len(bench.tries_s)
            bench.workers.processes()[0]._on_end(bench.workers.processes()[0], "it died", 0)  # type: ignore[attr-defined]
            await asyncio.sleep(2)
            bench.workers.shrink(1)
            await asyncio.sleep(100)
            assert (bench.workers.alive, bench.workers._starting) == (1, 0)
            assert len(bench.tries_s) == before + 1
            await bench.workers.grow(2)
            assert len(bench.tries_s) == before + 2
        bench.workers.shrink(0)
        bench.submit("a")
        assert isinstance(bench.answers["a"], Unavailable)
        await asyncio.sleep(100)
        assert all(worker.has_stopped for worker in bench.started[2:])

    run(scenario, count=2)


def test_a_server_that_ends_starts_nobody_anew() -> None:
    """Whoever is on its way leaves."""

    async def scenario() -> None:
        bench = Bench(2, 1)
        await bench.workers.open()
        bench.start_s = 5.0
        bench.started[0].end()
        await asyncio.sleep(1)
        bench.workers.stop()
        bench.started[1].end()
        await asyncio.sleep(100)
        assert (bench.workers.alive, len(bench.tries_s)) == (0, 3)
        assert bench.started[2].has_stopped
        await bench.workers.close()

    run_virtually(scenario())


def test_the_end_waits_for_those_that_are_there_and_for_nobody_else() -> None:
    """A start that is on its way is given up, and one that dies meanwhile is not made good."""

    async def scenario() -> None:
        bench = Bench(3, 1)
        await bench.workers.open()
        bench.start_s = 5.0
        bench.started[0].end()
        await asyncio.sleep(1)
        leaving, dying = bench.started[1:]
        leaving.stop_s = 3.0
        bench.workers.devices = 2
        bench.workers.shrink(1)
        closing = asyncio.create_task(bench.workers.close())
        await asyncio.sleep(1)
        dying.end()
        await closing
        assert leaving.has_stopped
        await asyncio.sleep(100)
        assert (bench.workers.alive, len(bench.tries_s), len(bench.started)) == (0, 4, 3)

    run_virtually(scenario())


def test_what_a_dead_worker_had_goes_to_one_that_is_there() -> None:
    """Each request alone: it shares no worker with another batch."""

    async def scenario(bench: Bench) -> None:
        first, second = bench.started
        for text in "abc":
            bench.submit(text)
        assert (first.texts, second.texts) == ([["a"], ["c"]], [["b"]])
        bench.start_s = 5.0
        first.end()
        bench.submit("d")
        assert second.texts == [["b"]]
        second.answer()
        assert second.texts == [["a"]]
        second.answer()
        assert second.texts == [["c"]]
        second.answer()
        assert second.texts == [["d"]]

    run(scenario, count=2)


def test_an_idle_worker_has_at_once_what_another_had() -> None:
    """Nothing else need happen for that."""

    async def scenario(bench: Bench) -> None:
        first, second = bench.started
        bench.submit("a", "b")
        first.end()
        assert second.texts == [["a"]]

    run(scenario, count=2)


def test_a_worker_that_ends_with_nothing_to_do_costs_nothing() -> None:
    """Whatever it left unread."""

    async def scenario(bench: Bench) -> None:
        bench.started[0].end(unread=1)
        worker = await bench.restarted()
        bench.submit("a")
        worker.answer()
        assert bench.answers == {"a": Reply(ANSWER, ())}

    run(scenario)


def test_a_piece_goes_to_the_row_that_it_is_of() -> None:
    """With its worker, whom a caller that is behind holds up."""

    async def scenario(bench: Bench) -> None:
        (worker,) = bench.started
        bench.submit("a", "b")
        heard: list[Any] = []
        rows = bench.rows
        rows[1].on_piece = lambda said, piece, flow: heard.append((said, bytes(piece), flow))
        for place in (0, 1):
            worker.asked[0][2]({"piece": place}, memoryview(b"x"))
        assert heard == [({"piece": 1}, b"x", worker)]
        assert [row.has_begun for row in rows] == [True, True]
        worker.end()
        assert bench.failed() == {"a", "b"}

    run(scenario)


@pytest.mark.parametrize(
    ("said", "error", "text"),
    [
        ({"error": "InvalidInput", "text": "no"}, InvalidInput, "no"),
        ({"error": "OutOfMemory", "text": "3"}, OutOfMemory, "the device ran out of memory with rows = 3"),
        ({"error": "HandlerRefused", "text": "no", "status": 418}, HandlerRefused, "no"),
        ({"error": "ModelFailed", "text": "no"}, ModelFailed, "no"),
    ],
)
def test_what_a_worker_says_of_a_failure_is_an_error(said: Any, error: type[TorporError], text: str) -> None:
    """Of the class that says whose it is."""

    async def scenario(bench: Bench) -> None:
        bench.submit("a")
        bench.started[0].answer(reply=said)
        answer = bench.answers["a"]
        assert (type(answer), str(answer)) == (error, text)
        assert answer.http_status == said.get("status", answer.http_status)

    run(scenario)


def test_what_a_process_is_asked_after_its_end_has_not_begun(monkeypatch) -> None:
    """Its socket has ended and its owner has not been told yet: nothing was sent, so another one may answer it."""
    loads_and_ends = """
import os, sys
from torpor.predictors.torchserve import frames
os.read(int(sys.argv[1]), 1 << 16)
os.write(int(sys.argv[1]), b"".join(frames.pack({"loaded": True})))
"""
    monkeypatch.setattr(beginning, "_COMMAND", loads_and_ends)

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
