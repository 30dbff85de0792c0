"""One of a transformer's methods on the rows of requests: a plain one on a thread in batches, a coroutine on the loop.

Both ways look alike to the chain: `start(bound, timeout_s, answer)` gives something that `cancel` takes, and `answer` is
called once, on the event loop.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from torpor.predictors.batching.bucket import Bucket
from torpor.predictors.batching.policy import BatchingPolicy, BatchingSettings
from torpor.predictors.batching.run_times import RunTimes
from torpor.predictors.errors import DeadlineExceeded, InvalidInput, ModelFailed, QueueFull, TorporError, Unavailable
from torpor.predictors.protocol.datatypes import BFLOAT16, Array, float32_from_bfloat16
from torpor.predictors.runtime.user_class import UserClass, inspect_class
from torpor.predictors.serving.batcher import Batcher
from torpor.predictors.serving.device_pool import DevicePool
from torpor.predictors.serving.device_thread import Executor
from torpor.predictors.serving.metrics import StepMetrics
from torpor.predictors.serving.tasks import Tasks
from torpor.predictors.signature import Bound, Signature

from .rows import Rows, check_even, cut

logger = logging.getLogger("torpor.transformer")

Answer = Callable[[Rows | TorporError], None]


class Transformer:
    """A transformer's object, made and loaded once for all who run its methods, and unloaded when the last has gone."""

    def __init__(self, cls: type, folder: Path | None, parameters: Mapping[str, Any]) -> None:
        self._cls = cls
        self._folder = folder
        self._parameters = parameters
        self._object: Any = None
        self._users = 0
        self._lock = Lock()

    def load(self) -> None:
        """Raises what the class raises."""
        with self._lock:
            self._users += 1
            if self._object is not None:
                return
            loading = self._cls()
            load = getattr(loading, "load", None)
            if load is not None:
                offered = {"folder": self._folder, "parameters": self._parameters}
                load(**{name: offered[name] for name in inspect.signature(load).parameters if name in offered})
            self._object = loading

    def unload(self) -> None:
        """Call the class's `unload`, if it has one, and drop the object."""
        with self._lock:
            self._users -= 1
            if self._users or self._object is None:
                return
            unload = getattr(self._object, "unload", None)
            self._object = None
        if unload is not None:
            try:
                unload()
            except Exception:
                logger.exception("unload raised; the transformer is dropped all the same")

    def method(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] = getattr(self._object, name)
        return method


@dataclass(frozen=True)
class Method:
    """A method as its class declares it. signature: with which rows of requests meet in one call, those of one shape."""

    transformer: Transformer
    name: str
    declared: UserClass
    signature: Signature
    is_coroutine: bool

    @classmethod
    def of(cls, transformer: Transformer, user_class: type, name: str) -> "Method | None":
        """None if the class has no such method. Raises UserClassError."""
        if not hasattr(user_class, name):
            return None
        declared = inspect_class(user_class, name)
        signature = declared.signature
        if signature.named_axes:  # nobody pads here
            inputs = {
                name: replace(spec, axes=tuple(-1 if isinstance(axis, str) else axis for axis in spec.axes))
                for name, spec in signature.inputs.items()
            }
            signature = Signature(signature.names, inputs, {}, signature.optional, signature.wants)
        is_coroutine = inspect.iscoroutinefunction(getattr(user_class, name))
        return cls(transformer, name, declared, signature, is_coroutine)

    def bind(self, inputs: Mapping[str, Array]) -> Bound:
        """Check inputs against the declaration. Raises InvalidInput."""
        if self.declared.signature.named_axes:
            self.declared.signature.fit(inputs)
        return self.signature.bind(dict(inputs))

    def bind_outputs(self, outputs: Rows) -> Bound:
        """Bind those of a predictor's outputs that the method takes. Raises ModelFailed: what is wrong is not the caller's."""
        names = self.signature.names or tuple(outputs)
        try:
            return self.bind(check_even({name: outputs[name] for name in names if name in outputs}))
        except InvalidInput as error:
            raise ModelFailed(f"the predictor's outputs do not fit {self.name}: {error}") from None

    def inputs(self, parts: Sequence[Bound]) -> dict[str, Any]:
        """The arguments of a call for all of the parts."""
        arguments: dict[str, Any] = {}
        for name in parts[0].arrays:
            array = np.concatenate([part.arrays[name] for part in parts])
            arguments[name] = float32_from_bfloat16(array) if array.dtype == BFLOAT16 else array
        if self.signature.wants == "request":
            arguments["request"] = parts[0].request
        elif self.signature.wants == "requests":
            arguments["requests"] = [part.request for part in parts for _ in range(part.rows)]
        return arguments

    def results(self, result: Any, parts: Sequence[Bound]) -> list[Rows]:
        """Each part's rows of what the call returned. Raises ModelFailed."""
        if not isinstance(result, Mapping):
            result = {self._only_name(): result}
        elif not result:
            raise ModelFailed(f"{self.name} returned nothing")
        pieces = cut(result, [part.rows for part in parts])
        if self.declared.signature.outputs:
            for part, rows in zip(parts, pieces, strict=True):
                for name, array in check_even(rows).items():
                    self.declared.signature.check_output(name, array, part.rows)
        return pieces

    def _only_name(self) -> str:
        """What an array that is returned alone is: of `preprocess` its input in another form, of `postprocess` the output."""
        if self.name == "postprocess":
            return self.declared.output_name
        if len(self.signature.names) != 1:
            raise ModelFailed(f"{self.name} returned an array alone, must return the predictor's inputs by name")
        return self.signature.names[0]


