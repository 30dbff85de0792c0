"""A pod in virtual time: queue-proxy's limit and queue, the batching policy's own code, a device that takes as measured.

What a request costs beside the model is charged to its batch: event loop and model share the pod's core.
"""

import math
from collections import deque
from collections.abc import Callable

from torpor.predictors.batching.bucket import Bucket, rounded
from torpor.predictors.batching.load import FAMILY
from torpor.predictors.batching.policy import Batch, BatchingPolicy, BatchingSettings
from torpor.predictors.batching.run_times import WARM_UP_SIZE, RunTimes
from torpor.predictors.errors import InvalidInput, QueueFull

from .request import Request

DEEP = 10
"""queue-proxy queues so many times containerConcurrency, and refuses more (knative/serving, pkg/queue/sharedmain)."""


class Pod:
    """limit: containerConcurrency, 0 for none. The caller asks `step` after each change, and calls `end` when it says."""

    def __init__(
        self,
        limit: int,
        batching: BatchingSettings,
        seconds: Callable[[int, int], float],
        request_s: float,
        axes: int,
        ready_s: float,
    ) -> None:
        self.ready_s = ready_s
        self.in_flight = 0
        self.is_going = False
        self.running: Batch[Request] | None = None
        self.timer_s = math.inf
        self._limit = limit or math.inf
        self._queue: deque[Request] = deque()
        self._seconds = seconds
        self._request_s = request_s
        self._batch_s = 0.0
        self._policy: BatchingPolicy[Request] = BatchingPolicy(batching, RunTimes())
        bucket = Bucket(FAMILY, rounded([WARM_UP_SIZE] * axes))
        for rows in (1, min(4, batching.max_batch_size)):  # as a server's start teaches it
            self._policy.run_times.observe(rows, bucket, seconds(rows, bucket.cells))

    @property
    def is_idle(self) -> bool:
        """There is nothing to begin."""
        return not self._policy.queued_rows

    @property
    def has_room(self) -> bool:
        return self.in_flight < self._limit

    def offer(self, request: Request, now: float) -> bool:
        """False: refused."""
        if self.in_flight >= self._limit:
            if len(self._queue) >= DEEP * self._limit:
                return False
            self._queue.append(request)
            return True
        try:
            self._policy.offer(request, now)
        except (QueueFull, InvalidInput):
            return False
        self.in_flight += 1
        return True

    def expired(self, now: float) -> list[Request]:
        """Those whose deadline has passed in the policy's queue."""
        expired = self._policy.expire(now)
        self.in_flight -= len(expired)
        return expired

    def step(self, now: float) -> float:
        """Begin a batch if it is time: when it ends; infinity if none began."""
        policy = self._policy
        batch = policy.take(now)
        if batch is None:
            return math.inf
        self.running = batch
        slices = batch.slices
        cells = 1
        if batch.bucket.axes:  # padded to the longest row
            cells = math.prod(map(max, zip(*[piece.item.sizes for piece in slices], strict=True)))
        self._batch_s = self._seconds(batch.rows, cells)
        return now + self._batch_s + self._request_s * len(slices)

    def wake_s(self, now: float) -> float:
        """When `step` should be asked again, if nothing happens before."""
        wake_s = self._policy.next_deadline_s() if self.running else self._policy.wake_at(now)
        return math.inf if wake_s is None else wake_s

    def end(self) -> list[Request]:
        """The batch has run; the requests that are answered. Ask `step`, then `admit`."""
        batch = self.running
        assert batch is not None
        self.running = None
        self._policy.complete(batch, self._batch_s)
        answered = []
        for request, start, stop in batch.slices:
            request.answered_rows += stop - start
            if request.answered_rows == request.rows:
                answered.append(request)
        self.in_flight -= len(answered)
        return answered

    def admit(self, now: float) -> list[Request]:
        """Let in what waited in queue-proxy; those that the server refuses."""
        refused = []
        while self._queue and self.in_flight < self._limit:
            request = self._queue.popleft()
            if not self.offer(request, now):
                refused.append(request)
        return refused
