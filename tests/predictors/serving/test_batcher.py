"""The driver of the policy on an event loop whose time is virtual: no test sleeps, every wait is exact."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest
import uvloop
from torpor.predictors.batching.bucket import Bucket
from torpor.predictors.batching.policy import Batch, BatchingPolicy, BatchingSettings
from torpor.predictors.batching.run_times import RunTimes
from torpor.predictors.errors import DeadlineExceeded, ModelBroken, ModelFailed, OutOfMemory, QueueFull, Unavailable
from torpor.predictors.protocol.inference import InferRequest, Terms
from torpor.predictors.serving.batcher import Batcher
from torpor.predictors.serving.data_plane import ServedModel
from torpor.predictors.serving.metrics import ModelMetrics
from torpor.predictors.signature import Bound, Signature
from virtual_time import VirtualTimeLoop
from virtual_time import run_virtually as run

RUN_S = 0.5


class Device:
    """Takes half a second a batch and doubles its rows; `fails` are values of rows that fail alone.

    It has memory for `fits` rows.
    """

    def __init__(self, devices: int = 1, in_flight: int = 1) -> None:
        self.devices, self.in_flight = devices, in_flight
        self.overlaps = True
        self.hangs, self.breaks = False, False
        self.halved_s = -math.inf
        self.fits = 1000
        self.batches: list[list[float]] = []
        self.started_s: list[float] = []
        self.fails: set[float] = set()
        self.is_stopped = False
        self.results: list[Any] = []

    def stop(self) -> None:
        self.is_stopped = True

    def submit(self, parts: Sequence[Bound], done: Callable[..., None], loop: asyncio.AbstractEventLoop) -> None:
        rows = [float(v) for part in parts for v in part.arrays["x"]]
        self.batches.append(rows)
        self.started_s.append(loop.time())
        results: list[Any] = [
            OutOfMemory(len(rows))
            if len(rows) > self.fits
            else ModelFailed("poison")
            if self.fails & set(part.arrays["x"].tolist())
            else {"y": part.arrays["x"] * 2}
            for part in parts
        ]
        if self.breaks:
            results = [ModelBroken("illegal memory access")] * len(parts)
        self.results = results
        if not self.hangs:
            loop.call_later(RUN_S, done, results, RUN_S)


class Observed:
    def __init__(self) -> None:
        self.rows: list[int] = []
        self.shortages = 0

    def ran_out_of_memory(self) -> None:
        self.shortages += 1

    def batch_ran(self, batch: Batch[Bound], seconds: float) -> None:
        self.rows.append(batch.rows)


class Bench:
    """A batcher over the device, and callers for it."""

    def __init__(
        self,
        batch: int = 4,
        wait_s: float = 0.01,
        queue: int = 100,
        devices: int = 1,
        in_flight: int = 1,
        model_timeout_s: float = 0.0,
    ) -> None:
        self.device = Device(devices, in_flight)
        self.broken: list[ModelBroken] = []
        self.observed = Observed()
        self.policy: BatchingPolicy[Bound] = BatchingPolicy(BatchingSettings(batch, wait_s, queue), RunTimes())
        self.batcher = Batcher(self.policy, self.device, self.observed, model_timeout_s, self.broken.append)
        self.model = ServedModel("m", "1", Signature(("x",)), self.batcher, ModelMetrics("m", "1", lambda: 0))
        self.now = asyncio.get_running_loop().time

    async def ask(self, *rows: float, deadline_s: float | None = None) -> list[float]:
        timeout_s = None if deadline_s is None else deadline_s - self.now()
        answer = await self.model.infer(InferRequest({"x": np.array(rows)}), None, timeout_s)
        return [float(v) for v in answer.outputs["y"]]

    def send(self, *rows: float, deadline_s: float | None = None) -> "asyncio.Task[list[float]]":
        return asyncio.ensure_future(self.ask(*rows, deadline_s=deadline_s))


def test_every_caller_gets_its_own_rows() -> None:
    """What waited while the device was busy runs in one batch, and each caller gets its rows, in order."""

    async def scenario() -> None:
        bench = Bench()
        answers = await asyncio.gather(bench.ask(1), bench.ask(2, 3), bench.ask(4))
        assert answers == [[2], [4, 6], [8]]
        assert bench.device.batches == [[1], [2, 3, 4]]
        assert bench.observed.rows == [1, 3]

    run(scenario())


def test_an_oversized_request_comes_back_whole() -> None:
    """Ten rows through batches of four are answered once, rejoined in their order."""

    async def scenario() -> None:
        bench = Bench()
        assert await bench.ask(*range(10)) == [2 * n for n in range(10)]
        assert [len(rows) for rows in bench.device.batches] == [4, 4, 2]

    run(scenario())


def test_the_timer_sends_what_nobody_joins() -> None:
    """After a burst one caller comes alone: it waits exactly the batch timeout, not longer."""

    async def scenario() -> None:
        bench = Bench(batch=8, wait_s=0.01)
        await asyncio.gather(*(bench.ask(n) for n in range(8)))
        began_s = bench.now()
        await bench.ask(1)
        assert bench.device.started_s[-1] == pytest.approx(began_s + 0.01)

    run(scenario())


def test_a_deadline_is_answered_on_time_while_the_device_is_busy() -> None:
    """A request whose deadline passes in the queue fails at its deadline, and is never run."""

    async def scenario() -> None:
        bench = Bench()
        first = bench.send(1)
        await asyncio.sleep(0)
        began_s = bench.now()
        with pytest.raises(DeadlineExceeded):
            await bench.ask(2, deadline_s=began_s + 0.2)
        assert bench.now() == pytest.approx(began_s + 0.2)
        assert await first == [2]
        assert bench.device.batches == [[1]]

    run(scenario())


def test_a_deadline_that_has_passed_is_refused_at_once() -> None:
    """Work that nobody waits for any more is not queued."""

    async def scenario() -> None:
        bench = Bench()
        with pytest.raises(DeadlineExceeded):
            await bench.ask(1, deadline_s=bench.now())
        assert bench.policy.queued_rows == 0

    run(scenario())


@pytest.mark.parametrize("timeout_s", [0.0, -1.0])
def test_who_has_no_time_left_is_refused_before_it_is_queued(timeout_s: float) -> None:
    """By an error there and then: not even a full queue is asked."""

    async def scenario() -> None:
        bench = Bench(queue=1)
        running, waiting = bench.send(1), bench.send(2)
        await asyncio.sleep(0)
        bound = bench.model.signature.bind({"x": np.ones(1)})
        with pytest.raises(DeadlineExceeded):
            bench.batcher.submit(bound, pytest.fail, timeout_s)
        assert await asyncio.gather(running, waiting) == [[2], [4]]

    run(scenario())


def test_a_shorter_deadline_that_comes_later_is_kept() -> None:
    """The timer that was set for another is set anew, and the old one wakes nobody."""

    async def scenario() -> None:
        bench = Bench()
        bench.device.hangs = True
        wakes_s: list[float] = []
        wake, began_s = bench.batcher._wake, bench.now()
        bench.batcher._wake = lambda: (wakes_s.append(bench.now() - began_s), wake())  # type: ignore[method-assign]
        running = bench.send(1)
        await asyncio.sleep(0)
        late, early = (bench.send(2, deadline_s=began_s + seconds) for seconds in (0.4, 0.1))
        for asked, seconds in ((early, 0.1), (late, 0.4)):
            with pytest.raises(DeadlineExceeded):
                await asked
            assert bench.now() == pytest.approx(began_s + seconds)
        await asyncio.sleep(1)
        assert wakes_s == pytest.approx([0.1, 0.4])
        running.cancel()

    run(scenario())


def test_a_caller_that_leaves_is_not_run() -> None:
    """Cancelled while it waits, a request frees its place; its neighbours are answered."""

    async def scenario() -> None:
        bench = Bench()
        first, leaving, staying = bench.send(1), bench.send(2), bench.send(3)
        await asyncio.sleep(0)
        leaving.cancel()
        assert await first == [2]
        assert await staying == [6]
        assert bench.device.batches == [[1], [3]]

    run(scenario())


def test_a_caller_that_leaves_mid_batch_disturbs_nobody() -> None:
    """Its rows run to the end, its answer goes nowhere, the others get theirs."""

    async def scenario() -> None:
        bench = Bench()
        first, leaving, staying = bench.send(1), bench.send(2), bench.send(3)
        await first
        await asyncio.sleep(RUN_S / 2)
        leaving.cancel()
        assert await staying == [6]
        assert bench.device.batches == [[1], [2, 3]]

    run(scenario())


def test_an_error_reaches_only_the_caller_that_caused_it() -> None:
    """One part of a batch fails: its caller gets the error, the others their rows."""

    async def scenario() -> None:
        bench = Bench()
        bench.device.fails = {2.0}
        first, poison, good = bench.send(1), bench.send(2), bench.send(3)
        assert await first == [2]
        with pytest.raises(ModelFailed, match="poison"):
            await poison
        assert await good == [6]

    run(scenario())


def test_a_failing_slice_ends_an_oversized_request_once() -> None:
    """The first failing slice answers the caller; the rows that still wait are dropped, the device is free."""

    async def scenario() -> None:
        bench = Bench()
        bench.device.fails = {1.0}
        with pytest.raises(ModelFailed):
            await bench.ask(*range(10))
        assert bench.policy.queued_rows == 0
        assert await bench.ask(7) == [14]
        assert bench.device.batches == [[0, 1, 2, 3], [7]]

    run(scenario())


def test_a_batch_that_is_too_much_for_memory_runs_again_in_halves() -> None:
    """Nobody notices: each caller gets its rows, and the next batches are as small from the start."""

    async def scenario() -> None:
        bench = Bench(batch=8)
        bench.device.fits = 3
        first = bench.send(0)
        await asyncio.sleep(0)
        assert await asyncio.gather(*(bench.ask(n, n + 10) for n in range(3))) == [
            [2 * n, 2 * n + 20] for n in range(3)
        ]
        assert [len(rows) for rows in bench.device.batches] == [1, 6, 2, 2, 2]
        assert await first == [0]
        assert bench.policy.ceilings.lowest() == 3
        assert bench.observed.shortages == 1

    run(scenario())


def test_the_fewest_rows_without_memory_count() -> None:
    """Parts of one batch may have run in smaller ones before they failed: the ceiling is half of the smallest."""

    async def scenario() -> None:
        bench = Bench(batch=4)
        bench.device.hangs = True
        sent = [bench.send(0, 1, 2, 3)] + [bench.send(n) for n in range(4)]
        await asyncio.sleep(0)
        (first,) = bench.batcher._running
        bench.batcher._done(first, [{"y": np.ones(4)}], RUN_S)
        (batch,) = bench.batcher._running
        bench.batcher._done(batch, [OutOfMemory(rows) for rows in (4, 2, 4, 4)], RUN_S)
        assert bench.policy.ceilings.lowest() == 1
        for task in sent:
            task.cancel()

    run(scenario())


def test_a_request_above_the_ceiling_is_split_and_rejoined() -> None:
    """It was admitted whole, and comes back whole."""

    async def scenario() -> None:
        bench = Bench(batch=8)
        bench.device.fits = 3
        assert await bench.ask(*range(8)) == [2 * n for n in range(8)]
        assert [len(rows) for rows in bench.device.batches] == [8, 4, 2, 2, 2, 2]
        assert not bench.batcher._pieces

    run(scenario())


def test_one_row_without_memory_is_its_callers_end() -> None:
    """There is no smaller batch; the device is free for others."""

    async def scenario() -> None:
        bench = Bench(batch=2)
        bench.device.fits = 0
        with pytest.raises(OutOfMemory, match="ran out of memory with rows = 1"):
            await bench.ask(1, 2)
        assert [len(rows) for rows in bench.device.batches] == [2, 1]
        assert bench.policy.queued_rows == 0

    run(scenario())


def test_who_leaves_while_memory_runs_out_is_not_run_again() -> None:
    """Of a batch that must run again the rows of a caller that left are dropped."""

    async def scenario() -> None:
        bench = Bench(batch=4)
        bench.device.fits = 3
        first = bench.send(0)
        await asyncio.sleep(0)
        leaving, *staying = (bench.send(n) for n in range(1, 5))
        await asyncio.sleep(1.5 * RUN_S)
        leaving.cancel()
        assert await asyncio.gather(first, *staying) == [[0], [4], [6], [8]]
        assert bench.device.batches == [[0], [1, 2, 3, 4], [2, 3], [4]]

    run(scenario())


def test_a_batch_that_failed_teaches_no_time() -> None:
    """Its halvings took longer than such a batch does."""

    async def scenario() -> None:
        bench = Bench()
        bench.device.fails = {1.0}
        with pytest.raises(ModelFailed):
            await bench.ask(1)
        family = Signature(("x",)).fit({"x": np.array([1])}).bucket.family
        assert bench.policy.run_times.coefficients(family) == (0.0, 0.0)
        await bench.ask(2)
        assert bench.policy.run_times.coefficients(family) == (RUN_S, 0.0)

    run(scenario())


def test_a_full_queue_refuses_the_newest_only() -> None:
    """Those that were accepted are answered."""

    async def scenario() -> None:
        bench = Bench(queue=2)
        accepted = [bench.send(1)]
        await asyncio.sleep(0)
        accepted += [bench.send(2), bench.send(3)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await bench.ask(4)
        assert await asyncio.gather(*accepted) == [[2], [4], [6]]

    run(scenario())


def test_abandoned_requests_are_told_to_come_again() -> None:
    """At the end of a drain what has not begun is refused as retriable; what runs is finished."""

    async def scenario() -> None:
        bench = Bench()
        running, waiting = bench.send(1), bench.send(2)
        await asyncio.sleep(0)
        bench.batcher.abandon()
        with pytest.raises(Unavailable):
            await waiting
        assert await running == [2]

    run(scenario())


def test_flush_ends_the_wait() -> None:
    """From then on rows go at once."""

    async def scenario() -> None:
        bench = Bench(batch=8, wait_s=5.0)
        await asyncio.gather(*(bench.ask(n) for n in range(8)))
        began_s = bench.now()
        waiting = bench.send(1)
        await asyncio.sleep(0)
        bench.batcher.flush()
        await waiting
        assert bench.now() == pytest.approx(began_s + RUN_S)

    run(scenario())


def test_closing_answers_what_was_taken_then_stops_the_devices() -> None:
    """Nobody waits for company any more, every batch that runs is waited for, and who comes later is refused."""

    async def scenario() -> None:
        bench = Bench(batch=4, wait_s=5.0, in_flight=2)
        assert await bench.ask(0) == [0]
        bench.policy.expected_rows = 8.0
        sent = [bench.send(*range(4)), bench.send(4), bench.send(5)]
        await asyncio.sleep(RUN_S / 2)
        assert bench.device.batches == [[0], [0, 1, 2, 3]]
        began_s = bench.now()
        closing = asyncio.ensure_future(bench.batcher.close())
        await asyncio.sleep(RUN_S)
        assert not closing.done()
        assert not bench.device.is_stopped
        with pytest.raises(Unavailable, match="unloaded or replaced"):
            await bench.ask(6)
        await closing
        assert bench.device.is_stopped
        assert bench.now() == pytest.approx(began_s + 1.5 * RUN_S)
        assert [task.result() for task in sent] == [[0, 2, 4, 6], [8], [10]]

    run(scenario())


def test_nothing_is_kept_of_a_split_request_that_is_answered() -> None:
    """Its pieces are joined once, and go."""

    async def scenario() -> None:
        bench = Bench()
        answers: list[Any] = []
        bench.batcher.submit(bench.model.signature.bind({"x": np.arange(10.0)}), answers.append)
        await asyncio.sleep(4 * RUN_S)
        assert [answer["y"].tolist() for answer in answers] == [[2.0 * n for n in range(10)]]
        assert not bench.batcher._pieces

    run(scenario())


def test_an_answer_that_needs_no_joining_is_not_copied() -> None:
    """The outputs are what the device gave."""

    async def scenario() -> None:
        bench = Bench()
        answers: list[Any] = []
        bench.batcher.submit(bench.model.signature.bind({"x": np.ones(2)}), answers.append)
        await asyncio.sleep(1.5 * RUN_S)
        assert answers[0] is bench.device.results[0]

    run(scenario())


def test_a_timer_that_is_due_at_once_is_a_timer_too() -> None:
    """uvloop, which the server runs on, gives a plain handle for a time that has come; the next arrival finds it set."""

    async def scenario() -> None:
        bench = Bench(wait_s=1e-9)
        bench.policy.expected_rows = 4.0
        assert await asyncio.gather(*(bench.ask(n) for n in range(4))) == [[0], [2], [4], [6]]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


@pytest.mark.parametrize(("own_s", "transport_s"), [(0.1, 9.0), (9.0, 0.1), (0.1, None), (None, 0.1)])
def test_the_shorter_time_limit_counts(own_s: float | None, transport_s: float | None) -> None:
    """A request's own timeout and its transport's: who waits behind a batch is answered when the first of them ends."""

    async def scenario() -> None:
        bench = Bench()
        running = bench.send(1)
        await asyncio.sleep(0)
        began_s = bench.now()
        with pytest.raises(DeadlineExceeded):
            await bench.model.infer(InferRequest({"x": np.ones(1)}, Terms(timeout_s=own_s)), None, transport_s)
        assert bench.now() == pytest.approx(began_s + 0.1)
        await running

    run(scenario())


def test_pieces_of_a_request_that_failed_or_left_are_dropped() -> None:
    """Of a request split over batches nothing stays when a later batch of it fails, or when its caller goes."""

    async def scenario() -> None:
        bench = Bench()
        bench.device.fails = {9.0}
        with pytest.raises(ModelFailed):
            await bench.ask(*range(10))
        leaving = bench.send(*range(8))
        await asyncio.sleep(1.5 * RUN_S)
        assert bench.batcher._pieces
        leaving.cancel()
        await asyncio.sleep(2 * RUN_S)
        assert not bench.batcher._pieces

    run(scenario())


def test_only_a_full_batch_goes_ahead_of_one_that_runs() -> None:
    """A device that takes two batches gets a second one when waiting could not make it larger, not before."""

    async def scenario() -> None:
        bench = Bench(batch=4, in_flight=2)
        sent = [bench.send(0)]
        await asyncio.sleep(0)
        sent += [bench.send(n) for n in range(1, 4)]
        await asyncio.sleep(RUN_S / 2)
        assert bench.device.batches == [[0]]
        sent += [bench.send(4)]
        await asyncio.sleep(0)
        assert bench.device.batches == [[0], [1, 2, 3, 4]]
        sent += [bench.send(n) for n in range(5, 11)]
        await asyncio.sleep(0)
        assert len(bench.device.batches) == 2
        await asyncio.gather(*sent)
        assert bench.device.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]

    run(scenario())


def test_what_does_not_overlap_is_given_no_long_batch_ahead() -> None:
    """It is more use where a deadline, or another device, may still take it."""

    async def scenario() -> None:
        bench = Bench(batch=4, in_flight=2)
        bench.device.overlaps = False
        sent = [bench.send(0), *(bench.send(n) for n in range(1, 5))]
        await asyncio.sleep(RUN_S / 2)
        assert bench.device.batches == [[0]]
        await asyncio.gather(*sent)
        assert bench.device.batches == [[0], [1, 2, 3, 4]]

    run(scenario())


def test_an_oversized_request_fills_a_device_that_takes_two() -> None:
    """Its first two batches are handed over at once, the third when one has ended."""

    async def scenario() -> None:
        bench = Bench(in_flight=2)
        began_s = bench.now()
        assert await bench.ask(*range(10)) == [2 * n for n in range(10)]
        assert [at - began_s for at in bench.device.started_s] == pytest.approx([0, 0, RUN_S])

    run(scenario())


def test_a_second_device_that_is_free_is_used() -> None:
    """With two devices a lone row runs at once beside a batch."""

    async def scenario() -> None:
        bench = Bench(devices=2, in_flight=2)
        began_s = bench.now()
        first = bench.send(1)
        await asyncio.sleep(0)
        assert await asyncio.gather(first, bench.ask(2)) == [[2], [4]]
        assert bench.now() == pytest.approx(began_s + RUN_S)

    run(scenario())


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_model_that_hangs_is_reported_while_it_hangs(in_flight: int) -> None:
    """At its time limit its callers and those who wait are told to go elsewhere, the process is told once, and who comes
    later is refused at once; a device that takes two batches has the limit for each of them."""

    async def scenario() -> None:
        bench = Bench(model_timeout_s=2.0, in_flight=in_flight)
        bench.device.hangs = True
        began_s = bench.now()
        running, waiting = bench.send(1), bench.send(2)
        for asked in (running, waiting):
            with pytest.raises(ModelBroken, match="has run for more than 2 s"):
                await asked
        assert bench.now() == pytest.approx(began_s + 2.0 * in_flight)
        assert len(bench.broken) == 1
        for _ in range(2):
            with pytest.raises(ModelBroken):
                await bench.ask(3)
        assert bench.now() == pytest.approx(began_s + 2.0 * in_flight)
        assert len(bench.broken) == 1
        assert bench.device.batches == [[1]]
        assert bench.policy.queued_rows == 0

    run(scenario())


def test_a_batch_that_is_halved_does_not_hang() -> None:
    """The time limit is of one run: the search for the request that fails may take many of them."""

    async def scenario() -> None:
        bench = Bench(model_timeout_s=2.0)
        bench.device.hangs = True
        began_s = bench.now()
        asked = bench.send(1)
        for _ in range(3):
            await asyncio.sleep(1.5)
            bench.device.halved_s = bench.now()
        with pytest.raises(ModelBroken):
            await asked
        assert bench.now() == pytest.approx(began_s + 3 * 1.5 + 2.0)

    run(scenario())


def test_a_batch_that_comes_back_after_all_changes_nothing() -> None:
    """Its callers were answered; the model stays broken."""

    async def scenario() -> None:
        bench = Bench(model_timeout_s=RUN_S / 2)
        with pytest.raises(ModelBroken):
            await bench.ask(1)
        await asyncio.sleep(RUN_S)
        with pytest.raises(ModelBroken):
            await bench.ask(2)
        assert bench.device.batches == [[1]]
        assert len(bench.broken) == 1

    run(scenario())


def test_a_batch_that_runs_out_of_memory_after_all_does_not_run_again() -> None:
    """Its callers were answered when it hung; a broken model runs nothing."""

    async def scenario() -> None:
        bench = Bench(model_timeout_s=RUN_S / 2)
        bench.device.fits = 1
        with pytest.raises(ModelBroken):
            await bench.ask(1, 2)
        await asyncio.sleep(2 * RUN_S)
        assert bench.device.batches == [[1, 2]]
        assert bench.observed.shortages == 0

    run(scenario())


def test_batches_within_the_limit_break_nothing() -> None:
    """Each batch has the whole of it."""

    async def scenario() -> None:
        bench = Bench(model_timeout_s=1.5 * RUN_S)
        assert await asyncio.gather(*(bench.ask(n) for n in range(9))) == [[2 * n] for n in range(9)]
        await asyncio.sleep(10 * RUN_S)
        assert not bench.broken

    run(scenario())


def test_a_broken_device_is_reported_once() -> None:
    """The batch's callers and those who wait get a retriable error; nothing is handed to the device any more."""

    async def scenario() -> None:
        bench = Bench()
        bench.device.breaks = True
        running, waiting = bench.send(1), bench.send(2)
        for asked in (running, waiting):
            with pytest.raises(ModelBroken, match="illegal memory access") as raised:
                await asked
            assert raised.value.retryable
        with pytest.raises(ModelBroken):
            await bench.ask(3)
        assert len(bench.broken) == 1
        assert bench.device.batches == [[1]]

    run(scenario())


