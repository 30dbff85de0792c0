"""Small requests that meet are sent as one, and its answer is cut again: batching at the caller, for predictors without it.

When they go is decided by the predictors' own policy (`predictors.batching`), to which the predictor is two devices. Joined are
requests of the same inputs, shapes and dtypes, outputs and credentials, without parameters; a joined request carries the
headers that all of its callers sent alike. One that the predictor refuses, or fails with, is sent again in halves, so that
a row that is to blame fails alone.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from torpor.predictors.batching.bucket import Bucket
from torpor.predictors.batching.policy import Batch, BatchingPolicy, BatchingSettings
from torpor.predictors.batching.run_times import RunTimes
from torpor.predictors.errors import DeadlineExceeded, InvalidInput, ModelFailed, TorporError
from torpor.predictors.protocol.inference import NO_PARAMETERS, NO_TERMS, InferRequest, InferResponse, Terms
from torpor.predictors.serving.batcher import Batcher, Outputs
from torpor.predictors.serving.device_thread import Done, Result
from torpor.predictors.signature import Bound, Request

from .answers import malformed
from .deadlines import Deadlines
from .passing_on import credentials

Answer = Callable[[InferResponse | TorporError], None]


class Send(Protocol):
    """Sends a request by itself: `PredictorClient.call`."""

    def __call__(
        self, request: InferRequest, kept: Mapping[str, str], timeout_s: float | None, answer: Answer
    ) -> object: ...


class Joined:
    """The requests to one model that may be joined, and what the batcher sees of the predictor (`batcher.Devices`)."""

    devices = in_flight = 2
    """One joined request is on its way while the other runs; more at once would only be smaller."""

    overlaps = False
    halved_s = -math.inf
    """Nothing is halved here."""

    def __init__(
        self, send: Send, settings: BatchingSettings, model_name: str, timeout_s: float, deadlines: Deadlines
    ) -> None:
        """timeout_s: of a request that brings no deadline."""
        self._timeout_s = timeout_s
        self._deadlines = deadlines
        self._send_alone = send
        self._model_name = model_name
        self._model_version = ""
        """As the latest answer has it."""
        self._most_rows = settings.max_batch_size
        self._loop = asyncio.get_running_loop()
        self._batcher = Batcher(BatchingPolicy(settings, RunTimes()), self, _Unobserved())

    def start(
        self, request: InferRequest, kept: Mapping[str, str], timeout_s: float | None, answer: Answer
    ) -> "JoinedCall | None":
        """Let a request wait for others; None for one that goes by itself. Raises QueueFull, DeadlineExceeded."""
        terms = request.terms
        rows = _rows(request)
        if terms.parameters or terms.tensor_parameters or not 0 < rows < self._most_rows:
            return None
        layout = tuple((name, array.dtype, array.shape[1:]) for name, array in request.inputs.items())
        family = layout, terms.outputs, tuple(credentials(kept).items())
        bound = Bound(request.inputs, rows, Bucket(family), ())
        now_s = self._loop.time()
        deadline_s = None if timeout_s is None else now_s + timeout_s
        bound.request = Request(kept, NO_PARAMETERS, terms.id, deadline_s=deadline_s)
        end_s = now_s + self._timeout_s if deadline_s is None else deadline_s
        call = JoinedCall(self._batcher, self._deadlines, bound, end_s, partial(self._answered, terms, answer))
        self._batcher.submit(bound, call.finish, timeout_s)
        self._deadlines.guard(call)
        return call

    def refuse(self) -> None:
        """Refuse what waits: the client is closing."""
        self._batcher.abandon()

    async def close(self) -> None:
        """Wait for what is under way."""
        await self._batcher.close()

    def submit(self, parts: Sequence[Bound], done: Done, loop: asyncio.AbstractEventLoop) -> None:
        """Send the rows of all parts as one request; `done` is called later, with each part's own."""
        began_s = loop.time()
        # Later in any case: whoever submits is not done with it yet.
        self._send(parts, lambda results: loop.call_soon(lambda: done(results, loop.time() - began_s)))

    def stop(self) -> None:
        """The client closes its connections itself."""

    def _answered(self, terms: Terms, answer: Answer, result: Outputs | TorporError) -> None:
        if isinstance(result, TorporError):
            answer(result)
        else:
            answer(InferResponse(self._model_name, self._model_version, result, terms.id))

    def _send(self, parts: Sequence[Bound], then: Callable[[list[Result]], object]) -> None:
        requests = [part.request for part in parts]
        inputs = parts[0].arrays
        if len(parts) > 1:
            inputs = {name: np.concatenate([part.arrays[name] for part in parts]) for name in inputs}
        family: Any = parts[0].bucket.family
        outputs: tuple[str, ...] = family[1]
        shared = set.intersection(*(set(request.headers.items()) for request in requests if request is not None))
        deadlines_s = [request.deadline_s for request in requests if request is not None]
        known_s = [deadline_s for deadline_s in deadlines_s if deadline_s is not None]
        # As long as the most patient of them waits.
        timeout_s = max(known_s) - self._loop.time() if len(known_s) == len(deadlines_s) else None
        terms = Terms(outputs=outputs) if outputs else NO_TERMS
        try:
            self._send_alone(InferRequest(inputs, terms), dict(shared), timeout_s, partial(self._cut, parts, then))
        except TorporError as error:
            then([error] * len(parts))

    def _cut(
        self, parts: Sequence[Bound], then: Callable[[list[Result]], object], result: InferResponse | TorporError
    ) -> None:
        """Give each part its rows."""
        if isinstance(result, InvalidInput | ModelFailed) and len(parts) > 1:
            self._send_halves(parts, then)
            return
        if isinstance(result, TorporError):
            then([result] * len(parts))
            return
        rows = sum(part.rows for part in parts)
        for name, array in result.outputs.items():
            if not array.ndim or len(array) != rows:
                error = malformed(
                    f"output '{name}': shape = {list(array.shape)}, must have {rows} rows, one for each sent"
                )
                then([error] * len(parts))
                return
        self._model_version = result.model_version
        results: list[Result] = []
        start = 0
        for part in parts:
            stop = start + part.rows
            results.append({name: array[start:stop] for name, array in result.outputs.items()})
            start = stop
        then(results)

    def _send_halves(self, parts: Sequence[Bound], then: Callable[[list[Result]], object]) -> None:
        half = len(parts) // 2
        got: dict[bool, list[Result]] = {}

        def gather(is_second: bool, results: list[Result]) -> None:
            got[is_second] = results
            if len(got) == 2:
                then(got[False] + got[True])

        self._send(parts[:half], partial(gather, False))
        self._send(parts[half:], partial(gather, True))


