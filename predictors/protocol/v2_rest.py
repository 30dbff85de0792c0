"""Open Inference (v2) over REST: JSON, and the binary tensor extension.

Sources: https://github.com/kserve/open-inference-protocol (inference_rest.md) and Triton's "Binary Tensor Data Extension"
(protocol/extension_binary_data.md): the body is a JSON object, then the binary tensors in the order of the inputs; the
header Inference-Header-Content-Length says where the JSON ends.

Callers send the same JSON object with every request, only the binary data differ. So the layout read from an object is
kept (`_LAYOUTS`) and found again by its bytes: a request then costs one look-up and one view per tensor. A response's
object is kept likewise, by what it says.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, NamedTuple

import numpy as np
import orjson

from ..errors import InvalidInput
from ..remembered import Remembered
from .datatypes import DTYPES, Array, array_from_raw, datatype_of, encode_bytes
from .inference import (
    NO_PARAMETERS,
    InferRequest,
    InferResponse,
    Parameters,
    Terms,
    check_parameters,
    timeout_of,
)
from .json_numbers import numbers
from .json_tensor import array_from_json, json_from_array

MAX_RANK = 16
"""Most axes of a tensor; a limit of torpor's, against shapes that only cost time."""

MAX_EMPTY_SIZE = 1 << 32
"""Largest product of the other axes of a tensor that is empty; numpy's own limit is 2**63 bytes."""


class _BinaryTensor(NamedTuple):
    """An input whose data lie in the body: `size` bytes at `start`, counted from the end of the JSON object.

    dtype: None where the data must be looked at, as in BYTES and BOOL.
    """

    name: str
    datatype: str
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Tensors:
    """What a JSON object says of its tensors. arrays: those that it holds itself; the order of all is in `names`.

    parameters: of each that has any beside its size, by name.
    """

    names: tuple[str, ...]
    binary: tuple[_BinaryTensor, ...]
    arrays: dict[str, Array]
    binary_size: int
    parameters: dict[str, Parameters]

    def read(self, body: bytes, start: int) -> dict[str, Array]:
        """All of them; their binary data are `body` from `start` to its end. Raises InvalidInput."""
        if self.binary_size != len(body) - start:
            raise InvalidInput(
                f"binary data: binary_data_size of all tensors add up to {self.binary_size} bytes, "
                f"{len(body) - start} follow the JSON object"
            )
        tensors: dict[str, Array] = {}
        for name, datatype, dtype, shape, place, size in self.binary:
            if dtype is None:
                tensors[name] = array_from_raw(name, datatype, shape, body, start + place, size)
            else:
                tensors[name] = np.ndarray(shape, dtype, body, start + place)
        if self.arrays:
            return {name: self.arrays[name] if name in self.arrays else tensors[name] for name in self.names}
        return tensors


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """What the JSON object of a request says."""

    tensors: Tensors
    terms: Terms


_LAYOUTS: Remembered[bytes, _Layout] = Remembered(512)
"""Layouts without data by the bytes of their JSON object."""

LARGEST_KEPT_BYTES = 2048
"""Longer objects are mostly data: they are neither kept nor looked up, which would cost a hash of them."""

_HEADS: Remembered[tuple[object, ...], bytes] = Remembered(1024)
"""JSON objects of responses whose tensors are all binary, by model, version and the tensors' names, dtypes and shapes."""


def decode(body: bytes, json_length: int | None) -> InferRequest:
    """A request's body; `json_length` from Inference-Header-Content-Length, None if the body is JSON alone.

    Raises InvalidInput for anything that is not exactly a request: the message names field, value and allowed range.
    """
    if json_length is None:
        quick = _decode_numbers(body)
        if quick is not None:
            return quick
        json_length = len(body)
    elif json_length > len(body):
        raise InvalidInput(f"Inference-Header-Content-Length = {json_length}, must be in [0, {len(body)}]")
    text = body[:json_length]  # no copy where it is all
    layout = _LAYOUTS.get(text) if len(text) <= LARGEST_KEPT_BYTES else None
    if layout is None:
        layout = _read_layout(text)
        if layout.terms.are_kept:
            _LAYOUTS.keep(text, layout)
    return InferRequest(layout.tensors.read(body, json_length), layout.terms)


