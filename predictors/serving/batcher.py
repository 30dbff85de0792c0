"""The asyncio driver of the batching policy: one timer (none while nothing waits) and one device thread.

All decisions are the policy's. The driver tells it of arrivals, departures, ends of batches and of the time, hands the
batches that it forms to the device thread, and gives each caller the rows that are its own.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

import numpy as np

from ..batching.policy import Batch, BatchingPolicy, Slice
from ..errors import DeadlineExceeded, OutOfMemory, TorporError, Unavailable
from ..protocol.datatypes import Array
from ..signature import Bound
from .device_thread import DeviceThread, Result

Outputs = dict[str, Array]

Answer = Callable[[Outputs | TorporError], None]


class Observer(Protocol):
    """Learns of each batch that ran, and of those for which there was no memory."""

    def batch_ran(self, batch: Batch[Bound], seconds: float) -> None: ...
    def ran_out_of_memory(self) -> None: ...


class Batcher:
    """One model's way from single requests to batches. Belongs to one event loop."""

    def __init__(self, policy: BatchingPolicy[Bound], device: DeviceThread, observer: Observer) -> None:
        self.policy = policy
        self._device = device
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._busy = False
        self._flush = False
        self._is_closed = False
        self._emptied = asyncio.Event()
        self._timer: asyncio.Handle | None = None
        self._timer_s = 0.0
        # Of requests that were split over batches: the outputs so far, by the row that they start at.
        self._pieces: dict[Bound, dict[int, Outputs]] = {}

    def submit(self, bound: Bound, answer: Answer, timeout_s: float | None = None) -> None:
        """Queue a request. `answer` gets its outputs, all of its rows and no others, or its error.

        timeout_s: after that nobody wants them; None for no limit. Raises QueueFull, and DeadlineExceeded if there is no
        time left; the error that `answer` gets is DeadlineExceeded, Unavailable or the model's.
        """
        if self._is_closed:
            raise Unavailable("the model has just been unloaded or replaced")
        now = self._loop.time()
        if timeout_s is not None:
            if timeout_s <= 0:
                raise DeadlineExceeded("the deadline had passed when the request arrived")
            bound.deadline_s = now + timeout_s
        bound.answer = answer
        self.policy.offer(bound, now)
        if not self._busy or timeout_s is not None:  # else the end of the batch that runs is the next thing to happen
            self._step(now)

    def cancel(self, bound: Bound) -> None:
        """Nobody waits for the answer any more: drop the rows that still wait, and give it to nobody."""
        bound.answer = None
        self.policy.cancel(bound)
        self._pieces.pop(bound, None)

    def flush(self) -> None:
        """From now on wait for nobody: the server is draining."""
        self._flush = True
        self._step(self._loop.time())

    async def close(self) -> None:
        """Take nothing more, answer what was taken, and end the device's thread."""
        self._is_closed = True
        self.flush()
        if self._busy:
            await self._emptied.wait()
        self._device.stop()

    def abandon(self) -> None:
        """Refuse everything that waits: it has not begun, so its callers may send it again elsewhere."""
        for item in self.policy.clear():
            self._fail(item, Unavailable("the server is shutting down"))

    def _step(self, now: float) -> None:
        """Do what is due: expire, start a batch if the device is free, set the timer for what is due later."""
        policy = self.policy
        if policy.queued_deadlines:
            for item in policy.expire(now):
                self._fail(item, DeadlineExceeded("the deadline passed while the request waited for the model"))
        if not self._busy:
            batch = policy.take(now, flush=self._flush)
            if batch is not None:
                self._busy = True
                parts = [item.part(start, stop) for item, start, stop in batch.slices]
                self._device.submit(parts, lambda results, seconds: self._done(batch, results, seconds), self._loop)
        self._set_timer(policy.next_deadline_s() if self._busy else policy.wake_at(now))

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
        self._busy = False
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
        if self._is_closed and not self._busy:
            self._emptied.set()

    def _settle(self, batch: Batch[Bound], results: list[Result]) -> None:
        """Answer the callers of what failed for good; what was too much for the device's memory runs again."""
        again: list[Slice[Bound]] = []
        rows = batch.rows
        for piece, result in zip(batch.slices, results, strict=True):
            if isinstance(result, OutOfMemory) and result.rows > 1:
                again.append(piece)
                rows = min(rows, result.rows)
            elif isinstance(result, TorporError):
                self._fail(piece.item, result)
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
