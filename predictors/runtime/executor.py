"""One user's class on one device: batches of requests in, each request's outputs out. Runs on its device thread.

A batch is put together by one copy of each request's rows into a fresh buffer (padded along named axes), given to
`predict` as tensors on the device, and cut into views of the outputs. If the class brings `collate` and `split`, these
do the first and the last step. A batch that fails is halved until the failing request is alone, so that it costs
nobody else an answer; one that runs out of memory is whole again the policy's, which forms smaller ones.

On a device that takes several batches at once (`pipeline.py`) a batch has two halves: `begin` enqueues all of its steps,
`run` waits for them and cuts. Elsewhere `run` does both.
"""

import asyncio
import gc
import inspect
import logging
import math
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..batching.run_times import WARM_UP_SIZE
from ..errors import InvalidInput, ModelBroken, ModelFailed, OutOfMemory, TorporError
from ..protocol.datatypes import (
    BFLOAT16,
    DTYPES,
    Array,
    bfloat16_from_float32,
    float32_from_bfloat16,
    object_array,
)
from ..signature import Bound, Request
from .cores import usable_cores
from .devices import AsynchronousDevice, Device, open_device
from .graphs import Graphs
from .out_of_memory import is_out_of_memory
from .tuning import Tuning
from .user_class import UserClass, UserClassError

if TYPE_CHECKING:
    from torch import Tensor

    from .pipeline import Pipeline, Slot

logger = logging.getLogger("torpor.model")

Outputs = dict[str, Array]


@dataclass(slots=True)
class Begun:
    """A batch whose steps are all enqueued: the outputs of each part, to be read when its slot's end has come.

    slot: None where nothing is enqueued, but done at once. error: what was raised instead.
    """

    results: list[Outputs] = field(default_factory=list)
    slot: "Slot | None" = None
    error: BaseException | None = None

    def pop_error(self) -> BaseException:
        """The error, which is kept here no longer: its frames keep the batch's tensors."""
        error, self.error = self.error, None
        assert error is not None
        return error


