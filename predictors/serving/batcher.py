"""The asyncio driver of the batching policy: one timer (none while nothing waits) and the model's devices.

All decisions are the policy's. The driver tells it of arrivals, departures, ends of batches and of the time, hands the
batches that it forms to a device, and gives each caller the rows that are its own.

A device that copies in one batch while it computes another wants a second one ahead. It gets it only when a full batch
waits: then waiting would make it no larger (docs/decisions.md).

Lessons (`warm_up.py`) are batches that nobody waits for. They run when nothing else has happened for `_QUIET_S`, outside of
the policy's queue, so that they make nobody wait for company; what waits for one that runs has come after a pause.

A model that hangs, or whose device is broken, cannot be mended in this process: from then on everybody is told to try
elsewhere, and `on_broken` says it once to whoever runs the process.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from ..batching.policy import Batch, BatchingPolicy, Slice
from ..errors import DeadlineExceeded, ModelBroken, OutOfMemory, TorporError, Unavailable
from ..protocol.datatypes import Array
from ..signature import Bound
from .device_thread import Done, Result

logger = logging.getLogger("torpor.model")

_QUIET_S = 0.1
"""Callers in a loop leave shorter pauses than this, and the request that woke a server comes sooner after its start."""

Outputs = dict[str, Array]

Answer = Callable[[Outputs | TorporError], None]


class Observer(Protocol):
    """Learns of each batch that ran, and of those for which there was no memory."""

    def batch_ran(self, batch: Batch[Bound], seconds: float) -> None: ...
    def ran_out_of_memory(self) -> None: ...


class Devices(Protocol):
    """What runs the batches; `DevicePool` is the real one. devices: batches that run at the same time.

    in_flight: batches that they want to be given at once, at least as many. overlaps: whether they do something of those that
    are more while others run. halved_s: when the last run of a part of a batch that had failed began, on the clock of
    time.monotonic.
    """

    @property
    def devices(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def overlaps(self) -> bool: ...
    @property
    def halved_s(self) -> float: ...
    def submit(self, parts: Sequence[Bound], done: Done, loop: asyncio.AbstractEventLoop) -> None: ...
    def stop(self) -> None: ...


class Batcher:
    """One model's way from single requests to batches. Belongs to one event loop.

    model_timeout_s: a call of `predict` that runs for longer hangs; 0: no limit. on_broken: called once, when the model
    will answer nobody any more.
    """

    def __init__(
        self,
        policy: BatchingPolicy[Bound],
        devices: Devices,
        observer: Observer,
        model_timeout_s: float = 0.0,
        on_broken: Callable[[ModelBroken], None] | None = None,
    ) -> None:
        self.policy = policy
        self.broken: ModelBroken | None = None
        self._devices = devices
        self._at_once, self._most_running = devices.devices, devices.in_flight
        self._observer = observer
        self._model_timeout_s = model_timeout_s
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._running: dict[Batch[Bound], asyncio.TimerHandle | None] = {}
        self._busy = not self._most_running
        self._flush = False
        self._is_closed = False
        self._emptied = asyncio.Event()
        self._timer: asyncio.Handle | None = None
        self._timer_s = 0.0
        self._lessons: deque[Bound] = deque()
        self._quiet_since_s = self._loop.time()
        # Of requests that were split over batches: the outputs so far, by the row that they start at.
        self._pieces: dict[Bound, dict[int, Outputs]] = {}

    @property
    def begins_ahead(self) -> bool:
        """Whether a device is given a batch while it runs another."""
        return self._most_running > self._at_once

    def submit(self, bound: Bound, answer: Answer, timeout_s: float | None = None) -> None:
        """Queue a request. `answer` gets its outputs, all of its rows and no others, or its error.

        timeout_s: after that nobody wants them; None for no limit. Raises QueueFull, Unavailable, and DeadlineExceeded if
        there is no time left; the error that `answer` gets is DeadlineExceeded, Unavailable or the model's.
        """
        if self._is_closed:
            raise self._refusal()
        now = self._loop.time()
        if timeout_s is not None:
            if timeout_s <= 0:
                raise DeadlineExceeded("the deadline had passed when the request arrived")
            bound.deadline_s = now + timeout_s
        bound.answer = answer
        self.policy.offer(bound, now)
        if not self._busy or timeout_s is not None:  # else the end of the batch that runs is the next thing to happen
            self._step(now)

    def run_alone(self, bound: Bound, answer: Answer) -> bool:
        """Run a single row at once and by itself, if nothing else is there or expected; whether it does.

        For a request that its device still has to prepare: until then nobody knows which others it could be batched with.
        Not where a model may hang for so long only: what prepares it may take longer.
        """
        if self._running or self._is_closed or self._model_timeout_s:
            return False
        batch = self.policy.take_alone(bound, self._loop.time())
        if batch is None:
            return False
        bound.answer = answer
        self._hand_over(batch, [bound], self._ran_alone)
        return True

    def cancel(self, bound: Bound) -> None:
        """Nobody waits for the answer any more: drop the rows that still wait, and give it to nobody."""
        bound.answer = None
        self.policy.cancel(bound)
        self._pieces.pop(bound, None)

    def teach(self, lessons: Iterable[Bound]) -> None:
        """Run each on every device, one after the other whenever there is nothing to do, and let the policy learn from them."""
        self._lessons.extend(lessons)
        self._look_for_quiet()

    def resize(self) -> None:
        """The devices have become more or fewer; without any, what waits is refused."""
        self._at_once, self._most_running = self._devices.devices, self._devices.in_flight
        self._busy = len(self._running) >= self._most_running
        if not self._at_once:
            self._refuse(Unavailable("the model has no workers"))
        self._step(self._loop.time())

    def flush(self) -> None:
        """From now on wait for nobody: the server is draining."""
        self._flush = True
        self._lessons.clear()
        self._step(self._loop.time())

    async def close(self) -> None:
        """Take nothing more, answer what was taken, and unload the model."""
        self._is_closed = True
        self.flush()
        if self._running:
            await self._emptied.wait()
        self._devices.stop()

    def abandon(self) -> None:
        """Refuse everything that waits: it has not begun, so its callers may send it again elsewhere."""
        self._refuse(Unavailable("the server is shutting down"))

    def _refuse(self, error: TorporError) -> None:
        for item in self.policy.clear():
            self._fail(item, error)

    def _refusal(self) -> Unavailable:
        if self.broken is not None:
            return ModelBroken(str(self.broken))
        return Unavailable("the model has just been unloaded or replaced")

    def _step(self, now: float) -> None:
        """Do what is due: expire, start a batch if the device is free, set the timer for what is due later."""
        policy = self.policy
        if policy.queued_deadlines:
            for item in policy.expire(now):
                self._fail(item, DeadlineExceeded("the deadline passed while the request waited for the model"))
        while not self._busy:
            batch = policy.take(now, flush=self._flush, ahead=not self._is_free(), overlaps=self._devices.overlaps)
            if batch is None:
                break
            self._start(batch)
        self._set_timer(policy.wake_at(now) if self._is_free() else policy.next_deadline_s())

    def _is_free(self) -> bool:
        return len(self._running) < self._at_once

    def _start(self, batch: Batch[Bound]) -> None:
        self._hand_over(batch, [item.part(start, stop) for item, start, stop in batch.slices], self._done)

    def _hand_over(
        self, batch: Batch[Bound], parts: list[Bound], done: Callable[[Batch[Bound], list[Result], float], None]
    ) -> None:
        timer = None
        if self._model_timeout_s:
            # A batch that was handed over ahead may stand behind others on its device.
            limit_s = self._model_timeout_s * self._most_running / self._at_once
            timer = self._loop.call_later(limit_s, self._overdue, batch, limit_s)
        self._running[batch] = timer
        self._busy = len(self._running) >= self._most_running
        self._devices.submit(parts, lambda results, seconds: done(batch, results, seconds), self._loop)

    def _overdue(self, batch: Batch[Bound], limit_s: float) -> None:
        """A batch has not ended in time. One that fails runs again in halves, each of which may take as long."""
        left_s = self._devices.halved_s + limit_s - self._loop.time()
        if left_s > 0:
            self._running[batch] = self._loop.call_later(left_s, self._overdue, batch, limit_s)
            return
        self._break(ModelBroken(
            f"the model hangs: a batch has run for more than {self._model_timeout_s:g} s; another server may answer"
        ))  # fmt: skip

    def _look_for_quiet(self) -> None:
        """Run the next lesson if nothing has run or waited for `_QUIET_S`, and look again later while there are more."""
        if not self._lessons:
            return
        now = self._loop.time()
        if not self._running and not self.policy.queued_rows and now >= self._quiet_since_s + _QUIET_S:
            lesson = self._lessons.popleft()
            for _ in range(self._at_once):  # none has anything to do, so each gets one
                batch: Batch[Bound] = Batch([], lesson.rows, lesson.bucket, now)
                self._hand_over(batch, [lesson], self._taught)
        self._loop.call_later(_QUIET_S, self._look_for_quiet)

    def _taught(self, batch: Batch[Bound], results: list[Result], seconds: float) -> None:
        self._ended(batch)
        (result,) = results
        if isinstance(result, ModelBroken):
            self._break(result)
        elif isinstance(result, OutOfMemory) and batch.rows > 1:
            self.policy.ceilings.ran_out(batch.bucket, batch.rows)
        elif not isinstance(result, TorporError):
            self.policy.run_times.observe(batch.rows, batch.bucket, seconds)
        self._step(self._loop.time())
        self._note_empty()

    def _break(self, error: ModelBroken) -> None:
        """Nobody is answered any more, neither those whose batches run nor those who wait nor those who come."""
        if self.broken is not None:
            return
        logger.error("%s", error)
        self.broken = error
        self._is_closed = True
        self._lessons.clear()
        for batch in self._running:
            for bound, _, _ in batch.slices:
                self._fail(bound, error)
        self._refuse(error)
        self._emptied.set()
        if self._on_broken is not None:
            self._on_broken(error)

    def _set_timer(self, wake_s: float | None) -> None:
        if self._timer is not None:
            if wake_s is not None and self._timer_s <= wake_s:
                return  # it wakes early enough, and then sets itself anew: cheaper than a new timer for each arrival
            self._timer.cancel()
            self._timer = None
        if wake_s is not None:
            self._timer = self._loop.call_at(wake_s, self._wake)
            self._timer_s = wake_s

    def _wake(self) -> None:
        self._timer = None
        self._step(self._loop.time())

    def _done(self, batch: Batch[Bound], results: list[Result], seconds: float) -> None:
        self._ended(batch)
        failed = any(isinstance(result, TorporError) for result in results)
        self.policy.complete(batch, None if failed else seconds)
        if failed:
            self._settle(batch, results)
        self._step(self._loop.time())  # before the answers: the device need not wait until they are written
        for (bound, start, stop), result in zip(batch.slices, results, strict=True):
            answer = bound.answer
            if answer is None or isinstance(result, TorporError):  # its caller left, or it is settled
                continue
            if stop - start == bound.rows:
                bound.answer = None
                answer(result)
            else:
                self._gather(bound, start, result, answer)
        self._observer.batch_ran(batch, seconds)
        self._note_empty()

    def _ran_alone(self, batch: Batch[Bound], results: list[Result], seconds: float) -> None:
        ((bound, _, _),) = batch.slices
        batch.bucket = bound.bucket
        self._done(batch, results, seconds - bound.preparing_s)

    def _ended(self, batch: Batch[Bound]) -> None:
        timer = self._running.pop(batch)
        if timer is not None:
            timer.cancel()
        self._busy = len(self._running) >= self._most_running
        self._quiet_since_s = self._loop.time()

    def _note_empty(self) -> None:
        if self._is_closed and not self._running:
            self._emptied.set()

    def _settle(self, batch: Batch[Bound], results: list[Result]) -> None:
        """Answer the callers of what failed for good; what was too much for the device's memory runs again."""
        again: list[Slice[Bound]] = []
        rows = batch.rows
        for piece, result in zip(batch.slices, results, strict=True):
            if isinstance(result, OutOfMemory) and result.rows > 1 and self.broken is None:
                again.append(piece)
                rows = min(rows, result.rows)
            elif isinstance(result, TorporError):
                self._fail(piece.item, result)
                if isinstance(result, ModelBroken):
                    self._break(result)
        if again:
            self.policy.retry(batch, again, rows)
            self._observer.ran_out_of_memory()

    def _gather(self, bound: Bound, start: int, outputs: Outputs, answer: Answer) -> None:
        pieces = self._pieces.setdefault(bound, {})
        pieces[start] = outputs
        whole = {name: [pieces[at][name] for at in sorted(pieces)] for name in outputs}
        if sum(map(len, next(iter(whole.values())))) == bound.rows:
            del self._pieces[bound]
            bound.answer = None
            answer({name: np.concatenate(arrays) for name, arrays in whole.items()})

    def _fail(self, bound: Bound, error: TorporError) -> None:
        answer = bound.answer
        self.cancel(bound)
        if answer is not None:
            answer(error)
