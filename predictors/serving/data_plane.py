"""The models that a server has, and an inference on one of them, whatever protocol it came by."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..batching.policy import BatchingPolicy, BatchingSettings
from ..batching.run_times import RunTimes
from ..errors import InvalidInput, ModelBroken, NotFound, Unavailable, VersionNotFound
from ..protocol.inference import InferRequest, InferResponse, Terms
from ..remembered import Remembered
from ..signature import Bound, Fit, Request, Signature
from .batcher import Answer, Batcher, Observer, Outputs
from .calls import Answered, Call
from .device_pool import DevicePool
from .device_thread import Executor
from .exchange import Head
from .metrics import ModelMetrics, ServerMetrics, StepMetrics
from .settling import settling
from .tracing import Observers, Tracing, under
from .warm_up import warm_up

EXTENSIONS = ("binary_tensor_data", "model_repository")
PLATFORM = "torpor"


_MOST_FITS = 512
"""As many as a protocol keeps terms."""


class Served:
    """What a name and a version lead to; `start` is what every protocol calls."""

    name: str
    version: str
    signature: Signature
    is_retired: bool = False
    """Its name leads elsewhere by now."""
    takes_calls: bool = False
    """Whether it reads requests over REST itself: then `call` is their way, and `start` that of tensors."""
    media_types: Sequence[str] = ()
    """Content types of which an event's data is, as it stands, the row of its only input."""

    def start(
        self, request: InferRequest, headers: Mapping[str, str] | None, timeout_s: float | None, answer: Answer
    ) -> Any:
        """Check the request and begin it; `answer` is called once, later, unless `cancel` is called before with what this
        returns.

        headers: where `wants_headers`. timeout_s: what the caller still has by its transport, None if that did not say;
        its request may say less. Raises a TorporError, and then does not call `answer`.
        """
        raise NotImplementedError

    def call(self, call: Call, timeout_s: float | None, answer: Answered) -> Any:
        """As `start`, where `takes_calls`: begin a request as it came; `answer` gets what its caller is to."""
        raise NotImplementedError

    def cancel(self, started: Any) -> None:
        """Nobody waits any more for what `start`, or `call`, returned this for."""
        raise NotImplementedError

    @property
    def is_ready(self) -> bool:
        """Whether it can answer just now; the server's readiness says whether it is to."""
        return True

    @property
    def is_healthy(self) -> bool:
        """Whether it is as it was told to be, which may be not ready."""
        return self.is_ready

    @property
    def wants_headers(self) -> bool:
        """Whether `start` has a use for its caller's headers."""
        return bool(self.signature.wants)

    @property
    def measured(self) -> Sequence[ModelMetrics]:
        """What is counted of the models that it runs."""
        raise NotImplementedError

    @property
    def steps(self) -> Sequence[StepMetrics]:
        """What is counted of the steps before and after them."""
        return ()

    def check_room(self) -> None:
        """Raise QueueFull if not even one row more may wait."""
        raise NotImplementedError

    def flush(self) -> None:
        """From now on wait for nobody: the server is draining."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Refuse everything that has not begun."""
        raise NotImplementedError

    async def close(self) -> None:
        """Take nothing more, answer what was taken, and unload."""
        raise NotImplementedError

    async def end(self) -> None:
        """The server has answered everybody and ends: what would outlive its process must go."""

    def response(self, terms: Terms, outputs: Outputs) -> InferResponse:
        """The outputs that were asked for. Raises InvalidInput for one that the model did not give."""
        if terms.outputs:
            missing = [name for name in terms.outputs if name not in outputs]
            if missing:
                raise InvalidInput(f"output '{missing[0]}' is unknown, must be one of {', '.join(outputs)}")
            outputs = {name: outputs[name] for name in terms.outputs}
        return InferResponse(self.name, self.version, outputs, terms.id, self.signature.json_outputs)

    async def infer(
        self, request: InferRequest, headers: Mapping[str, str] | None = None, timeout_s: float | None = None
    ) -> InferResponse:
        """`start` for a coroutine: its response, or its error raised. Cancelled, it drops the rows that still wait."""
        outputs: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()
        started = self.start(request, headers, timeout_s, settling(outputs))
        try:
            return self.response(request.terms, await outputs)
        finally:
            self.cancel(started)

    def metadata(self) -> dict[str, object]:
        """The v2 metadata object: names, datatypes and shapes of what is declared."""
        signature = self.signature
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": PLATFORM,
            "inputs": [{"name": s.name, "datatype": s.datatype, "shape": s.shape} for s in signature.inputs.values()],
            "outputs": [{"name": s.name, "datatype": s.datatype, "shape": s.shape} for s in signature.outputs.values()],
        }