def test_two_batches_that_a_device_broke_are_one_report() -> None:
    """The second one's results tell nothing new."""

    async def scenario() -> None:
        bench = Bench(in_flight=2)
        bench.device.breaks = True
        sent = [bench.send(n) for n in range(9)]
        for asked in sent:
            with pytest.raises(ModelBroken):
                await asked
        await asyncio.sleep(2 * RUN_S)
        assert len(bench.device.batches) == 2
        assert len(bench.broken) == 1

    run(scenario())


def test_a_model_that_hangs_can_be_closed() -> None:
    """Closing waits for the batches that run, but not for one that never ends."""

    async def scenario() -> None:
        bench = Bench(model_timeout_s=2.0)
        bench.device.hangs = True
        began_s = bench.now()
        running = bench.send(1)
        await asyncio.sleep(0)
        await bench.batcher.close()
        assert bench.now() == pytest.approx(began_s + 2.0)
        with pytest.raises(ModelBroken):
            await running

    run(scenario())


def zeros(rows: int) -> Bound:
    return Signature(("x",)).bind({"x": np.zeros(rows)})


def taught(scenario: Callable[[Bench], Coroutine[Any, Any, None]], **bench: Any) -> Bench:
    """What a batcher with lessons of 1 and 4 rows did, in virtual time; a batch takes half a second."""

    async def run() -> Bench:
        made = Bench(**bench)
        made.batcher.teach([zeros(1), zeros(4)])
        await scenario(made)
        return made

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(run())


