"""The worker processes of one archive, as the batcher sees its devices: each runs one batch at a time.

A worker that ends is started anew, with a pause that grows while none comes back for good. Of the batch that it had, one
request is the culprit and nobody knows which: each runs again, alone, and only the one that ends its worker again fails. A
batch that finds no worker waits for one.

Their number may change (`grow`, `shrink`): one that is too many leaves when it has answered its batch.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from ..batching.bucket import Bucket
from ..errors import HandlerRefused, InvalidInput, ModelFailed, OutOfMemory, TorporError, Unavailable
from ..serving.device_thread import Done, Result
from ..serving.tasks import Tasks
from ..signature import Bound
from .manifest import ArchiveError
from .process import OnEnd, WorkerProcess

logger = logging.getLogger("torpor.torchserve")

_PAUSES_S = (0.0, 1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 55.0)
"""Before each start that follows a failure; after that always the last. TorchServe's, but the first."""


class Row(Bound):
    """A request as the worker gets it: what is said of it, and its blobs. One row of no tensors, to the policy."""

    def __init__(self, bucket: Bucket, said: dict[str, Any], blobs: Sequence[bytes]) -> None:
        super().__init__({}, 1, bucket, ())
        self.said = said
        self.blobs = blobs


@dataclass(slots=True)
class Reply:
    """What a worker answered to one row; `said` is its JSON (`worker/service.py`)."""

    said: dict[str, Any]
    blobs: Sequence[memoryview]


@dataclass(eq=False)
class _Job:
    """A batch that was submitted, or one row of it that runs again."""

    rows: Sequence[Row]
    finish: Callable[[list[Reply | TorporError]], None]


Start = Callable[[OnEnd], Awaitable[WorkerProcess]]
"""Gives a loaded worker, whose end it is told, or raises ArchiveError."""


