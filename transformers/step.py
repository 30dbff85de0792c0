"""One of a transformer's methods on the rows of requests: a plain one on a thread in batches, a coroutine on the loop.

Both ways look alike to the chain: `start(bound, timeout_s, answer)` gives something that `cancel` takes, and `answer` is
called once, on the event loop.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any

import numpy as np
from torpor.predictors.batching.bucket import Bucket
from torpor.predictors.batching.policy import BatchingSettings
from torpor.predictors.errors import DeadlineExceeded, InvalidInput, ModelFailed, QueueFull, TorporError, Unavailable
from torpor.predictors.protocol.datatypes import BFLOAT16, Array, float32_from_bfloat16
from torpor.predictors.runtime.user_class import UserClass, inspect_class
from torpor.predictors.serving.metrics import StepMetrics
from torpor.predictors.serving.tasks import Tasks, has_succeeded, settle
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

    def families(self, labels: Mapping[str, str]) -> Iterable[Any]:
        """What the class counts: of its attribute `metrics` the Prometheus families for these labels."""
        families = getattr(getattr(self._object, "metrics", None), "families", None)
        return families(labels) if families is not None else ()

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

    def metrics(self, model_name: str, model_version: str) -> StepMetrics:
        """What the class counts itself stands with `preprocess` alone, so that it is there once."""
        if self.name != "preprocess":
            return StepMetrics(model_name, model_version, self.name)
        return StepMetrics(model_name, model_version, self.name, self.transformer.families)

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
            arrays = [part.arrays[name] for part in parts]
            array = np.concatenate(arrays) if len(arrays) > 1 else arrays[0].copy()  # the class may write into it
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


class Step:
    """A method, ready to run, for at most so many rows together: those that run count as well as those that wait."""

    def __init__(self, method: Method, settings: BatchingSettings, name: str, version: str) -> None:
        self.method = method
        self.metrics = method.metrics(name, version)
        self._most_rows = settings.max_queue_rows
        self._rows = 0
        self._is_closed = False
        self._loop = asyncio.get_running_loop()

    async def open(self) -> None:
        """Load the transformer beside the loop. Raises what the class raises; cancelled, it unloads it when it can."""
        raise NotImplementedError

    def start(self, bound: Bound, timeout_s: float | None, answer: Answer) -> Any:
        """Begin. Raises QueueFull, Unavailable, DeadlineExceeded, and then does not call `answer`."""
        raise NotImplementedError

    def cancel(self, started: Any) -> None:
        """Nobody waits any more for what `start` returned this for."""
        raise NotImplementedError

    def check_room(self) -> None:
        """Raise QueueFull if not even one row more may come."""
        self._check_room_for(1)

    def flush(self) -> None:
        pass  # nothing waits for company

    def abandon(self) -> None:
        pass  # what waits is next, or all have begun

    async def close(self) -> None:
        """Take nothing more, answer what was taken, and unload."""
        raise NotImplementedError

    def expired(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the deadline passed in {self.method.name}")

    def _take(self, bound: Bound, timeout_s: float | None) -> None:
        """Count the rows in. Raises Unavailable, DeadlineExceeded, QueueFull."""
        if self._is_closed:
            raise Unavailable("the transformer has just been unloaded or replaced")
        if timeout_s is not None and timeout_s <= 0:
            raise DeadlineExceeded("the deadline had passed when the request arrived")
        self._check_room_for(bound.rows)
        self._rows += bound.rows

    def _check_room_for(self, rows: int) -> None:
        if self._rows + rows > self._most_rows:
            held = f"rows in {self.method.name} = {self._rows}, must stay within {self._most_rows}"
            raise QueueFull(held, 1.0)


class ThreadStep(Step):
    """A plain method: one thread, and each time that it is free all the rows that came meanwhile.

    Nothing waits for company and nothing is padded, so there is no policy: a queue, which the thread empties.
    """

    def __init__(self, method: Method, settings: BatchingSettings, name: str, version: str) -> None:
        super().__init__(method, settings, name, version)
        self._most_at_once = settings.max_batch_size
        self._queue: SimpleQueue[Bound | None] = SimpleQueue()
        self._ended = asyncio.Event()
        self.turn = Lock()
        """Who runs the method, which a class need not expect twice at a time."""

    @property
    def is_idle(self) -> bool:
        """Whether it has no rows."""
        return not self._rows

    async def open(self) -> None:
        loaded: Future[None] = Future()
        Thread(target=self._work, args=(loaded,), name=f"torpor-{self.method.name}", daemon=True).start()
        try:
            await asyncio.wrap_future(loaded)
        except asyncio.CancelledError:  # nobody will close it
            self._queue.put(None)
            raise

    def start(self, bound: Bound, timeout_s: float | None, answer: Answer) -> Bound:
        self._take(bound, timeout_s)
        if timeout_s is not None:
            self._loop.call_later(timeout_s, self._expire, bound)
        bound.answer = answer
        self._queue.put(bound)
        return bound

    def cancel(self, started: Bound) -> None:
        started.answer = None  # the thread passes it over

    async def close(self) -> None:
        self._is_closed = True
        self._queue.put(None)
        await self._ended.wait()

    def _expire(self, bound: Bound) -> None:
        answer, bound.answer = bound.answer, None
        if answer is not None:
            answer(self.expired())

    def _work(self, loaded: "Future[None]") -> None:
        """The thread."""
        settle(loaded, self.method.transformer.load)
        if not has_succeeded(loaded):
            return
        while (first := self._queue.get()) is not None:
            bounds, is_last = [first], False
            rows = first.rows
            while rows < self._most_at_once and not is_last:
                try:
                    more = self._queue.get_nowait()
                except Empty:
                    break
                if more is None:
                    is_last = True
                else:
                    bounds.append(more)
                    rows += more.rows
            began_s = time.perf_counter()
            with self.turn:
                results = run_alike([bound for bound in bounds if bound.answer is not None], self.method)
            self._loop.call_soon_threadsafe(self._done, bounds, results, time.perf_counter() - began_s)
            if is_last:
                break
        self.method.transformer.unload()
        with suppress(RuntimeError):  # the loop has closed: nobody waits
            self._loop.call_soon_threadsafe(self._ended.set)

    def _done(self, bounds: list[Bound], results: "dict[Bound, Rows | TorporError]", seconds: float) -> None:
        self.metrics.seconds.observe(seconds)
        for bound in bounds:
            self._rows -= bound.rows
            answer, bound.answer = bound.answer, None
            if answer is not None:
                answer(results[bound])


def run_alike(bounds: Sequence[Bound], method: Method) -> "dict[Bound, Rows | TorporError]":
    """Run those of one shape together."""
    if len(bounds) == 1:
        return {bounds[0]: run(method, bounds)[0]}
    alike: dict[Bucket, list[Bound]] = {}
    for bound in bounds:
        alike.setdefault(bound.bucket, []).append(bound)
    results: dict[Bound, Rows | TorporError] = {}
    for bucket, chosen in alike.items():
        for part in [[one] for one in chosen] if bucket.alone else [chosen]:
            results |= zip(part, run(method, part), strict=True)
    return results


def run(method: Method, parts: Sequence[Bound]) -> list[Rows | TorporError]:
    """Each part's rows, or the error that it alone caused: what fails together is halved until it is alone."""
    try:
        result = method.transformer.method(method.name)(**method.inputs(parts))
        return list(method.results(result, parts))
    except BaseException as error:  # SystemExit from a method must not end the thread that others wait for
        if len(parts) == 1:
            return [_failure(method.name, error)]
    middle = len(parts) // 2
    return run(method, parts[:middle]) + run(method, parts[middle:])


