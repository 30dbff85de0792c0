"""One user's class on one device: batches of requests in, each request's outputs out. Runs on its device thread.

A batch is put together by one copy of each request's rows into a fresh buffer (padded along named axes), given to
`predict` as tensors on the device, and cut into views of the outputs. If the class brings `collate` and `split`, these
do the first and the last step. A batch that fails is halved until the failing request is alone, so that it costs
nobody else an answer; one that runs out of memory is whole again the policy's, which forms smaller ones.
"""

import asyncio
import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidInput, ModelFailed, OutOfMemory, TorporError
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
from .out_of_memory import is_out_of_memory
from .user_class import UserClass

logger = logging.getLogger("torpor.model")

Outputs = dict[str, Array]

_WARM_UP_SIZE = 16
"""Size of a named axis in warm-up: small, so that a start stays short; the slope is learned from traffic."""


class Executor:
    """Loads a user's class and runs batches on it; every method but the constructor belongs to one thread."""

    def __init__(
        self,
        user_class: UserClass,
        folder: Path | None = None,
        *,
        device: str = "auto",
        threads: int = 0,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self._user_class = user_class
        self.signature = user_class.signature
        self._folder = folder
        self._device_name = device
        self._threads = threads
        self._parameters = parameters or {}
        self._model: Any = None
        self._torch: Any = None
        self._device: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def load(self) -> None:
        """Make the instance and call its `load` with those of folder, device and parameters that it takes.

        A class whose module imported torch gets tensors, any other numpy arrays: a model without torch starts without it.
        """
        self._torch = sys.modules.get("torch")
        if self._torch is not None:
            self._torch.set_num_threads(self._threads or usable_cores())
            self._device = self._torch.device(self._choose_device())
        self._model = self._user_class.cls()
        if inspect.iscoroutinefunction(self._model.predict):
            self._loop = asyncio.new_event_loop()
        load = getattr(self._model, "load", None)
        if load is not None:
            offered = {"folder": self._folder, "device": self._device, "parameters": self._parameters}
            taken = [name for name in inspect.signature(load).parameters if name in offered]
            with self._inference_mode():
                load(**{name: offered[name] for name in taken})

    def warm_up(self, rows: int) -> Bound | None:
        """A batch of `rows` zero rows to warm up with, or None if the declaration doesn't say how one looks."""
        signature = self.signature
        if not signature.names or not all(name in signature.inputs for name in signature.names):
            return None
        arrays: dict[str, Array] = {}
        for name in signature.names:
            spec = signature.inputs[name]
            if -1 in spec.axes:
                return None
            shape = (rows, *(axis if isinstance(axis, int) else _WARM_UP_SIZE for axis in spec.axes))
            arrays[name] = np.full(shape, b"" if spec.datatype == "BYTES" else 0, DTYPES[spec.datatype])
        bound = signature.bind(arrays)
        if signature.wants:
            bound.request = Request({}, {}, "")
        return bound

    def run(self, parts: Sequence[Bound]) -> list[Outputs | TorporError]:
        """The outputs of each part, or the error that it alone caused; OutOfMemory for all if they are too many rows."""
        try:
            return list(self._run_batch(parts))
        except Exception as error:
            if is_out_of_memory(error):
                rows = sum(part.rows for part in parts)
                logger.warning("the device ran out of memory with rows = %d: %s", rows, error)
                return [OutOfMemory(rows) for _ in parts]
            if len(parts) == 1:
                return [_failure(error)]
        # Not in the handler: there the error's frames keep the batch's tensors.
        middle = len(parts) // 2
        return self.run(parts[:middle]) + self.run(parts[middle:])

    def _run_batch(self, parts: Sequence[Bound]) -> list[Outputs]:
        with self._inference_mode():
            collate: Callable[..., Any] | None = getattr(self._model, "collate", None)
            split: Callable[..., Any] | None = getattr(self._model, "split", None)
            items = [_plain(part.arrays) for part in parts] if collate or split else []
            inputs = collate(items) if collate else self._collate(parts)
            extra: dict[str, Any] = {}
            if self.signature.wants == "request":
                extra["request"] = parts[0].request
            elif self.signature.wants == "requests":
                extra["requests"] = [part.request for part in parts for _ in range(part.rows)]
            result = self._model.predict(**inputs, **extra)
            if self._loop is not None:
                result = self._loop.run_until_complete(result)
            if split is None:
                return self._split(self._named(result), parts)
            outputs = [self._named(item) for item in split(result, items)]
            if len(outputs) != len(parts):
                raise ModelFailed(f"split gave {len(outputs)} items, must be {len(parts)}, one for each of collate's")
            for part, output in zip(parts, outputs, strict=True):
                for name, array in output.items():
                    self.signature.check_output(name, array, part.rows)
            return outputs

    def _collate(self, parts: Sequence[Bound]) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        for name in parts[0].arrays:
            batch = self._gather(name, [part.arrays[name] for part in parts])
            if self._torch is None or batch.dtype == object or name in self._user_class.as_numpy:
                inputs[name] = float32_from_bfloat16(batch) if batch.dtype == BFLOAT16 else batch
            else:
                if batch.dtype == BFLOAT16:
                    tensor = self._torch.from_numpy(batch.view(np.int16)).view(self._torch.bfloat16)
                else:
                    tensor = self._torch.from_numpy(batch)
                inputs[name] = tensor if self._device.type == "cpu" else tensor.to(self._device)
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
        shape = tuple(map(max, *(array.shape[1:] for array in arrays)))
        pad: Any = b"" if first.dtype == object else self.signature.inputs[name].pad
        if first.dtype == BFLOAT16:
            pad = bfloat16_from_float32(np.array(pad, np.float32))
        batch: Array = np.full((rows, *shape), pad, first.dtype)
        row = 0
        for array in arrays:
            batch[(slice(row, row + len(array)), *map(slice, array.shape[1:]))] = array
            row += len(array)
        return batch

    def _named(self, result: Any) -> Outputs:
        """What `predict` returned as arrays by name: a mapping of outputs, or the only one."""
        if not isinstance(result, Mapping):
            result = {self._user_class.output_name: result}
        elif not result:
            raise ModelFailed("predict returned no outputs")
        outputs: Outputs = {}
        for name, value in result.items():
            if self._torch is not None and isinstance(value, self._torch.Tensor):
                value = value.detach().cpu()
                if value.dtype is self._torch.bfloat16:
                    value = value.view(self._torch.int16).numpy().view(BFLOAT16)
                else:
                    value = value.numpy()
            elif isinstance(value, np.ndarray):
                value = self._half(name, value)
            outputs[name] = value if isinstance(value, np.ndarray) else _array(name, value)
        return outputs

    def _half(self, name: str, array: Array) -> Array:
        """numpy has no bfloat16: an output declared so may be float32, or an array of the package ml_dtypes."""
        if array.dtype.name == "bfloat16":
            return array.view(BFLOAT16)
        spec = self.signature.outputs.get(name)
        if array.dtype == np.float32 and spec is not None and spec.datatype == "BF16":
            return bfloat16_from_float32(array)
        return array

    def _split(self, outputs: Outputs, parts: Sequence[Bound]) -> list[Outputs]:
        rows = sum(part.rows for part in parts)
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
                sizes = [
                    size if at is None else min(size, part.sizes[at]) for size, at in zip(whole, axes, strict=True)
                ]
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

    def _choose_device(self) -> str:
        if self._device_name != "auto":
            return self._device_name
        return "cuda" if self._torch.cuda.is_available() else "cpu"

    def _inference_mode(self) -> Any:
        return self._torch.inference_mode() if self._torch is not None else nullcontext()


def _plain(arrays: dict[str, Array]) -> dict[str, Array]:
    """A request's arrays as numpy users know them: BF16 as float32."""
    return {name: float32_from_bfloat16(a) if a.dtype == BFLOAT16 else a for name, a in arrays.items()}


def _failure(error: Exception) -> TorporError:
    """What the caller of a request that fails alone is told."""
    if isinstance(error, ModelFailed | InvalidInput):
        return error
    logger.error("the model raised %s", type(error).__name__, exc_info=error)
    return ModelFailed(f"the model raised {type(error).__name__}; the server's log has the details")


def _array(name: str, value: Any) -> Array:
    if isinstance(value, list) and value and all(isinstance(element, str | bytes) for element in value):
        return object_array(value, [len(value)])
    try:
        return np.asarray(value)
    except ValueError:
        raise ModelFailed(f"output '{name}' is a {type(value).__name__}, must be a tensor or an array") from None