class Workers:
    """Processes of one archive; belongs to one event loop. devices: how many there are to be."""

    halved_s = 0.0
    """They halve a batch in their own time: what limits it is the response timeout."""

    def __init__(
        self,
        name: str,
        count: int,
        start: Start,
        response_timeout_s: float,
        failed: type[ModelFailed],
    ) -> None:
        """failed: what a request is told whose handler raised, or gave no answer."""
        self.name = name
        self._failed = failed
        self.devices = self.in_flight = count
        self._start = start
        self._response_timeout_s = response_timeout_s
        self._idle: deque[WorkerProcess] = deque()
        self._busy: dict[WorkerProcess, _Job] = {}
        self._waiting: deque[_Job] = deque()
        self._failures = 0
        self._starting = 0
        """Those that are on their way, restarts among them."""
        self._is_closed = False
        self._restarts = Tasks()
        self._leaving = Tasks()

    @property
    def alive(self) -> int:
        """How many there are at the moment."""
        return len(self._idle) + len(self._busy)

    def processes(self) -> list[WorkerProcess]:
        """Those that are there at the moment, in the order of their starts."""
        return sorted((*self._idle, *self._busy), key=lambda worker: worker.number)

    async def open(self) -> None:
        """Start all of them. Raises ArchiveError if one cannot load, and then there is none."""
        try:
            await self._add(self.devices)
        except BaseException:
            await self.close()
            raise

    async def grow(self, count: int) -> None:
        """Have `count`, which is not fewer; returns when they are loaded. Raises ArchiveError, and then it is as before."""
        before = self.devices
        missing = max(0, count - self.alive - self._starting)
        self.devices = self.in_flight = count
        try:
            await self._add(missing)
        except BaseException:
            self.shrink(before)
            raise

    def shrink(self, count: int) -> None:
        """Have `count`, which is not more: those that are idle leave now, others with the answer that they are at."""
        self.devices = self.in_flight = count
        while self._idle and self.alive > count:
            self._leave(self._idle.pop())
        self._assign()

    async def _add(self, count: int) -> None:
        """Start so many, the others too if one cannot load. Raises its ArchiveError."""
        self._starting += count
        try:
            started = await asyncio.gather(*(self._start(self._ended) for _ in range(count)), return_exceptions=True)
        finally:
            self._starting -= count
        for worker in started:
            if isinstance(worker, WorkerProcess):
                self._come(worker)
        for result in started:
            if isinstance(result, BaseException):
                raise result

    def _come(self, worker: WorkerProcess) -> None:
        """It can take a batch, if it is not one too many."""
        if self._is_closed or self.alive >= self.devices:
            self._leave(worker)
            return
        self._idle.append(worker)
        self._assign()

    def _leave(self, worker: WorkerProcess) -> None:
        self._leaving.start(worker.stop(), f"end of {worker.name}")

    def submit(self, parts: Sequence[Bound], done: Done, loop: asyncio.AbstractEventLoop) -> None:
        began_s = loop.time()

        def finish(results: list[Reply | TorporError]) -> None:
            # The batcher hands results on as they are; only the models of tensors split and join them.
            done(cast("list[Result]", results), loop.time() - began_s)

        self._waiting.append(_Job(cast("Sequence[Row]", parts), finish))
        self._assign()

    def stop(self) -> None:
        """Take nothing more; `close` waits for the end."""
        self._is_closed = True

    async def close(self) -> None:
        """End all processes; nothing may be at work."""
        self._is_closed = True
        await self._restarts.cancel()
        await self._leaving.ended()
        await asyncio.gather(*(worker.stop() for worker in (*self._idle, *self._busy)))
        self._idle.clear()

    def _assign(self) -> None:
        if not self.devices:
            self._refuse("there are none")
        while self._waiting and self._idle:
            worker, job = self._idle.popleft(), self._waiting.popleft()
            self._busy[worker] = job
            rows = job.rows
            head = {"protocol": rows[0].bucket.family, "calls": [row.said for row in rows]}
            worker.run(head, [row.blobs for row in rows], partial(self._answered, worker), self._response_timeout_s)

    def _answered(
        self, worker: WorkerProcess, replies: Sequence[dict[str, Any]], blobs: Sequence[Sequence[memoryview]]
    ) -> None:
        job = self._busy.pop(worker)
        self._failures = 0
        self._come(worker)
        job.finish([self._result(said, parts) for said, parts in zip(replies, blobs, strict=True)])

    def _ended(self, worker: WorkerProcess, reason: str, has_begun: bool) -> None:
        job = self._busy.pop(worker, None)
        if worker in self._idle:
            self._idle.remove(worker)
        logger.error("%s: %s", worker.name, reason)
        if job is not None and has_begun:
            self._answer_for(job, reason)
        elif job is not None:  # it ended for another reason
            self._waiting.appendleft(job)
            self._assign()
        if not self._is_closed and self.alive + self._starting < self.devices:
            self._starting += 1
            self._restarts.start(self._restart(), f"restart of {self.name}")

    def _answer_for(self, job: _Job, reason: str) -> None:
        """Let each row run again by itself, before what came later; one that was alone has failed."""
        if len(job.rows) == 1:
            job.finish([ModelFailed(f"Worker died: {reason}")])
            return
        results: dict[int, Reply | TorporError] = {}

        def finish(place: int, result: list[Reply | TorporError]) -> None:
            (results[place],) = result
            if len(results) == len(job.rows):
                job.finish([results[place] for place in range(len(job.rows))])

        for place, row in reversed([*enumerate(job.rows)]):
            self._waiting.appendleft(_Job([row], partial(finish, place)))
        self._assign()

    async def _restart(self) -> None:
        """Start one of those that are counted as starting, while it is wanted."""
        try:
            while self.alive + self._starting <= self.devices:
                pause_s = _PAUSES_S[min(self._failures, len(_PAUSES_S) - 1)]
                self._failures += 1
                await asyncio.sleep(pause_s)
                try:
                    worker = await self._start(self._ended)
                except ArchiveError as error:
                    logger.error("%s", error)
                    if not self.alive:
                        self._refuse(f"they cannot be started: {error}")
                    continue
                logger.info("%s: its worker is back", self.name)
                self._come(worker)
                return
        finally:
            self._starting -= 1

    def _refuse(self, reason: str) -> None:
        """Nobody is left, and nobody is to come just now: what waits here has not begun."""
        waiting, self._waiting = self._waiting, deque()
        for job in waiting:
            job.finish([Unavailable(f"the model has no workers: {reason}") for _ in job.rows])

    def _result(self, said: dict[str, Any], blobs: Sequence[memoryview]) -> Reply | TorporError:
        error = said.get("error")
        if error is None:
            return Reply(said, blobs)
        text = said["text"]
        if error == "InvalidInput":
            return InvalidInput(text)
        if error == "OutOfMemory":
            return OutOfMemory(int(text))
        if error == "HandlerRefused":
            return HandlerRefused(text, said["status"])
        return self._failed(text)