class LoopStep(Step):
    """A coroutine: a task for each request, of at most so many rows together."""

    def __init__(self, method: Method, settings: BatchingSettings, name: str, version: str) -> None:
        super().__init__(method, settings, name, version)
        self._tasks = Tasks()

    async def open(self) -> None:
        transformer = self.method.transformer
        loaded: Future[None] = Future()
        Thread(target=settle, args=(loaded, transformer.load), name="torpor-load", daemon=True).start()
        try:
            await asyncio.wrap_future(loaded)
        except asyncio.CancelledError:
            loaded.add_done_callback(lambda loaded: transformer.unload() if has_succeeded(loaded) else None)
            raise

    def start(self, bound: Bound, timeout_s: float | None, answer: Answer) -> Any:
        self._take(bound, timeout_s)
        return self._tasks.start(self._run(bound, timeout_s, answer), self.method.name)

    def cancel(self, started: "asyncio.Task[None]") -> None:
        started.cancel()

    async def close(self) -> None:
        self._is_closed = True
        await self._tasks.ended()
        self.method.transformer.unload()

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
                result = self.expired()
        finally:
            self._rows -= bound.rows
        self.metrics.seconds.observe(time.perf_counter() - began_s)
        answer(result)


def _failure(method: str, error: BaseException) -> TorporError:
    """What the caller of a request that fails alone is told."""
    if isinstance(error, ModelFailed | InvalidInput | Unavailable):
        return error
    logger.error("%s raised %s", method, type(error).__name__, exc_info=error)
    return ModelFailed(f"{method} raised {type(error).__name__}; the server's log has the details")
