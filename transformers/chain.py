"""A transformer before, and a predictor behind: one model for REST, gRPC and whoever else asks the data plane.

    Chain.start ─► preprocess ─► target ─► postprocess ─► answer

A request is a `Journey` through these; where it is at the moment, its caller may leave. Rows that `preprocess` gives in
several shapes are several requests to the target, whose answers are put in order again. A row that comes while nothing
else is there is prepared on the thread of its predictor, if that is one of this process (`accompanied.py`).
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from torpor.predictors.errors import DeadlineExceeded, InvalidInput, ModelFailed, TorporError
from torpor.predictors.protocol.inference import NO_TERMS, InferRequest, Terms
from torpor.predictors.serving.batcher import Batcher
from torpor.predictors.serving.data_plane import Served, request_of, shortest
from torpor.predictors.serving.metrics import ModelMetrics, StepMetrics
from torpor.predictors.signature import Bound, Request, Signature

from .accompanied import Unprepared, unfit
from .rows import Rows, by_shape, check_even, in_order
from .step import Answer, Step, ThreadStep

logger = logging.getLogger("torpor.transformer")


class Target(Protocol):
    """The predictor: a `Served` of this process, or one elsewhere (`remote.py`)."""

    @property
    def wants_headers(self) -> bool: ...
    @property
    def measured(self) -> Sequence[ModelMetrics]: ...
    def start(
        self, request: InferRequest, headers: Mapping[str, str] | None, timeout_s: float | None, answer: Answer
    ) -> Any: ...
    def cancel(self, started: Any) -> None: ...
    def check_room(self) -> None: ...
    def flush(self) -> None: ...
    def abandon(self) -> None: ...
    async def close(self) -> None: ...


class Chain(Served):
    """One version of a transformer and its predictor.

    signature: what its callers give and get. media_types: see `Served`. target_postprocesses: the target's outputs are
    those of the transformer already, and `postprocess` is None. alone: the target's batcher, if its device prepares rows.
    """

    def __init__(
        self,
        name: str,
        version: str,
        signature: Signature,
        preprocess: Step | None,
        target: Target,
        postprocess: Step | None,
        default_timeout_s: float = 0.0,
        media_types: Sequence[str] = (),
        target_postprocesses: bool = False,
        alone: Batcher | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.signature = signature
        self.preprocess = preprocess
        self.target = target
        self.postprocess = postprocess
        self.media_types = media_types
        self.alone = alone
        self._makes_outputs = postprocess is not None or target_postprocesses
        self._steps = [step for step in (preprocess, postprocess) if step is not None]
        self._parts: list[Step | Target] = [*self._steps, target]
        self._default_timeout_s = default_timeout_s or None
        self._wants_request = any(step.method.signature.wants for step in self._steps)
        self._wants_headers = self._wants_request or target.wants_headers

    @property
    def wants_headers(self) -> bool:
        return self._wants_headers

    @property
    def measured(self) -> Sequence[ModelMetrics]:
        return self.target.measured

    @property
    def steps(self) -> Sequence[StepMetrics]:
        return [step.metrics for step in self._steps]

    def start(
        self, request: InferRequest, headers: Mapping[str, str] | None, timeout_s: float | None, answer: Answer
    ) -> "Journey":
        terms = request.terms
        self.signature.ask(terms.outputs)
        timeout_s = shortest(terms.timeout_s, timeout_s)
        journey = Journey(self, request, headers, self._default_timeout_s if timeout_s is None else timeout_s, answer)
        journey.begin()
        return journey

    def cancel(self, started: "Journey") -> None:
        started.leave()

    def check_room(self) -> None:
        for part in self._parts:
            part.check_room()

    def flush(self) -> None:
        for part in self._parts:
            part.flush()

    def abandon(self) -> None:
        for part in self._parts:
            part.abandon()

    async def close(self) -> None:
        """In the order of the way, so that what has begun ends."""
        if self.preprocess is not None:
            await self.preprocess.close()
        await self.target.close()
        if self.postprocess is not None:
            await self.postprocess.close()

    def request_of(self, terms: Terms, headers: Mapping[str, str] | None, timeout_s: float | None) -> Request | None:
        """For the methods, if one of them asks for its request."""
        return request_of(terms, headers, timeout_s) if self._wants_request else None

    def terms_of(self, terms: Terms) -> Terms:
        """What the target is told beside its inputs: not which outputs, if others are made of them."""
        if not (terms.id or terms.parameters or terms.outputs):
            return NO_TERMS
        outputs = () if self._makes_outputs else terms.outputs
        return replace(terms, outputs=outputs, binary_outputs=None, timeout_s=None, are_kept=False)


class Journey:
    """One request on its way. `answer` is called once with its outputs or its error, unless its caller leaves before."""

    __slots__ = ("_chain", "_end_s", "_headers", "_leave", "_loop", "_request", "_terms", "answer", "rows")

    def __init__(
        self,
        chain: Chain,
        request: InferRequest,
        headers: Mapping[str, str] | None,
        timeout_s: float | None,
        answer: Answer,
    ) -> None:
        self._chain = chain
        self._loop = asyncio.get_running_loop()
        self._end_s = None if timeout_s is None else self._loop.time() + timeout_s
        self._headers = headers
        self._terms = request.terms
        self._request = request
        self._leave: list[Callable[[], object]] = []
        self.answer: Answer | None = answer
        first = next(iter(request.inputs.values()), None)
        self.rows = len(first) if first is not None and first.ndim else 0

    def begin(self) -> None:
        """Raises what the first step, or the target, refuses the request with."""
        chain, inputs = self._chain, self._request.inputs
        if chain.preprocess is None:
            self._predict(inputs)
            return
        timeout_s = self._remaining_s()
        bound = chain.preprocess.method.bind(inputs)
        bound.request = chain.request_of(self._terms, self._headers, timeout_s)
        if chain.alone is not None and self._run_alone(chain.alone, bound, timeout_s):
            return
        started = chain.preprocess.start(bound, timeout_s, self._then(self._predict))
        self._leave = [partial(chain.preprocess.cancel, started)]

    def leave(self) -> None:
        """The caller has left."""
        self.answer = None
        leave, self._leave = self._leave, []
        for step in leave:
            step()

    def _then(self, go_on: Callable[[Rows], None]) -> Answer:
        """What is called with the rows of a step, or with its error; whatever is raised there is the request's answer."""

        def answer(result: Rows | TorporError) -> None:
            if self.answer is None:
                return
            if not isinstance(result, TorporError):
                try:
                    go_on(result)
                except TorporError as error:
                    result = error
                except Exception:
                    logger.exception("the chain failed")
                    result = ModelFailed("internal error; the server's log has the details")
                else:
                    return
            self._finish(result)

        return answer

    def _run_alone(self, batcher: Batcher, bound: Bound, timeout_s: float | None) -> bool:
        """Prepare and run a row on the predictor's thread, if nothing else is there; whether that has begun."""
        step = self._chain.preprocess
        if not (isinstance(step, ThreadStep) and step.is_idle):
            return False
        unprepared = Unprepared(bound, step)
        then = self._then(self._postprocess)

        def answer(result: Rows | TorporError) -> None:
            step.metrics.seconds.observe(unprepared.preparing_s)
            then(result)

        if not batcher.run_alone(unprepared, answer):
            return False
        if timeout_s is not None:
            self._loop.call_later(timeout_s, self._expire, unprepared)
        return True

    def _expire(self, unprepared: Unprepared) -> None:
        if not unprepared.is_prepared:  # else it runs, like any other that has begun
            self._finish(unprepared.step.expired())

    def _predict(self, inputs: Rows) -> None:
        chain = self._chain
        groups = by_shape(inputs)
        terms = chain.terms_of(self._terms)
        timeout_s = self._remaining_s()
        outputs: dict[int, tuple[Rows, list[int]]] = {}
        self._leave = []
        for number, (rows, places) in enumerate(groups):
            if len(groups) == 1:
                then = self._then(self._postprocess)
            else:
                then = self._then(partial(self._gather, outputs, len(groups), number, places))
            try:
                started = chain.target.start(InferRequest(rows, terms), self._headers, timeout_s, then)
            except InvalidInput as error:
                if chain.preprocess is None:
                    raise
                raise unfit(error) from None
            if self.answer is None:  # one of them has failed at once
                chain.target.cancel(started)
                return
            self._leave.append(partial(chain.target.cancel, started))

    def _gather(
        self, outputs: dict[int, tuple[Rows, list[int]]], count: int, number: int, places: list[int], rows: Rows
    ) -> None:
        outputs[number] = rows, places
        if len(outputs) == count:
            self._postprocess(in_order(outputs[number] for number in range(count)))

    def _postprocess(self, outputs: Rows) -> None:
        chain = self._chain
        if chain.postprocess is None:
            self._finish(check_even(outputs))
            return
        timeout_s = self._remaining_s()
        bound = chain.postprocess.method.bind_outputs(outputs)
        bound.request = chain.request_of(self._terms, self._headers, timeout_s)
        started = chain.postprocess.start(bound, timeout_s, self._then(self._finish))
        self._leave = [partial(chain.postprocess.cancel, started)]

    def _finish(self, result: Rows | TorporError) -> None:
        answer, self.answer = self.answer, None
        if isinstance(result, TorporError):
            self.leave()  # the other parts of the request
        if answer is not None:
            answer(result)

    def _remaining_s(self) -> float | None:
        if self._end_s is None:
            return None
        remaining_s = self._end_s - self._loop.time()
        if remaining_s <= 0:
            raise DeadlineExceeded("the deadline passed on the way between transformer and predictor")
        return remaining_s