@dataclass(frozen=True, slots=True, eq=False)
class _NumbersLayout:
    """What a JSON object says around the one list of numbers that it holds."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    terms: Terms


_MARK = token_hex(16).encode()
"""What no caller can have put elsewhere."""

_NUMBERS_LAYOUTS: Remembered[bytes, _NumbersLayout] = Remembered(512)
"""Layouts of objects with one list of numbers, by their bytes without it."""


def _decode_numbers(body: bytes) -> InferRequest | None:
    """A request whose only data is one list of numbers, as most are; None for any other.

    The list is read by itself, and what stands around it is found again by its bytes: valid JSON with another list in
    its place, it is valid with this one.
    """
    # What is asked here only spares the look at most others: `_read_numbers_layout` proves the place.
    key = body.find(b'"data"')
    start = body.find(b"[", key)
    if key < 0 or start < 0 or body[key + 6 : start].strip() != b":":
        return None
    quote, brace = body.find(b'"', start), body.find(b"}", start)
    stop = body.rfind(b"]", start, min(quote, brace) if quote >= 0 else brace) + 1
    if brace < 0 or not stop or start + len(body) - stop > LARGEST_KEPT_BYTES:
        return None
    before, after = body[:start], body[stop:]
    if b'"data"' in after:  # more than one list
        return None
    text = b"[]".join((before, after))  # one place only can be meant: after the first "data"
    layout = _NUMBERS_LAYOUTS.get(text)
    if layout is None:
        layout = _read_numbers_layout(before, after)
        if layout is None:
            return None
        _NUMBERS_LAYOUTS.keep(text, layout)
    array = numbers(body[start:stop], layout.datatype)
    shape = layout.shape
    if array is None or array.size != math.prod(shape) or (array.ndim > 1 and array.shape != shape):
        return None
    return InferRequest({layout.name: array.reshape(shape)}, layout.terms)


def _read_numbers_layout(before: bytes, after: bytes) -> _NumbersLayout | None:
    """The layout if the list stands where the data of the only input do: a mark in its place proves it."""
    try:
        said: dict[str, Any] = parse_object(before + b'["%b"]' % _MARK + after)
        (entry,) = said["inputs"]
        if entry.pop("data") != [_MARK.decode()] or "parameters" in entry:
            return None
        # Read by the same rules as any, with as much data as its shape needs.
        size = math.prod(read_shape("", entry["shape"])) * DTYPES[entry["datatype"]].itemsize
        layout = _read_layout(orjson.dumps({**said, "inputs": [{**entry, "parameters": {"binary_data_size": size}}]}))
    except (InvalidInput, ValueError, KeyError, TypeError, AttributeError):
        return None
    (tensor,) = layout.tensors.binary
    return _NumbersLayout(tensor.name, tensor.datatype, tensor.shape, layout.terms)


def encode(response: InferResponse, binary_outputs: frozenset[str] | None) -> tuple[bytes, int | None]:
    """A response's body and the length of its JSON object if binary data follow it (else None).

    Raises ModelFailed for NaN or infinity in an output that goes as JSON, which has no such numbers.
    """
    outputs = response.outputs
    key: tuple[object, ...] | None = None
    if not response.id and (binary_outputs is None or binary_outputs.issuperset(outputs)):
        key = response.likeness()
        head = _HEADS.get(key)
        if head is not None:
            return b"".join([head, *[array.tobytes() for array in outputs.values()]]), len(head)
    entries: list[dict[str, object]] = []
    blobs: list[bytes] = []
    for name, array in outputs.items():
        entry: dict[str, object] = {"name": name, "datatype": datatype_of(array), "shape": array.shape}
        if binary_outputs is None or name in binary_outputs:
            blob = encode_bytes(array) if array.dtype == object else array.tobytes()
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            entry["data"] = json_from_array(name, array.ravel())
        entries.append(entry)
    answer: dict[str, object] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        answer["id"] = response.id
    answer["outputs"] = entries
    text = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    if not blobs:
        return text, None
    if key is not None and not any(array.dtype == object for array in outputs.values()):
        _HEADS.keep(key, text)
    return b"".join((text, *blobs)), len(text)


def parse_object(text: bytes) -> dict[str, object]:
    """A JSON object; raises InvalidInput for anything else, NaN and invalid UTF-8 included."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"the body is a JSON {_kind(value)}, must be an object")
    return value


def _read_layout(text: bytes) -> _Layout:
    head = parse_object(text)
    tensors = read_tensors(head, "inputs")
    request_id = head.get("id", "")
    if not isinstance(request_id, str):
        raise InvalidInput(f"id is a JSON {_kind(request_id)}, must be a string")
    parameters = _parameters(head.get("parameters"), "parameters")
    outputs, binary_outputs = _read_outputs(head.get("outputs"), _flag(parameters, "binary_data_output", False))
    are_kept = not tensors.arrays and len(text) <= LARGEST_KEPT_BYTES
    timeout_s = timeout_of(parameters)
    terms = Terms(outputs, binary_outputs, request_id, parameters, timeout_s, are_kept, tensors.parameters)
    return _Layout(tensors, terms)


def read_tensors(head: Mapping[str, object], field: str) -> Tensors:
    """The tensors listed in a field of a request's or a response's object. Raises InvalidInput, which calls them inputs."""
    entries = head.get(field)
    if not isinstance(entries, list) or not entries:
        raise InvalidInput(f"{field} must be a non-empty list of tensors")
    names: list[str] = []
    binary: list[_BinaryTensor] = []
    arrays: dict[str, Array] = {}
    tensor_parameters: dict[str, Parameters] = {}
    start = 0
    for position, entry in enumerate(entries):
        name, tensor, its_parameters = _read_input(entry, position, start)
        if name in names:
            raise InvalidInput(f"input '{name}' is given twice")
        names.append(name)
        if its_parameters:
            tensor_parameters[name] = its_parameters
        if isinstance(tensor, _BinaryTensor):
            binary.append(tensor)
            start += tensor.size
        else:
            arrays[name] = tensor
    return Tensors(tuple(names), tuple(binary), arrays, start, tensor_parameters)