async def nothing(bench: Bench) -> None:
    await asyncio.sleep(3)


def test_lessons_run_in_a_pause_and_leave_no_trace_but_what_they_teach() -> None:
    """They are in no metric, make nobody expected, and a lone caller after them is answered at once."""

    async def scenario(bench: Bench) -> None:
        await nothing(bench)
        assert bench.device.batches == [[0], [0] * 4]
        assert bench.policy.run_times.estimate_s(4, zeros(1).bucket) == RUN_S
        assert (bench.policy.expected_rows, bench.policy.running_rows, bench.observed.rows) == (0, 0, [])
        asked_s = bench.now()
        await bench.ask(1)
        assert bench.now() == pytest.approx(asked_s + RUN_S)

    taught(scenario, wait_s=0.3)


def test_callers_in_a_loop_never_meet_a_lesson() -> None:
    """A request that follows another's answer is run at once; the lessons come when the callers have gone."""

    async def scenario(bench: Bench) -> None:
        for row in range(1, 11):
            await bench.ask(row)
        assert bench.device.batches == [[row] for row in range(1, 11)]
        await nothing(bench)
        assert bench.device.batches[10:] == [[0], [0] * 4]

    taught(scenario)


def test_a_lesson_does_not_run_before_a_request_that_waits_for_company() -> None:
    """The device is idle for longer than a pause, but somebody is here."""

    async def scenario(bench: Bench) -> None:
        await asyncio.gather(bench.ask(1, 1, 1), bench.ask(2, 2, 2))
        await bench.ask(3)  # of six that are expected, for a second
        assert bench.device.batches == [[1, 1, 1], [2, 2, 2], [3]]
        assert bench.device.started_s[2] - bench.device.started_s[1] == pytest.approx(RUN_S + 1.0)

    taught(scenario, wait_s=1.0)


