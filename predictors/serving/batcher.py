"""The asyncio driver of the batching policy: futures for items, one timer (none while nothing waits), one device thread.

All decisions are the policy's. The driver tells it of arrivals, departures, ends of batches and of the time, hands the
batches that it forms to the device thread, and gives each caller the rows that are its own.
"""

import asyncio
from typing import Protocol

import numpy as np

from ..batching.policy import Batch, BatchingPolicy
from ..errors import DeadlineExceeded, TorporError, Unavailable
from ..protocol.datatypes import Array
from ..signature import Bound
from .device_thread import DeviceThread, Result

Outputs = dict[str, Array]


class Observer(Protocol):
    """Learns of each batch that ran."""

    def batch_ran(self, batch: Batch[Bound], seconds: float) -> None: ...


class Batcher:
    """One model's way from single requests to batches. Belongs to one event loop."""

    def __init__(self, policy: BatchingPolicy[Bound], device: DeviceThread, observer: Observer) -> None:
        self.policy = policy
        self._device = device
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._busy = False
        self._flush = False
        self._timer: asyncio.Handle | None = None
        self._timer_s = 0.0
        # Of requests that were split over batches: the outputs so far, by the row that they start at.
        self._pieces: dict[Bound, dict[int, Outputs]] = {}

    def submit(self, bound: Bound, timeout_s: float | None = None) -> "asyncio.Future[Outputs]":
        """Queue a request for its outputs: all of its rows and no others.

        timeout_s: after that nobody wants them; None for no limit. Raises QueueFull, and DeadlineExceeded if there is no
        time left; the future raises DeadlineExceeded, Unavailable or the model's error. Who stops waiting calls `cancel`.
        """
        now = self._loop.time()
        if timeout_s is not None:
            if timeout_s <= 0:
                raise DeadlineExceeded("the deadline had passed when the request arrived")
            bound.deadline_s = now + timeout_s
        self.policy.offer(bound, now)
        future: asyncio.Future[Outputs] = self._loop.create_future()
        bound.answer = future
        if not self._busy or timeout_s is not None:  # else the end of the batch that runs is the next thing to happen
            self._step(now)
        return future

    def cancel(self, bound: Bound) -> None:
        """The caller left: drop the rows that still wait."""
        self.policy.cancel(bound)
        self._pieces.pop(bound, None)

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
        failed = False
        for (bound, start, stop), result in zip(batch.slices, results, strict=True):
            if isinstance(result, TorporError):
                failed = True
                self._fail(bound, result)
            elif stop - start != bound.rows:
                self._gather(bound, start, result)
            elif not bound.answer.done():  # else its caller left
                bound.answer.set_result(result)
        self.policy.complete(batch, None if failed else seconds)
        self._step(self._loop.time())
        self._observer.batch_ran(batch, seconds)

    def _gather(self, bound: Bound, start: int, outputs: Outputs) -> None:
        if bound.answer.done():
            return
        pieces = self._pieces.setdefault(bound, {})
        pieces[start] = outputs
        whole = {name: [pieces[at][name] for at in sorted(pieces)] for name in outputs}
        if sum(map(len, next(iter(whole.values())))) == bound.rows:
            del self._pieces[bound]
            bound.answer.set_result({name: np.concatenate(arrays) for name, arrays in whole.items()})

    def _fail(self, bound: Bound, error: TorporError) -> None:
        self.cancel(bound)
        if not bound.answer.done():
            bound.answer.set_exception(error)