class JoinedCall:
    """A request that waits for others, or for the answer to all of them."""

    __slots__ = ("_answer", "_batcher", "_bound", "_deadlines", "end_s")

    def __init__(
        self,
        batcher: Batcher,
        deadlines: Deadlines,
        bound: Bound,
        end_s: float,
        answer: Callable[[Outputs | TorporError], None],
    ) -> None:
        self.end_s = end_s
        self._batcher = batcher
        self._deadlines = deadlines
        self._bound = bound
        self._answer = answer

    def cancel(self) -> None:
        self._deadlines.release(self)
        self._batcher.cancel(self._bound)

    def finish(self, result: Outputs | TorporError) -> None:
        self._deadlines.release(self)
        self._answer(result)

    def expire(self) -> None:
        """Those that it was joined with may have longer."""
        self.cancel()
        self._answer(DeadlineExceeded("the deadline passed while the predictor was waited for"))


class _Unobserved:
    """Nobody asks for the metrics of joined requests."""

    def batch_ran(self, batch: Batch[Bound], seconds: float) -> None:
        pass

    def ran_out_of_memory(self) -> None:
        pass


def _rows(request: InferRequest) -> int:
    """0 where the inputs do not agree."""
    counts = {len(array) if array.ndim else 0 for array in request.inputs.values()}
    return counts.pop() if len(counts) == 1 else 0