def test_a_request_waits_for_one_lesson_at_most() -> None:
    """It comes while one runs: it is the next, and the other lesson waits for another pause."""

    async def scenario(bench: Bench) -> None:
        await asyncio.sleep(0.2)
        assert bench.device.batches == [[0]]
        answered = [bench.send(1), bench.send(2)]
        await asyncio.gather(*answered)
        assert bench.device.batches == [[0], [1, 2]]
        assert bench.device.started_s[1] - bench.device.started_s[0] == pytest.approx(RUN_S)

    taught(scenario)


def test_every_device_has_its_lesson() -> None:
    """Two that are idle each run it, so that neither meets a size for the first time with a caller's rows."""
    bench = taught(nothing, devices=2)
    assert bench.device.batches == [[0], [0], [0] * 4, [0] * 4]


def test_a_lesson_without_memory_lowers_the_ceiling() -> None:
    """Nobody is told, and the next requests come in batches that fit."""

    async def scenario(bench: Bench) -> None:
        bench.device.fits = 2
        await nothing(bench)
        assert bench.policy.ceilings.rows(zeros(1).bucket, 4) == 2
        assert bench.observed.shortages == 0
        assert bench.policy.run_times.estimate_s(1, zeros(1).bucket) == RUN_S

    taught(scenario)