def shortest(*timeouts_s: float | None) -> float | None:
    """The time that a request has, of what several say; None if nobody says."""
    return min((timeout_s for timeout_s in timeouts_s if timeout_s is not None), default=None)


def request_of(terms: Terms, headers: Mapping[str, str] | None, timeout_s: float | None) -> Request:
    """What a class that asks for its request gets."""
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    return Request(headers or {}, terms.parameters, terms.id, terms.tensor_parameters, deadline_s)


class Batched(Served):
    """One version whose requests go through a batcher. default_timeout_s: for requests without a deadline; 0 for none."""

    def __init__(
        self, name: str, version: str, batcher: Batcher, metrics: ModelMetrics, default_timeout_s: float
    ) -> None:
        self.name = name
        self.version = version
        self.batcher = batcher
        self.metrics = metrics
        self.default_timeout_s = default_timeout_s or None

    def cancel(self, started: Bound) -> None:
        self.batcher.cancel(started)

    @property
    def measured(self) -> Sequence[ModelMetrics]:
        return (self.metrics,)

    def check_room(self) -> None:
        policy = self.batcher.policy
        if policy.queued_rows >= policy.settings.max_queue_rows:
            raise policy.refusal()

    def flush(self) -> None:
        self.batcher.flush()

    def abandon(self) -> None:
        self.batcher.abandon()

    async def close(self) -> None:
        await self.batcher.close()


class ServedModel(Batched):
    """One version of one model, loaded."""

    def __init__(
        self,
        name: str,
        version: str,
        signature: Signature,
        batcher: Batcher,
        metrics: ModelMetrics,
        default_timeout_s: float = 0.0,
    ) -> None:
        super().__init__(name, version, batcher, metrics, default_timeout_s)
        self.signature = signature
        self._fits: Remembered[Terms, Fit] = Remembered(_MOST_FITS)

    def start(
        self, request: InferRequest, headers: Mapping[str, str] | None, timeout_s: float | None, answer: Answer
    ) -> Bound:
        terms = request.terms
        fit = self._fits.get(terms) or self._fit(request)
        bound = Bound(request.inputs, *fit)
        if terms.timeout_s is not None:
            timeout_s = shortest(terms.timeout_s, timeout_s)
        if timeout_s is None:
            timeout_s = self.default_timeout_s
        if self.signature.wants:
            bound.request = request_of(terms, headers, timeout_s)
        self.batcher.submit(bound, answer, timeout_s)
        return bound

    def _fit(self, request: InferRequest) -> Fit:
        """Check the outputs and inputs, once for all requests that share their terms."""
        self.signature.ask(request.terms.outputs)
        fit = self.signature.fit(request.inputs)
        if request.terms.are_kept:
            self._fits.keep(request.terms, fit)
        return fit