def _read_input(entry: object, position: int, start: int) -> "tuple[str, _BinaryTensor | Array, Parameters]":
    """An input's name, what it is, and its parameters beside the size."""
    if not isinstance(entry, dict):
        raise InvalidInput(f"inputs[{position}] is a JSON {_kind(entry)}, must be an object")
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidInput(f"inputs[{position}].name must be a non-empty string")
    datatype = entry.get("datatype")
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise InvalidInput(f"input '{name}': datatype = {_shown(datatype)}, must be one of {', '.join(DTYPES)}")
    shape = read_shape(name, entry.get("shape"))
    parameters = dict(_parameters(entry.get("parameters"), f"input '{name}': parameters"))
    check_parameters("input", name, parameters)
    size = parameters.pop("binary_data_size", None)
    if size is None:
        if "data" not in entry:
            raise InvalidInput(f"input '{name}': data or parameters.binary_data_size must be given")
        return name, array_from_json(name, entry["data"], datatype, shape), parameters
    if "data" in entry:
        raise InvalidInput(f"input '{name}': data and parameters.binary_data_size exclude one another")
    if type(size) is not int or size < 0:
        raise InvalidInput(f"input '{name}': binary_data_size = {size!r}, must be an integer of at least 0")
    check_size(name, datatype, shape, size)
    dtype = None if datatype in ("BYTES", "BOOL") else DTYPES[datatype]
    return name, _BinaryTensor(name, datatype, dtype, shape, start, size), parameters


def read_shape(name: str, shape: object) -> tuple[int, ...]:
    """A shape as it came; raises InvalidInput."""
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise InvalidInput(f"input '{name}': shape = {_shown(shape)}, must be a list of integers of at least 0")
    check_shape(name, shape)
    return tuple(shape)


def check_shape(name: str, shape: Sequence[int]) -> None:
    """Sizes of at least 0 must make a shape that numpy can have, also where no data bound it. Raises InvalidInput."""
    if len(shape) > MAX_RANK:
        raise InvalidInput(f"input '{name}': shape has {len(shape)} axes, must be in [1, {MAX_RANK}]")
    if 0 in shape and math.prod(filter(None, shape)) > MAX_EMPTY_SIZE:
        raise InvalidInput(
            f"input '{name}': shape = {_shown(shape)}, must have a product of at most {MAX_EMPTY_SIZE} beside the 0"
        )


def check_size(name: str, datatype: str, shape: tuple[int, ...], size: int) -> None:
    """Raw data of `size` bytes must be what datatype and shape say; BYTES need 4 bytes an element at least."""
    elements = math.prod(shape)
    if datatype == "BYTES":
        if elements * 4 > size:
            raise InvalidInput(f"input '{name}': shape {list(shape)} needs {elements * 4} bytes or more, got {size}")
    elif elements * DTYPES[datatype].itemsize != size:
        needed = elements * DTYPES[datatype].itemsize
        raise InvalidInput(f"input '{name}': shape {list(shape)} of {datatype} needs {needed} bytes, got {size}")


def _read_outputs(entries: object, binary_default: bool) -> tuple[tuple[str, ...], frozenset[str] | None]:
    if entries is None:
        return (), None if binary_default else frozenset()
    if not isinstance(entries, list):
        raise InvalidInput(f"outputs is a JSON {_kind(entries)}, must be a list")
    names: list[str] = []
    binary: set[str] = set()
    for position, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            raise InvalidInput(f"outputs[{position}] must be an object with a name")
        if name in names:
            raise InvalidInput(f"output '{name}' is asked for twice")
        parameters = _parameters(entry.get("parameters"), f"output '{name}': parameters")
        check_parameters("output", name, parameters)
        names.append(name)
        if _flag(parameters, "binary_data", binary_default):
            binary.add(name)
    if not names:
        return (), None if binary_default else frozenset()
    return tuple(names), frozenset(binary)


def _parameters(value: object, field: str) -> Parameters:
    if value is None:
        return NO_PARAMETERS
    if not isinstance(value, dict) or not all(isinstance(v, bool | int | float | str) for v in value.values()):
        raise InvalidInput(f"{field} must be an object of strings, numbers and booleans")
    return value


def _flag(parameters: Mapping[str, object], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"parameter {name} = {value!r}, must be true or false")
    return value


def _kind(value: object) -> str:
    kinds = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return kinds.get(type(value), "null")


def _shown(value: object) -> str:
    if isinstance(value, list):  # it may be nested deeper than repr goes
        value = [_kind(element) if isinstance(element, list | dict) else element for element in value[:20]]
    elif isinstance(value, dict):
        return "a JSON object"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