class Executor:
    """Loads a user's class and runs batches on it; every method but the constructor and `wait` belongs to one thread."""

    def __init__(
        self,
        user_class: UserClass,
        folder: Path | None = None,
        *,
        device: str | Device = "auto",
        threads: int = 0,
        parameters: Mapping[str, Any] | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        self._user_class = user_class
        self.signature = user_class.signature
        self.in_flight = 1
        self.halved_s = -math.inf
        self._folder = folder
        self._wanted_device = device
        self._threads = threads
        self._parameters = parameters or {}
        self._tuning = tuning or Tuning()
        self.compiles = self._tuning.compile != "off"
        self._model: Any = None
        self._torch: Any = None
        self._tensors: Any = None
        self._device: Device | None = None
        self._pipeline: Pipeline | None = None
        self._graphs: Graphs | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._autocasting: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._compiles_unseen = False

    def load(self) -> None:
        """Make the instance, call its `load` with those of folder, device and parameters that it takes, and tune it.

        A class whose module imported torch gets tensors, any other numpy arrays: a model without torch starts without it.
        Raises what `load` raises, and UserClassError for settings that would have no effect.
        """
        self._torch = sys.modules.get("torch")
        if self._torch is not None:
            self._open_device()
        else:
            self._check_without_torch()
        self._model = self._user_class.cls()
        if inspect.iscoroutinefunction(self._model.predict):
            self._loop = asyncio.new_event_loop()
        load = getattr(self._model, "load", None)
        torch_device = self._device.torch_device if self._device is not None else None
        with self._computing():
            if load is not None:
                offered = {"folder": self._folder, "device": torch_device, "parameters": self._parameters}
                taken = [name for name in inspect.signature(load).parameters if name in offered]
                load(**{name: offered[name] for name in taken})
            if torch_device is not None:
                self._tuning.apply(self._model, torch_device)

    @property
    def memory_bytes(self) -> Mapping[str, int]:
        """What this process has allocated of its device's own memory, by the device's name; nothing without such memory."""
        device = self._device
        size = device.allocated_bytes() if device is not None else None
        return {} if device is None or size is None else {str(device.torch_device): size}

    @property
    def instance(self) -> object:
        """The user's, once it is loaded."""
        return self._model

    def unload(self) -> None:
        """Call the class's `unload`, if it has one, drop the instance and all buffers, and give their memory back."""
        unload = getattr(self._model, "unload", None)
        try:
            if unload is not None:
                with self._computing():
                    unload()
        except Exception:
            logger.exception("unload raised; the model is dropped all the same")
        if self._loop is not None:
            self._loop.close()
        parts = _references(self._model)
        self._model = self._graphs = self._pipeline = self._loop = unload = None
        if any(part() is not None for part in parts):  # cycles keep it; a collection stops every thread for 0.1 s
            frozen = gc.get_freeze_count()
            gc.unfreeze()  # what was frozen with everything else at the start could not go
            gc.collect()
            if frozen:
                gc.freeze()
        if self._device is not None:
            self._device.free()

    def warm_up(self, rows: int) -> Bound | None:
        """A batch of `rows` zero rows to warm up with, or None if the declaration doesn't say how one looks."""
        signature = self.signature
        if not signature.names or not all(name in signature.inputs for name in signature.names):
            return None
        arrays: dict[str, Array] = {}
        for name in signature.names:
            spec = signature.inputs[name]
            if -1 in spec.axes or spec.is_json:
                return None
            shape = (rows, *(axis if isinstance(axis, int) else WARM_UP_SIZE for axis in spec.axes))
            arrays[name] = np.full(shape, b"" if spec.datatype == "BYTES" else 0, DTYPES[spec.datatype])
        bound = signature.bind(arrays)
        if signature.wants:
            bound.request = Request({}, {}, "")
        return bound

    def begin(self, parts: Sequence[Bound]) -> Begun:
        """Enqueue a batch. At most `in_flight` may have been begun that `run` has not ended, which raises their errors."""
        begun = Begun()
        try:
            with self._computing():
                if self._pipeline is None:
                    begun.results = self._run_batch(parts, None)
                    return begun
                begun.slot = self._pipeline.take()
                try:
                    begun.results = self._run_batch(parts, begun.slot)
                finally:
                    self._pipeline.close(begun.slot)
        except BaseException as error:
            begun.error = error
        return begun

    def wait(self, begun: Begun) -> None:
        """Wait for the end of a batch that was begun; any thread may. Raises what went wrong on the device."""
        if begun.slot is not None and self._pipeline is not None:
            self._pipeline.wait(begun.slot)

    def run(self, parts: Sequence[Bound], begun: Begun | None = None) -> list[Outputs | TorporError]:
        """The outputs of each part, or the error that it alone caused; OutOfMemory for all if they are too many rows."""
        try:
            return list(self._end(begun or self.begin(parts)))
        except (Exception, SystemExit) as error:  # sys.exit is the failure of the request that leads to it
            if self._device is not None and self._device.is_broken(error):
                logger.exception("the device is broken for good")
                return [ModelBroken("the model's device is broken, another server may answer")] * len(parts)
            if is_out_of_memory(error):
                rows = sum(part.rows for part in parts)
                logger.warning("the device ran out of memory with rows = %d: %s", rows, error)
                return [OutOfMemory(rows) for _ in parts]
            if len(parts) == 1:
                return [_failure(error)]
        # Not in the handler: there the error's frames keep the batch's tensors.
        middle = len(parts) // 2
        results: list[Outputs | TorporError] = []
        for half in (parts[:middle], parts[middle:]):
            self.halved_s = time.monotonic()
            results += self.run(half)
        return results

    def _end(self, begun: Begun) -> list[Outputs]:
        try:
            if begun.slot is not None and self._pipeline is not None:
                self._pipeline.give_back(begun.slot)
        finally:
            if begun.error is not None:
                raise begun.pop_error()
        return begun.results

    def _run_batch(self, parts: Sequence[Bound], slot: "Slot | None") -> list[Outputs]:
        collate: Callable[..., Any] | None = getattr(self._model, "collate", None)
        split: Callable[..., Any] | None = getattr(self._model, "split", None)
        items = [_plain(part.arrays) for part in parts] if collate or split else []
        inputs = collate(items) if collate else self._collate(parts, slot)
        extra: dict[str, Any] = {}
        if self.signature.wants == "request":
            extra["request"] = parts[0].request
        elif self.signature.wants == "requests":
            extra["requests"] = [part.request for part in parts for _ in range(part.rows)]
        graphs = self._graphs
        result = graphs.run(inputs, self._predict) if graphs is not None else self._predict(**inputs, **extra)
        if split is None:
            return self._split(self._named(result), parts)
        outputs = [self._named(item) for item in split(result, items)]
        if len(outputs) != len(parts):
            raise ModelFailed(f"split gave {len(outputs)} items, must be {len(parts)}, one for each of collate's")
        for part, output in zip(parts, outputs, strict=True):
            for name, array in output.items():
                self.signature.check_output(name, array, part.rows)
        return outputs

    def _predict(self, **inputs: Any) -> Any:
        """The class's own `predict`, its inputs and precision as the settings want them."""
        if self._tuning.changes_inputs:
            inputs = {name: self._tuning.input(v) if self._is_tensor(v) else v for name, v in inputs.items()}
        with self._autocasting():
            result = self._model.predict(**inputs)
            if self._loop is not None:
                result = self._loop.run_until_complete(result)
        if self._compiles_unseen:
            self._tuning.check_compiled(self._model)
            self._compiles_unseen = False
        return result

    def _collate(self, parts: Sequence[Bound], slot: "Slot | None") -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        staged: dict[str, list[Array]] = {}
        for name in parts[0].arrays:
            arrays = [part.arrays[name] for part in parts]
            if self._torch is None or arrays[0].dtype == object or name in self._user_class.as_numpy:
                batch = self._gather(name, arrays)
                inputs[name] = float32_from_bfloat16(batch) if batch.dtype == BFLOAT16 else batch
            elif slot is None:
                inputs[name] = self._tensors.from_array(self._gather(name, arrays))
            else:
                staged[name] = arrays
        if slot is not None and staged:
            layout = {name: (arrays[0].dtype, self._shape(name, arrays, parts)) for name, arrays in staged.items()}
            inputs |= slot.send(layout, lambda name, batch: self._fill(name, staged[name], batch))
        return inputs

    def _gather(self, name: str, arrays: list[Array]) -> Array:
        """The arrays' rows in one writable array, each copied once."""
        first, rows = arrays[0], sum(map(len, arrays))
        row_shape = first.shape[1:]
        # Without named axes a bucket's rows are all of one shape.
        if not self.signature.named_axes or all(array.shape[1:] == row_shape for array in arrays):
            if first.dtype == object:
                return np.concatenate(arrays)
            joined: Array = np.frombuffer(bytearray().join(arrays), first.dtype)  # type: ignore[arg-type]
            return joined.reshape(rows, *row_shape)
        batch: Array = np.empty((rows, *_longest(arrays)), first.dtype)
        self._fill(name, arrays, batch)
        return batch

    def _fill(self, name: str, arrays: list[Array], batch: Array) -> None:
        """Write the arrays' rows into a batch that may be larger, and its pad value elsewhere."""
        if batch.size != sum(array.size for array in arrays):
            pad: Any = b"" if batch.dtype == object else self.signature.inputs[name].pad
            batch[...] = bfloat16_from_float32(np.array(pad, np.float32)) if batch.dtype == BFLOAT16 else pad
        row = 0
        for array in arrays:
            batch[(slice(row, row + len(array)), *map(slice, array.shape[1:]))] = array
            row += len(array)

    def _shape(self, name: str, arrays: list[Array], parts: Sequence[Bound]) -> tuple[int, ...]:
        """The shape of a staged input. With graphs rows and named axes are rounded up, so that batches share one."""
        shape = _longest(arrays)
        spec = self.signature.inputs.get(name)
        if self._graphs is not None and spec is not None and self.signature.named_axes:
            sizes = map(max, zip(*(part.bucket.axes for part in parts), strict=True))
            rounded = dict(zip(self.signature.named_axes, sizes, strict=True))
            shape = tuple(
                rounded[axis] if isinstance(axis, str) else size for axis, size in zip(spec.axes, shape, strict=True)
            )
        return (self._rows(parts), *shape)

    def _rows(self, parts: Sequence[Bound]) -> int:
        rows = sum(part.rows for part in parts)
        return rows if self._graphs is None else self._graphs.rows(rows)

    def _named(self, result: Any) -> Outputs:
        """What `predict` returned as arrays by name: a mapping of outputs, or the only one."""
        if not isinstance(result, Mapping):
            result = {self._user_class.output_name: result}
        elif not result:
            raise ModelFailed("predict returned no outputs")
        outputs: Outputs = {}
        for name, value in result.items():
            if self._is_tensor(value):
                value = self._on_host(name, value.detach())
            elif isinstance(value, np.ndarray):
                value = self._half(name, value)
            outputs[name] = value if isinstance(value, np.ndarray) else _array(name, value)
        return outputs

    def _on_host(self, name: str, tensor: "Tensor") -> Array:
        """A tensor's values as an array, which has them when the batch has ended."""
        if self._tuning.changes_outputs:
            tensor = self._tuning.output(tensor, self.signature.outputs.get(name))
        if self._pipeline is not None:
            tensor = self._pipeline.copy_out(tensor)
        array: Array = self._tensors.to_array(tensor.cpu())
        return array

    def _half(self, name: str, array: Array) -> Array:
        """numpy has no bfloat16: an output declared so may be float32, or an array of the package ml_dtypes."""
        if array.dtype.name == "bfloat16":
            return array.view(BFLOAT16)
        spec = self.signature.outputs.get(name)
        if array.dtype == np.float32 and spec is not None and spec.datatype == "BF16":
            return bfloat16_from_float32(array)
        return array

    def _split(self, outputs: Outputs, parts: Sequence[Bound]) -> list[Outputs]:
        rows = self._rows(parts)
        for name, array in outputs.items():
            self.signature.check_output(name, array, rows)
        cuts = self._cuts(outputs)
        answers: list[Outputs] = []
        start = 0
        for part in parts:
            stop = start + part.rows
            answer = {name: array[start:stop] for name, array in outputs.items()}
            for name, axes in cuts.items():
                whole = answer[name].shape[1:]
                sizes = [size if at is None else part.sizes[at] for size, at in zip(whole, axes, strict=True)]
                answer[name] = answer[name][(slice(None), *map(slice, sizes))]
            answers.append(answer)
            start = stop
        return answers

    def _cuts(self, outputs: Outputs) -> dict[str, list[int | None]]:
        """For each output with named axes: which of the request's sizes each of its axes is cut back to."""
        named = self.signature.named_axes
        if not named:
            return {}
        cuts: dict[str, list[int | None]] = {}
        for name in outputs:
            spec = self.signature.outputs.get(name)
            if spec is not None and any(isinstance(axis, str) for axis in spec.axes):
                cuts[name] = [named.index(axis) if isinstance(axis, str) else None for axis in spec.axes]
        return cuts

    def _open_device(self) -> None:
        from . import tensors
        from .pipeline import Pipeline

        self._tensors = tensors
        self._torch.set_num_threads(self._threads or usable_cores())
        wanted = self._wanted_device
        self._device = device = open_device(wanted) if isinstance(wanted, str) else wanted
        self.in_flight = device.in_flight
        if self.in_flight > 1:
            self._pipeline = Pipeline(cast(AsynchronousDevice, device))
        if self._tuning.cuda_graphs:
            self._graphs = self._make_graphs(device)
        if self._tuning.autocast != "off":
            self._autocasting = partial(self._tuning.autocasting, device.torch_device)
        self._compiles_unseen = self.compiles

    def _check_without_torch(self) -> None:
        settings = self._tuning.text()
        if self._wanted_device not in ("auto", "cpu"):
            settings = f'device = "{self._wanted_device}"'
        if settings:
            raise UserClassError(f"{settings} has no effect: {self._user_class.cls.__name__} has no torch")

    def _make_graphs(self, device: Device) -> Graphs | None:
        if device.in_flight == 1:
            logger.warning("cuda_graphs = true has no effect: the device is %s", device.torch_device)
            return None
        cls, specs = self._user_class.cls, self.signature.inputs
        are_tensors = set(self.signature.names) == set(specs) and not self._user_class.as_numpy
        are_tensors &= all(spec.datatype != "BYTES" for spec in specs.values())
        is_plain = not (self.signature.wants or hasattr(cls, "collate") or inspect.iscoroutinefunction(cls.predict))  # type: ignore[attr-defined]
        if not (are_tensors and is_plain and not self.signature.optional):
            raise UserClassError(
                f"cuda_graphs = true: {cls.__name__}.predict must be a plain method of declared tensors, "
                "none of them optional, without request and collate"
            )
        return Graphs(cast(AsynchronousDevice, device))

    def _is_tensor(self, value: object) -> bool:
        return self._torch is not None and isinstance(value, self._torch.Tensor)

    def _computing(self) -> AbstractContextManager[Any]:
        return self._device.computing() if self._device is not None else nullcontext()


def _references(model: object) -> list[weakref.ref[Any]]:
    """Weak references to the model and to its attributes, of those that have such."""
    parts = (model, *getattr(model, "__dict__", {}).values())
    return [weakref.ref(part) for part in parts if type(part).__weakrefoffset__]


def _longest(arrays: list[Array]) -> tuple[int, ...]:
    """The shape of a row that holds a row of each."""
    if len(arrays) == 1:
        return arrays[0].shape[1:]
    return tuple(map(max, *(array.shape[1:] for array in arrays)))


def _plain(arrays: dict[str, Array]) -> dict[str, Array]:
    """A request's arrays as numpy users know them: BF16 as float32."""
    return {name: float32_from_bfloat16(a) if a.dtype == BFLOAT16 else a for name, a in arrays.items()}


def _failure(error: BaseException) -> TorporError:
    """What the caller of a request that fails alone is told."""
    if isinstance(error, ModelFailed | InvalidInput):
        return error
    logger.error("the model raised %s", type(error).__name__, exc_info=error)
    return ModelFailed(f"the model raised {type(error).__name__}; the server's log has the details")


def _array(name: str, value: Any) -> Array:
    if isinstance(value, list) and all(isinstance(element, str | bytes) for element in value):
        return object_array(value, [len(value)])
    try:
        return np.asarray(value)
    except ValueError:
        raise ModelFailed(f"output '{name}' is a {type(value).__name__}, must be a tensor or an array") from None
