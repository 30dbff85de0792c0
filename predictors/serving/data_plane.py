"""The models that a server has, and an inference on one of them, whatever protocol it came by."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from ..batching.policy import BatchingPolicy, BatchingSettings
from ..batching.run_times import RunTimes
from ..errors import InvalidInput, ModelFailed, NotFound, TorporError, Unavailable
from ..protocol.inference import InferRequest, InferResponse, Terms
from ..remembered import Remembered
from ..signature import Bound, Fit, Request, Signature
from .batcher import Answer, Batcher, Outputs
from .device_thread import DeviceThread, Executor
from .metrics import ModelMetrics, ServerMetrics
from .worker import Colleagues

EXTENSIONS = ("binary_tensor_data",)
PLATFORM = "torpor"


_MOST_FITS = 512
"""As many as a protocol keeps terms."""


@dataclass(slots=True)
class ServedModel:
    """One version of one model, loaded. default_timeout_s: for requests without a deadline; 0 for none."""

    name: str
    version: str
    signature: Signature
    batcher: Batcher
    default_timeout_s: float = 0.0
    _fits: Remembered[Terms, Fit] = field(default_factory=lambda: Remembered(_MOST_FITS))

    def start(
        self, request: InferRequest, headers: Mapping[str, str] | None, timeout_s: float | None, answer: Answer
    ) -> Bound:
        """Check the request and queue it; `answer` is called once, later, unless `batcher.cancel` is called before.

        headers: given on to a class that asks for its request. timeout_s: what the caller still has by its transport,
        None if that did not say; its request may say less. Raises a TorporError, and then does not call `answer`.
        """
        terms = request.terms
        fit = self._fits.get(terms) or self._fit(request)
        bound = Bound(request.inputs, *fit)
        wants = self.signature.wants
        if wants:
            bound.request = Request(headers or {}, terms.parameters, terms.id)
            if wants == "request":  # rows of one request only share a batch
                bound.bucket = bound.bucket._replace(family=object())
        if terms.timeout_s is not None and (timeout_s is None or terms.timeout_s < timeout_s):
            timeout_s = terms.timeout_s
        if timeout_s is None and self.default_timeout_s:
            timeout_s = self.default_timeout_s
        self.batcher.submit(bound, answer, timeout_s)
        return bound

    def response(self, terms: Terms, outputs: Outputs) -> InferResponse:
        """The outputs that were asked for. Raises InvalidInput for one that the model did not give."""
        if terms.outputs:
            missing = [name for name in terms.outputs if name not in outputs]
            if missing:
                raise InvalidInput(f"output '{missing[0]}' is unknown, must be one of {', '.join(outputs)}")
            outputs = {name: outputs[name] for name in terms.outputs}
        return InferResponse(self.name, self.version, outputs, terms.id)

    async def infer(
        self, request: InferRequest, headers: Mapping[str, str] | None = None, timeout_s: float | None = None
    ) -> InferResponse:
        """`start` for a coroutine: its response, or its error raised. Cancelled, it drops the rows that still wait."""
        outputs: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()

        def answer(result: Outputs | TorporError) -> None:
            if isinstance(result, TorporError):
                outputs.set_exception(result)
            else:
                outputs.set_result(result)

        bound = self.start(request, headers, timeout_s, answer)
        try:
            return self.response(request.terms, await outputs)
        finally:
            self.batcher.cancel(bound)

    def _fit(self, request: InferRequest) -> Fit:
        """Check the outputs and inputs, once for all requests that share their terms."""
        self.signature.ask(request.terms.outputs)
        fit = self.signature.fit(request.inputs)
        if request.terms.are_kept:
            self._fits.keep(request.terms, fit)
        return fit

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


class DataPlane:
    """The models by name, and whether the server takes requests. `version` is the server's own."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.metrics = ServerMetrics()
        self.models: dict[str, ServedModel] = {}
        self.colleagues: Colleagues | None = None
        """The server's processes, if it has more than one."""
        self.is_ready = False
        self.is_draining = False
        self.readiness_changed = asyncio.Condition()

    async def add(
        self, name: str, version: str, executor: Executor, settings: BatchingSettings, default_timeout_s: float = 0.0
    ) -> ServedModel:
        """Load a model on a device thread of its own, warm it up, and serve it. Raises what its `load` raises."""
        device = DeviceThread(name, executor)
        device.start()
        started_s = time.perf_counter()
        await asyncio.wrap_future(device.call(executor.load))
        self.metrics.start_phases["load"] = time.perf_counter() - started_s
        run_times = RunTimes()
        policy: BatchingPolicy[Bound] = BatchingPolicy(settings, run_times)
        metrics = ModelMetrics(name, version, lambda: policy.queued_rows)
        self.metrics.models.append(metrics)
        started_s = time.perf_counter()
        for rows, is_first in ((1, True), (1, False), (min(4, settings.max_batch_size), False)):
            bound = executor.warm_up(rows)
            if bound is None:
                break
            began_s = time.perf_counter()
            (result,) = await asyncio.wrap_future(device.call(partial(executor.run, [bound])))
            if isinstance(result, InvalidInput):  # zeros are not what it takes: then its first caller warms it up
                break
            if isinstance(result, ModelFailed):
                raise result
            if not is_first:  # it allocates, and would make every later batch look dear
                run_times.observe(rows, bound.bucket, time.perf_counter() - began_s)
        self.metrics.start_phases["warm_up"] = time.perf_counter() - started_s
        batcher = Batcher(policy, device, metrics)
        model = ServedModel(name, version, executor.signature, batcher, default_timeout_s)
        self.models[name] = model
        return model

    def model(self, name: str, version: str = "") -> ServedModel:
        """Raises NotFound, which names what there is."""
        model = self.models.get(name)
        if model is None:
            raise NotFound(f"model '{name}' is unknown, must be one of {', '.join(self.models)}")
        if version and version != model.version:
            raise NotFound(f"model '{name}' has no version '{version}', must be {model.version}")
        return model

    def check_accepting(self, model: ServedModel) -> None:
        """Refuse in the cheapest place, before a body is read: Unavailable, or QueueFull."""
        if not (self.is_ready or self.is_draining):
            raise Unavailable("the server is not ready")
        policy = model.batcher.policy
        if policy.queued_rows >= policy.settings.max_queue_rows:  # not even one row more
            raise policy.refusal()

    async def set_ready(self, ready: bool) -> None:
        async with self.readiness_changed:
            self.is_ready = ready
            self.readiness_changed.notify_all()
