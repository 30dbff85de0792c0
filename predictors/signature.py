"""What a model takes and gives: declared tensors, and the check of a request against them.

A tensor is declared as text, `float32[rows, 784]`: a dtype, then one entry an axis. The first axis is `rows` (or -1).
The others are a size, `-1` (any size; rows of different sizes don't share a batch), or a name: any size, torpor may pad
it, and every tensor with that name of axis has one size there. An output is cut back to its request's own sizes.
"""

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .batching.bucket import Bucket, rounded
from .batching.policy import Item
from .errors import InvalidInput, ModelFailed
from .protocol.datatypes import DTYPES, JSON, NAMES, Array
from .protocol.inference import NO_TENSOR_PARAMETERS, Parameters

_DTYPE_WORDS = {
    "bool": "BOOL", "bytes": "BYTES", "float16": "FP16", "bfloat16": "BF16", "float32": "FP32", "float64": "FP64",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "json": "BYTES",
}  # fmt: skip

_MOST_FITS = 512

_SPEC = re.compile(r"\s*(\w+)\s*\[([^\]]*)\]\s*")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One declared tensor. axes: after rows; an int is a fixed size, -1 any size, a str a named axis.

    pad: the value that fills a row up along its named axes. is_json: its elements are JSON texts; in v1 they are what
    the texts say, one a row.
    """

    name: str
    datatype: str
    axes: tuple[int | str, ...]
    pad: float = 0
    is_json: bool = False

    @classmethod
    def parse(cls, name: str, text: str, pad: float = 0) -> "TensorSpec":
        """Read `dtype[rows, …]`; raises ValueError that says which part is wrong."""
        match = _SPEC.fullmatch(text)
        if match is None:
            raise ValueError(f"tensor '{name}': {text!r} is not of the form 'float32[rows, 784]'")
        word, inner = match.groups()
        datatype = _DTYPE_WORDS.get(word, word)
        if datatype not in DTYPES:
            raise ValueError(f"tensor '{name}': dtype {word!r} must be one of {', '.join(sorted(_DTYPE_WORDS))}")
        first, *rest = [entry.strip() for entry in inner.split(",")]
        if first not in ("rows", "-1"):
            raise ValueError(f"tensor '{name}': the first axis is {first!r}, must be 'rows' or -1")
        axes: list[int | str] = []
        for entry in rest:
            if entry == "-1" or entry.isdecimal():
                axes.append(int(entry))
            elif entry.isidentifier():
                axes.append(entry)
            else:
                raise ValueError(f"tensor '{name}': axis {entry!r} must be a size, -1 or a name")
        if word == "json" and axes:
            raise ValueError(f"tensor '{name}': {text!r}, must be 'json[rows]': a row is one JSON value")
        return cls(name, datatype, tuple(axes), pad, word == "json")

    @property
    def shape(self) -> list[int]:
        """The shape as metadata shows it: -1 for rows and for every axis without a fixed size."""
        return [-1, *(axis if isinstance(axis, int) else -1 for axis in self.axes)]


@dataclass(frozen=True, slots=True)
class Request:
    """What a class that asks for `request` (or `requests`, one a row) learns of its caller, beside the inputs.

    headers: HTTP headers or gRPC metadata, names in lower case. parameters: the v2 request's. id: "" without one.
    tensor_parameters: the parameters of each input that brings any, by its name.
    deadline_s: when its caller stops waiting, by `time.monotonic()`; None if it does not say.
    """

    headers: Mapping[str, str]
    parameters: Parameters
    id: str
    tensor_parameters: Mapping[str, Parameters] = field(default_factory=lambda: NO_TENSOR_PARAMETERS)
    deadline_s: float | None = None

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the deadline, 0 when it has passed; None without one."""
        return None if self.deadline_s is None else max(0.0, self.deadline_s - time.monotonic())


class Fit(NamedTuple):
    """How a request fits its model: a matter of names, dtypes and shapes alone, so that requests alike share one.

    sizes: the request's own sizes of the named axes, in the signature's order; its bucket's are rounded up.
    """

    rows: int
    bucket: Bucket
    sizes: tuple[int, ...]


class Bound(Item):
    """A request that fits its model, as the batching policy queues it: inputs by name, and where they may be batched.

    request: what a class that asks for its request gets. answer: who waits for the outputs, the batcher's own.
    preparing_s: how long it had its device before it was a request of the model (`Batcher.run_alone`).
    """

    request: Request | None = None
    answer: Any = None
    preparing_s = 0.0

    def __init__(
        self,
        arrays: dict[str, Array],
        rows: int,
        bucket: Bucket,
        sizes: tuple[int, ...],
        request: Request | None = None,
    ) -> None:
        self.arrays = arrays
        self.rows = rows
        self.bucket = bucket
        self.sizes = sizes
        if request is not None:
            self.request = request

    def part(self, start: int, stop: int) -> "Bound":
        """Rows `start` to `stop` of it, as views."""
        if stop - start == self.rows:
            return self
        arrays = {name: array[start:stop] for name, array in self.arrays.items()}
        return Bound(arrays, stop - start, self.bucket, self.sizes, self.request)