def test_a_lesson_that_fails_is_forgotten() -> None:
    """The model raised, or refused zeros: its time says nothing, and callers are served."""

    async def scenario(bench: Bench) -> None:
        bench.device.fails = {0.0}
        await nothing(bench)
        assert bench.policy.run_times.usual() is None
        assert await bench.ask(1) == [2]

    taught(scenario)


def test_a_lesson_that_breaks_the_device_breaks_the_model() -> None:
    """As a request would: everybody is told to go elsewhere."""

    async def scenario(bench: Bench) -> None:
        bench.device.breaks = True
        await nothing(bench)
        assert len(bench.broken) == 1
        with pytest.raises(ModelBroken):
            await bench.ask(1)
        assert len(bench.device.batches) == 1

    taught(scenario)


def test_a_lesson_that_hangs_is_noticed() -> None:
    """The model's time limit holds for lessons too, and who waits behind one is told."""

    async def scenario(bench: Bench) -> None:
        bench.device.hangs = True
        await asyncio.sleep(0.2)
        with pytest.raises(ModelBroken):
            await bench.ask(1)

    taught(scenario, model_timeout_s=2.0)


def test_lessons_end_with_the_server_or_the_model() -> None:
    """One that runs is waited for when the model is unloaded; those that are left are dropped, as they are by a drain."""

    async def unload(bench: Bench) -> None:
        began_s = bench.now()
        await asyncio.sleep(0.2)
        await bench.batcher.close()
        assert bench.now() == pytest.approx(began_s + 0.1 + RUN_S)
        await nothing(bench)

    async def drain(bench: Bench) -> None:
        bench.batcher.flush()
        await nothing(bench)

    assert taught(unload).device.batches == [[0]]
    assert taught(drain).device.batches == []


