"""The asyncio driver of the batching policy: futures for items, one timer (none while nothing waits), one device thread.

All decisions are the policy's. The driver tells it of arrivals, departures, ends of batches and of the time, hands the
batches that it forms to the device thread, and gives each caller the rows that are its own.
"""

import asyncio
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..batching.policy import Batch, BatchingPolicy, Item
from ..errors import DeadlineExceeded, TorporError, Unavailable
from ..protocol.datatypes import Array
from ..signature import Bound
from .device_thread import DeviceThread, Result

Outputs = dict[str, Array]


class Observer(Protocol):
    """Learns of each batch that ran."""

    def batch_ran(self, batch: Batch, seconds: float, padded_cells: int, cells: int) -> None: ...


@dataclass(slots=True, eq=False)
class _Job(Item):
    """An item with its caller: results are gathered by the row that they start at."""

    bound: Bound | None = None
    future: "asyncio.Future[Outputs] | None" = None
    results: dict[int, Outputs] | None = None
    answered_rows: int = 0


class Batcher:
    """One model's way from single requests to batches. Belongs to one event loop."""

    def __init__(self, policy: BatchingPolicy, device: DeviceThread, observer: Observer) -> None:
        self.policy = policy
        self._device = device
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._busy = False
        self._flush = False
        self._timer: asyncio.TimerHandle | None = None

    async def infer(self, bound: Bound, deadline_s: float | None = None) -> Outputs:
        """The outputs of a request, all of its rows and no others.

        deadline_s: on the event loop's clock; None for none. Raises QueueFull, DeadlineExceeded, or the model's error.
        When the caller is cancelled, rows that still wait are dropped.
        """
        now = self._loop.time()
        if deadline_s is not None and deadline_s <= now:
            raise DeadlineExceeded("the deadline had passed when the request arrived")
        future: asyncio.Future[Outputs] = self._loop.create_future()
        job = _Job(bound.rows, bound.bucket, deadline_s, bound=bound, future=future)
        self.policy.offer(job, now)
        if not self._busy or deadline_s is not None:  # else the end of the batch that runs is the next thing to happen
            self._step(now)
        try:
            return await future
        except asyncio.CancelledError:
            self.policy.cancel(job)
            raise

    def flush(self) -> None:
        """From now on wait for nobody: the server is draining."""
        self._flush = True
        self._step(self._loop.time())

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
                parts = [s.item.bound.part(s.start, s.stop) for s in batch.slices]  # type: ignore[attr-defined]
                self._device.submit(parts, lambda results, seconds: self._done(batch, results, seconds), self._loop)
        self._set_timer(policy.next_deadline_s() if self._busy else policy.wake_at(now))

    def _set_timer(self, wake_s: float | None) -> None:
        if self._timer is not None:
            if wake_s is not None and self._timer.when() <= wake_s:
                return  # it wakes early enough, and then sets itself anew: cheaper than a new timer for each arrival
            self._timer.cancel()
            self._timer = None
        if wake_s is not None:
            self._timer = self._loop.call_at(wake_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._step(self._loop.time())

    def _done(self, batch: Batch, results: list[Result], seconds: float) -> None:
        self._busy = False
        failed = any(isinstance(result, TorporError) for result in results)
        self.policy.complete(batch, None if failed else seconds)
        cells = 0
        for piece, result in zip(batch.slices, results, strict=True):
            job = piece.item
            assert isinstance(job, _Job) and job.bound is not None
            cells += (piece.stop - piece.start) * math.prod(job.bound.sizes)
            if isinstance(result, TorporError):
                self._fail(job, result)
            else:
                self._answer(job, piece.start, piece.stop, result)
        longest = tuple(map(max, zip(*(s.item.bound.sizes for s in batch.slices), strict=True)))  # type: ignore[attr-defined]
        self._observer.batch_ran(batch, seconds, batch.rows * math.prod(longest), cells)
        self._step(self._loop.time())

    def _answer(self, job: _Job, start: int, stop: int, outputs: Outputs) -> None:
        future = job.future
        if future is None or future.done():
            return
        if stop - start == job.rows:
            future.set_result(outputs)
            return
        if job.results is None:
            job.results = {}
        job.results[start] = outputs
        job.answered_rows += stop - start
        if job.answered_rows == job.rows:
            pieces = [job.results[at] for at in sorted(job.results)]
            future.set_result({name: np.concatenate([piece[name] for piece in pieces]) for name in outputs})

    def _fail(self, item: Item, error: TorporError) -> None:
        assert isinstance(item, _Job)
        self.policy.cancel(item)
        if item.future is not None and not item.future.done():
            item.future.set_exception(error)