class Signature:
    """The declared inputs and outputs of a model, each possibly incomplete.

    names: the inputs' names in the order of the class's parameters; () if the class takes whatever comes (`**inputs`).
    inputs, outputs: the declared ones; a name without declaration takes any dtype and shape.
    optional: names that a request may leave out.
    wants: "request" if `predict` takes one request at a time, "requests" if it takes one a row, "" for neither.
    named_axes: the axes that torpor may pad, in order of appearance.
    v1_datatypes: of the declared inputs, as `protocol/v1.py` reads them. json_outputs: those that are JSON texts.
    """

    def __init__(
        self,
        names: tuple[str, ...] = (),
        inputs: Mapping[str, TensorSpec] | None = None,
        outputs: Mapping[str, TensorSpec] | None = None,
        optional: frozenset[str] = frozenset(),
        wants: str = "",
    ) -> None:
        self.names = names
        self.inputs = inputs or {}
        self.outputs = outputs or {}
        self.optional = optional
        self.wants = wants
        self.v1_datatypes = {s.name: JSON if s.is_json else s.datatype for s in self.inputs.values()}
        self.json_outputs = frozenset(spec.name for spec in self.outputs.values() if spec.is_json)
        self._fits: dict[tuple[object, ...], Fit] = {}
        self.named_axes = tuple(
            dict.fromkeys(axis for spec in self.inputs.values() for axis in spec.axes if isinstance(axis, str))
        )
        for spec in self.outputs.values():
            for axis in spec.axes:
                if isinstance(axis, str) and axis not in self.named_axes:
                    raise ValueError(f"output '{spec.name}': axis '{axis}' belongs to no input")

    def bind(self, inputs: dict[str, Array]) -> Bound:
        """Check a request's inputs against the declaration. Raises InvalidInput naming input, value and what it must be."""
        return Bound(inputs, *self.fit(inputs))

    def fit(self, inputs: Mapping[str, Array]) -> Fit:
        """The same check without the rows, once for all inputs of the same names, dtypes and shapes. Raises InvalidInput."""
        layout = tuple([(name, array.dtype, array.shape) for name, array in inputs.items()])
        fit = self._fits.get(layout)
        if fit is None:
            fit = self._check_all(inputs)
            if len(self._fits) >= _MOST_FITS:
                self._fits = {}  # and not emptied: other threads use it
            self._fits[layout] = fit
        return fit

    def _check_all(self, inputs: Mapping[str, Array]) -> Fit:
        names = self.names or tuple(inputs)
        unknown = [name for name in inputs if name not in names]
        if unknown:
            raise InvalidInput(f"input '{unknown[0]}' is unknown, must be one of {_listed(names)}")
        sizes: dict[str, int] = {}
        key: list[object] = []
        rows = -1
        for name in names:
            array = inputs.get(name)
            if array is None:
                if name in self.optional:
                    continue
                raise InvalidInput(f"input '{name}' is missing, the model takes {_listed(names)}")
            if not array.ndim:
                raise InvalidInput(f"input '{name}': shape = [], must have rows on axis 0")
            if rows >= 0 and len(array) != rows:
                raise InvalidInput(f"input '{name}': rows = {len(array)}, must be {rows} as in '{names[0]}'")
            rows = len(array)
            spec = self.inputs.get(name)
            if spec is None:
                key += (name, array.dtype.str, array.shape[1:])
            else:
                _check(spec, array, sizes)
                free = tuple(n for n, axis in zip(array.shape[1:], spec.axes, strict=True) if axis == -1)
                key += (name, free)
        if rows < 1:
            raise InvalidInput(f"rows = {max(rows, 0)}, must be at least 1")
        own = tuple(sizes.get(axis, 0) for axis in self.named_axes)
        return Fit(rows, Bucket(tuple(key), rounded(own), alone=self.wants == "request"), own)

    def ask(self, wanted: tuple[str, ...]) -> None:
        """Refuse a request for outputs that the model does not declare; nothing to check without a declaration."""
        for name in wanted:
            if self.outputs and name not in self.outputs:
                raise InvalidInput(f"output '{name}' is unknown, must be one of {_listed(self.outputs)}")

    def check_output(self, name: str, array: Array, rows: int) -> None:
        """What the model returned for a batch of `rows` rows must fit. Raises ModelFailed."""
        if not array.ndim or len(array) != rows:
            got = list(array.shape)
            raise ModelFailed(f"output '{name}': shape = {got}, must have {rows} rows, one for each row of the input")
        if array.dtype not in NAMES:
            raise ModelFailed(f"output '{name}': dtype {array.dtype} has no Open Inference datatype")
        spec = self.outputs.get(name)
        if spec is None:
            if self.outputs:
                raise ModelFailed(f"output '{name}' is not declared, must be one of {_listed(self.outputs)}")
            return
        if NAMES[array.dtype] != spec.datatype:
            raise ModelFailed(f"output '{name}': datatype = {NAMES[array.dtype]}, must be {spec.datatype}")
        fits = array.ndim == len(spec.axes) + 1 and all(
            isinstance(axis, str) or axis in (-1, size) for size, axis in zip(array.shape[1:], spec.axes, strict=True)
        )
        if not fits:
            raise ModelFailed(f"output '{name}': shape = {list(array.shape)}, must be {spec.shape}")


def _check(spec: TensorSpec, array: Array, sizes: dict[str, int]) -> None:
    if array.dtype != DTYPES[spec.datatype]:
        got = NAMES.get(array.dtype, str(array.dtype))
        raise InvalidInput(f"input '{spec.name}': datatype = {got}, must be {spec.datatype}")
    shape = array.shape[1:]
    if len(shape) != len(spec.axes):
        raise InvalidInput(f"input '{spec.name}': shape = {list(array.shape)}, must be {spec.shape}")
    for size, axis in zip(shape, spec.axes, strict=True):
        if isinstance(axis, str):
            if sizes.setdefault(axis, size) != size:
                raise InvalidInput(
                    f"input '{spec.name}': axis '{axis}' = {size}, must be {sizes[axis]} as in the inputs before"
                )
        elif axis not in (-1, size):
            raise InvalidInput(f"input '{spec.name}': shape = {list(array.shape)}, must be {spec.shape}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