class DataPlane:
    """The models that are served, by name and version, and whether the server takes requests. `version` is its own."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.metrics = ServerMetrics()
        self._models: dict[str, list[Served]] = {}
        self.on_change: list[Callable[[], object]] = []
        """Called when a name leads elsewhere: what was remembered of it must be forgotten."""
        self.on_broken: list[Callable[[ModelBroken], object]] = []
        """Called when a model will answer nobody any more, since it hangs or its device is broken: this process must end."""
        self.tracing: Tracing | None = None
        self.is_ready = False
        self.is_draining = False
        self.readiness_changed = asyncio.Condition()

    async def load(
        self,
        name: str,
        version: str,
        executors: Sequence[Executor],
        settings: BatchingSettings,
        default_timeout_s: float = 0.0,
        model_timeout_s: float = 0.0,
    ) -> ServedModel:
        """Load a model on device threads of its own and warm it up; nobody is led to it yet. Raises what its `load` raises."""
        devices = DevicePool(name, executors)
        devices.start()
        policy: BatchingPolicy[Bound] = BatchingPolicy(settings, RunTimes())
        try:
            with self.metrics.phase("load"):
                await asyncio.gather(*map(asyncio.wrap_future, devices.load()))
            with self.metrics.phase("warm_up"):
                lessons = await warm_up(devices, settings.max_batch_size)
        except BaseException:
            devices.stop()
            raise
        metrics = ModelMetrics(name, version, policy, devices.memory_bytes)
        batcher = Batcher(policy, devices, self.observer(metrics), model_timeout_s, self._broke)
        batcher.teach(lessons)
        return ServedModel(name, version, devices.executor.signature, batcher, metrics, default_timeout_s)

    def observer(self, metrics: ModelMetrics) -> Observer:
        """Who is told of a model's batches: its metrics, and the spans of their requests where somebody wants them."""
        return metrics if self.tracing is None else Observers(metrics, self.tracing)

    def _broke(self, error: ModelBroken) -> None:
        for tell in self.on_broken:
            tell(error)

    def publish(self, name: str, models: Sequence[Served]) -> None:
        """Let the name lead to these versions, the default first; with none it is unknown."""
        self._models.pop(name, None)
        if models:
            self._models[name] = [*models]
        self.metrics.models = [metrics for model in self.models() for metrics in model.measured]
        self.metrics.steps = [metrics for model in self.models() for metrics in model.steps]
        for forget in self.on_change:
            forget()

    def names(self) -> list[str]:
        return [*self._models]

    def models(self) -> list[Served]:
        """Every version of every model."""
        return [model for versions in self._models.values() for model in versions]

    def versions(self, name: str) -> list[Served]:
        return self._models.get(name, [])

    def model(self, name: str, version: str = "") -> Served:
        """The version, or the default of them. Raises NotFound, which names what there is."""
        versions = self._models.get(name)
        if not versions:
            raise NotFound(f"model '{name}' is unknown, must be one of {', '.join(self._models)}")
        if not version:
            return versions[0]
        for model in versions:
            if model.version == version:
                return model
        there = ", ".join(model.version for model in versions)
        raise VersionNotFound(f"model '{name}' has no version '{version}', must be {there}")

    @property
    def is_healthy(self) -> bool:
        """What TorchServe's ping asks for, of the server and its models together."""
        return self.is_ready and all(model.is_healthy for model in self.models())

    def metadata(self, name: str, version: str = "") -> dict[str, object]:
        """The v2 metadata object of a model. Raises NotFound."""
        versions = [model.version for model in self.versions(name)]
        return self.model(name, version).metadata() | {"versions": versions}

    def check_accepting(self, model: Served) -> None:
        """Refuse in the cheapest place, before a body is read: Unavailable, or QueueFull."""
        if not (self.is_ready or self.is_draining):
            raise Unavailable("the server is not ready")
        model.check_room()

    def begin(self, model: Served, head: Head) -> tuple[Mapping[str, str] | None, Any]:
        """Of a request that is about to start: the headers that its model gets, and its span.

        The span is None unless the caller records the trace and somebody wants it.
        """
        headers: Mapping[str, str] | None = head.text_headers() if model.wants_headers else None
        trace = head.options.trace
        if trace is None:
            return headers, None
        span = None
        if self.tracing is not None and trace.is_sampled:
            span = self.tracing.begin(trace, model.name, model.version)
        return under(span, headers or {}), span

    def leaving(
        self, cancel: Callable[[], None], started: Any, span: Any, parts: Sequence[Any] | None = None
    ) -> Callable[[], None]:
        """What to call when the caller of a request that has been started leaves: it ends, and the span, if there is one.

        parts: of `started`, if it is batched in several.
        """
        if span is None:
            return cancel
        assert self.tracing is not None
        left = self.tracing.follow(started, span, (started,) if parts is None else parts)

        def leave() -> None:
            cancel()
            left()

        return leave

    async def set_ready(self, ready: bool) -> None:
        async with self.readiness_changed:
            self.is_ready = ready
            self.readiness_changed.notify_all()