class StepExecutor:
    """A plain method on a thread: what `serving.device_thread` calls an executor."""

    in_flight = 1
    compiles = False

    def __init__(self, method: Method) -> None:
        self._method = method
        self.signature = method.signature

    def load(self) -> None:
        self._method.transformer.load()

    def unload(self) -> None:
        self._method.transformer.unload()

    def warm_up(self, rows: int) -> Bound | None:
        return None

    def begin(self, parts: Sequence[Bound]) -> Any:
        raise NotImplementedError  # one batch at a time

    def wait(self, begun: Any) -> None:
        raise NotImplementedError

    def run(self, parts: Sequence[Bound], begun: Any = None) -> list[Rows | TorporError]:
        """Each part's rows, or the error that it alone caused: what fails together is halved until it is alone."""
        method = self._method
        try:
            result = method.transformer.method(method.name)(**method.inputs(parts))
            return list(method.results(result, parts))
        except Exception as error:
            if len(parts) == 1:
                return [_failure(method.name, error)]
        middle = len(parts) // 2
        return self.run(parts[:middle]) + self.run(parts[middle:])


class Postprocessing:
    """A predictor's executor whose answers go through a plain `postprocess` before they leave the device's thread."""

    def __init__(self, inner: Executor, method: Method) -> None:
        self._inner = inner
        self._method = method
        self._step = StepExecutor(method)

    @property
    def signature(self) -> Signature:
        return self._inner.signature

    @property
    def in_flight(self) -> int:
        return self._inner.in_flight

    @property
    def compiles(self) -> bool:
        return self._inner.compiles

    def load(self) -> None:
        self._inner.load()
        self._step.load()

    def unload(self) -> None:
        self._inner.unload()
        self._step.unload()

    def warm_up(self, rows: int) -> Bound | None:
        return self._inner.warm_up(rows)

    def begin(self, parts: Sequence[Bound]) -> Any:
        return self._inner.begin(parts)

    def wait(self, begun: Any) -> None:
        self._inner.wait(begun)

    def run(self, parts: Sequence[Bound], begun: Any = None) -> list[Rows | TorporError]:
        results = self._inner.run(parts, begun)
        together: dict[Bucket, list[tuple[int, Bound]]] = {}
        for place, (part, result) in enumerate(zip(parts, results, strict=True)):
            if isinstance(result, TorporError):
                continue
            try:
                bound = self._method.bind_outputs(result)
            except TorporError as error:
                results[place] = error
                continue
            bound.request = part.request
            together.setdefault(bound.bucket, []).append((place, bound))
        for chosen in together.values():
            ran = self._step.run([bound for _, bound in chosen])
            for (place, _), result in zip(chosen, ran, strict=True):
                results[place] = result
        return results