def alone(bench: Bench, value: float) -> tuple[bool, list[Any]]:
    """Whether a row runs at once and by itself, and its answers so far."""
    answers: list[Any] = []
    return bench.batcher.run_alone(Signature(("x",)).bind({"x": np.array([value])}), answers.append), answers


def test_a_row_that_its_device_prepares_runs_at_once() -> None:
    """Nothing else runs meanwhile, and what comes is queued behind it."""

    async def scenario() -> None:
        bench = Bench()
        begun, answers = alone(bench, 1)
        assert begun
        assert not alone(bench, 2)[0]
        assert await bench.ask(3) == [6]
        assert [answer["y"].tolist() for answer in answers] == [[2]]
        assert bench.device.batches == [[1], [3]]
        assert alone(bench, 4)[0]

    run(scenario())


def test_the_time_of_preparing_is_not_the_models() -> None:
    """Of a row that its device has prepared the policy learns what the model took, and in the bucket that it was given."""

    async def scenario() -> None:
        bench = Bench()
        bound = Signature(("x",)).bind({"x": np.array([1.0])})
        bench.batcher.run_alone(bound, lambda answer: None)
        bound.bucket, bound.preparing_s = Bucket("prepared"), 0.4
        await asyncio.sleep(1)
        assert bench.policy.run_times.estimate_s(1, Bucket("prepared")) == pytest.approx(RUN_S - 0.4)

    run(scenario())


def test_nothing_runs_alone_where_it_could_do_harm() -> None:
    """Beside a lesson, in a model that was closed, and where a model that takes long counts as one that hangs."""

    async def scenario() -> None:
        bench = Bench()
        bench.batcher.teach([Signature(("x",)).bind({"x": np.array([0.0])})])
        await asyncio.sleep(0.15)
        assert bench.device.batches == [[0]]
        assert not alone(bench, 1)[0]
        await asyncio.sleep(1)
        await bench.batcher.close()
        assert not alone(bench, 1)[0]
        assert not alone(Bench(model_timeout_s=5.0), 1)[0]

    run(scenario())


def test_who_left_gets_no_answer_from_a_row_alone() -> None:
    """It runs to its end, and nobody is told."""

    async def scenario() -> None:
        bench = Bench()
        bound, answers = Signature(("x",)).bind({"x": np.array([1.0])}), []
        assert bench.batcher.run_alone(bound, answers.append)
        bench.batcher.cancel(bound)
        await asyncio.sleep(1)
        assert not answers
        assert bench.policy.running_rows == 0

    run(scenario())
