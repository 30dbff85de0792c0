"""The worker processes of one archive, as the batcher sees its devices: each runs one batch, or two that overlap.

One that is alone and does not overlap has its next batch in its socket while it runs one, if it is short: then what it would
wait for the server counts. Beside others a batch would wait for the wrong one.

A worker that ends is started anew, with a pause that grows while none comes back for good. Of the batches that it had, one
request is the culprit and nobody knows which: each runs again, alone, and only the one that ends its worker again fails. One
of whose answer pieces have gone fails at once: they cannot be taken back. A batch that finds no worker waits for one.

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
from ..serving.calls import Flow
from ..serving.device_thread import Done, Result
from ..serving.tasks import Tasks
from ..signature import Bound
from .manifest import ArchiveError
from .process import OnEnd, WorkerProcess

logger = logging.getLogger("torpor.torchserve")

_PAUSES_S = (0.0, 1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 55.0)
"""Before each start that follows a failure; after that always the last. TorchServe's, but the first."""


class Row(Bound):
    """A request as the worker gets it: what is said of it, and its blobs. One row of no tensors, to the policy.

    bucket: its family begins with the protocol. on_piece: gets what a worker says of each piece of the answer, the piece, and
    where it comes from. has_begun: whether any has come.
    """

    on_piece: Callable[[dict[str, Any], memoryview, Flow], None] | None = None
    has_begun = False

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
    """A batch that was submitted, or one row of it that runs again.

    began_s: when it had its worker for itself. is_suspect: it may have ended a worker, and shares none.
    """

    rows: Sequence[Row]
    finish: Callable[[list[Reply | TorporError]], None]
    began_s: float = 0.0
    is_suspect: bool = False


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
        self.devices = count
        self.overlaps = False
        self._start = start
        self._response_timeout_s = response_timeout_s
        self._jobs: dict[WorkerProcess, list[_Job]] = {}
        """What each that is there is at; who was given something last stands last."""
        self._waiting: deque[_Job] = deque()
        self._failures = 0
        self._starting = 0
        """Those that are on their way, restarts among them."""
        self._is_closed = False
        self._restarts = Tasks()
        self._leaving = Tasks()

    @property
    def in_flight(self) -> int:
        """How many batches they take together."""
        return self.devices * self._at_once

    @property
    def _at_once(self) -> int:
        """How many batches a worker has."""
        return 2 if self.overlaps or self.devices == 1 else 1

    @property
    def alive(self) -> int:
        """How many there are at the moment."""
        return len(self._jobs)

    def processes(self) -> list[WorkerProcess]:
        """Those that are there at the moment, in the order of their starts."""
        return sorted(self._jobs, key=lambda worker: worker.number)

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
        self.devices = count
        try:
            await self._add(missing)
        except BaseException:
            self.shrink(before)
            raise

    def shrink(self, count: int) -> None:
        """Have `count`, which is not more: those that are idle leave now, others with the answer that they are at."""
        self.devices = count
        for worker in [worker for worker, jobs in self._jobs.items() if not jobs][: max(0, self.alive - count)]:
            del self._jobs[worker]
            self._leave(worker)
        self._assign()

    async def _add(self, count: int) -> None:
        """Start so many, the others too if one cannot load. Raises its ArchiveError."""
        self._starting += count
        try:
            started = await asyncio.gather(*(self._start(self._ended) for _ in range(count)), return_exceptions=True)
        finally:
            self._starting -= count
        for worker in started:
            if not isinstance(worker, BaseException):
                self._come(worker)
        for result in started:
            if isinstance(result, BaseException):
                raise result

    def _come(self, worker: WorkerProcess) -> None:
        """It can take a batch, if it is not one too many."""
        if self._is_closed or self.alive >= self.devices:
            self._leave(worker)
            return
        self._jobs[worker] = []
        self.overlaps = worker.at_once > 1
        self._assign()

    def _leave(self, worker: WorkerProcess) -> None:
        self._leaving.start(worker.stop(), f"end of {worker.name}")

    def submit(self, parts: Sequence[Bound], done: Done, loop: asyncio.AbstractEventLoop) -> None:
        def finish(results: list[Reply | TorporError]) -> None:
            # The batcher hands results on as they are; only the models of tensors split and join them.
            done(cast("list[Result]", results), loop.time() - job.began_s)

        job = _Job(cast("Sequence[Row]", parts), finish, loop.time())
        self._waiting.append(job)
        self._assign()

    def stop(self) -> None:
        """Take nothing more; `close` waits for the end."""
        self._is_closed = True

    async def close(self) -> None:
        """End all processes; nothing may be at work."""
        self._is_closed = True
        await self._restarts.cancel()
        await self._leaving.ended()
        await asyncio.gather(*(worker.stop() for worker in self._jobs))
        self._jobs.clear()

    def _assign(self) -> None:
        if not self.devices:
            self._refuse("there are none")
        while self._waiting and (worker := self._free(self._waiting[0])) is not None:
            job = self._waiting.popleft()
            self._jobs[worker] = [*self._jobs.pop(worker), job]
            rows = job.rows
            protocol, *_ = cast("tuple[str, bool]", rows[0].bucket.family)
            head = {"protocol": protocol, "calls": [row.said for row in rows]}
            worker.run(
                head, [row.blobs for row in rows], partial(self._answered, worker, job), partial(self._piece, worker, job),
                self._response_timeout_s,
            )  # fmt: skip

    def _free(self, job: _Job) -> WorkerProcess | None:
        """Who can take it: the one with the least to do, of those the one that has waited longest; none that is to leave."""
        staying = self.processes()[: self.devices]
        worker = min((worker for worker in self._jobs if worker in staying), key=self._load, default=None)
        if worker is None or self._load(worker) >= (1 if job.is_suspect else self._at_once):
            return None
        return worker

    def _load(self, worker: WorkerProcess) -> int:
        jobs = self._jobs[worker]
        return self._at_once if any(job.is_suspect for job in jobs) else len(jobs)

    def _answered(
        self,
        worker: WorkerProcess,
        job: _Job,
        replies: Sequence[dict[str, Any]],
        blobs: Sequence[Sequence[memoryview]],
    ) -> None:
        jobs = self._jobs[worker]
        jobs.remove(job)
        self._failures = 0
        for other in jobs:
            other.began_s = asyncio.get_running_loop().time()
        if not jobs:
            del self._jobs[worker]
            self._come(worker)
        else:
            self._assign()
        job.finish([self._result(said, parts) for said, parts in zip(replies, blobs, strict=True)])

    def _piece(self, worker: WorkerProcess, job: _Job, said: dict[str, Any], piece: memoryview) -> None:
        row = job.rows[said["piece"]]
        row.has_begun = True
        if row.on_piece is not None:
            row.on_piece(said, piece, worker)

    def _ended(self, worker: WorkerProcess, reason: str, unread: int) -> None:
        jobs = self._jobs.pop(worker, [])
        logger.error("%s: %s", worker.name, reason)
        for _ in range(min(unread, len(jobs))):  # these were not the end of it
            self._waiting.appendleft(jobs.pop())
        for job in reversed(jobs):
            self._answer_for(job, reason, is_culprit=len(jobs) == 1)
        self._assign()
        if not self._is_closed:
            self._starting += 1
            self._restarts.start(self._restart(), f"restart of {self.name}")

    def _answer_for(self, job: _Job, reason: str, is_culprit: bool) -> None:
        """Let each row run again by itself, before what came later.

        One that was alone has failed, if no other batch can have been the culprit, and so has one whose answer had begun.
        """
        is_alone = is_culprit and len(job.rows) == 1
        results: dict[int, Reply | TorporError] = {
            place: ModelFailed(f"Worker died: {reason}")
            for place, row in enumerate(job.rows) if is_alone or row.has_begun
        }  # fmt: skip
        if len(results) == len(job.rows):
            job.finish([*results.values()])
            return

        def finish(place: int, result: list[Reply | TorporError]) -> None:
            (results[place],) = result
            if len(results) == len(job.rows):
                job.finish([results[place] for place in range(len(job.rows))])

        for place, row in reversed([*enumerate(job.rows)]):
            if place not in results:
                self._waiting.appendleft(_Job([row], partial(finish, place), is_suspect=True))

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