class Step(Protocol):
    """A method, ready to run."""

    method: Method
    metrics: StepMetrics

    def start(self, bound: Bound, timeout_s: float | None, answer: Answer) -> Any:
        """Begin. Raises QueueFull, Unavailable, DeadlineExceeded, and then does not call `answer`."""
        ...

    def cancel(self, started: Any) -> None: ...
    def check_room(self) -> None: ...
    def flush(self) -> None: ...
    def abandon(self) -> None: ...
    async def close(self) -> None: ...


class ThreadStep:
    """A plain method: one thread, and on it all the rows that came meanwhile."""

    def __init__(
        self, method: Method, devices: DevicePool, settings: BatchingSettings, name: str, version: str
    ) -> None:
        self.method = method
        policy: BatchingPolicy[Bound] = BatchingPolicy(settings, RunTimes())
        self.metrics = StepMetrics(name, version, method.name)
        self._batcher = Batcher(policy, devices, self.metrics)

    def start(self, bound: Bound, timeout_s: float | None, answer: Answer) -> Bound:
        self._batcher.submit(bound, answer, timeout_s)
        return bound

    def cancel(self, started: Bound) -> None:
        self._batcher.cancel(started)

    def check_room(self) -> None:
        policy = self._batcher.policy
        if policy.queued_rows >= policy.settings.max_queue_rows:
            raise policy.refusal()

    def flush(self) -> None:
        self._batcher.flush()

    def abandon(self) -> None:
        self._batcher.abandon()

    async def close(self) -> None:
        await self._batcher.close()


class LoopStep:
    """A coroutine: a task for each request, of at most so many rows together."""

    def __init__(self, method: Method, settings: BatchingSettings, name: str, version: str) -> None:
        self.method = method
        self.metrics = StepMetrics(name, version, method.name)
        self._most_rows = settings.max_queue_rows
        self._rows = 0
        self._is_closed = False
        self._tasks = Tasks()
        self._loop = asyncio.get_running_loop()

    def start(self, bound: Bound, timeout_s: float | None, answer: Answer) -> Any:
        if self._is_closed:
            raise Unavailable("the transformer has just been unloaded or replaced")
        if timeout_s is not None and timeout_s <= 0:
            raise DeadlineExceeded("the deadline had passed when the request arrived")
        if self._rows + bound.rows > self._most_rows:
            raise self._refusal()
        self._rows += bound.rows
        return self._tasks.start(self._run(bound, timeout_s, answer), self.method.name)

    def cancel(self, started: "asyncio.Task[None]") -> None:
        started.cancel()

    def check_room(self) -> None:
        if self._rows >= self._most_rows:
            raise self._refusal()

    def flush(self) -> None:
        pass  # nothing waits for company

    def abandon(self) -> None:
        pass  # all of them have begun

    async def close(self) -> None:
        self._is_closed = True
        await self._tasks.ended()
        self.method.transformer.unload()

    def _refusal(self) -> QueueFull:
        return QueueFull(f"rows in {self.method.name} = {self._rows}, must stay within {self._most_rows}", 1.0)

    async def _run(self, bound: Bound, timeout_s: float | None, answer: Answer) -> None:
        method, began_s = self.method, time.perf_counter()
        result: Rows | TorporError
        try:
            async with asyncio.timeout(timeout_s) as limit:
                returned = await method.transformer.method(method.name)(**method.inputs([bound]))
            (result,) = method.results(returned, [bound])
        except Exception as error:
            result = _failure(method.name, error)
            if limit.expired():
                result = DeadlineExceeded(f"the deadline passed in {method.name}")
        finally:
            self._rows -= bound.rows
        self.metrics.seconds.observe(time.perf_counter() - began_s)
        answer(result)


def _failure(method: str, error: Exception) -> TorporError:
    """What the caller of a request that fails alone is told."""
    if isinstance(error, ModelFailed | InvalidInput | Unavailable):
        return error
    logger.error("%s raised %s", method, type(error).__name__, exc_info=error)
    return ModelFailed(f"{method} raised {type(error).__name__}; the server's log has the details")
