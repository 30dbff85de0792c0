"""Tensors as JSON lists, read strictly: a number that the datatype cannot hold is an error, never rounded into another."""

import math
import struct
from base64 import b64decode
from itertools import chain
from typing import Any

import numpy as np

from ..errors import InvalidInput, ModelFailed
from .datatypes import (
    BFLOAT16,
    DTYPES,
    Array,
    bfloat16_from_float32,
    element_bytes,
    float32_from_bfloat16,
    object_array,
)

_FLOATS = {"FP32": "f", "FP64": "d", "BF16": "f"}
"""The struct module's letter for what a datatype is read as: BF16 are rounded from float32."""

_MAX_DEPTH = 16

_LARGEST_BFLOAT16 = float.fromhex("0x1.fep127")

_KINDS = {"b": "booleans", "i": "integers", "u": "integers", "f": "numbers"}


def array_from_json(name: str, data: object, datatype: str, shape: tuple[int, ...] | None) -> Array:
    """The tensor in `data`, a list, nested or flat, of `datatype` and (where it is given) `shape`. Raises InvalidInput."""
    if not isinstance(data, list):
        raise InvalidInput(f"input '{name}': data must be a list")
    array = _strings(name, data) if datatype == "BYTES" else _numbers(name, data, datatype)
    if datatype == "BF16":
        array = bfloat16_from_float32(array)
        if not np.isfinite(float32_from_bfloat16(array)).all():
            raise _out_of_range(name, datatype, _LARGEST_BFLOAT16)
    if shape is None:
        return array
    if array.size != math.prod(shape):
        raise InvalidInput(
            f"input '{name}': shape {list(shape)} needs {math.prod(shape)} elements, data has {array.size}"
        )
    if array.ndim > 1 and array.shape != (shape if array.size else shape[: array.ndim]):  # lists end at an empty axis
        raise InvalidInput(f"input '{name}': shape = {list(shape)}, data is nested as {list(array.shape)}")
    return array.reshape(shape)


def array_of_unknown(name: str, data: list[object]) -> Array:
    """A tensor whose datatype nobody said (v1): int64 (or uint64), float32, bool or BYTES, as its elements tell."""
    first: object = data
    while isinstance(first, list) and first:
        first = first[0]
    if isinstance(first, str | dict):
        return _strings(name, data)
    raw = _raw(name, data)
    kind = raw.dtype.kind
    if kind == "f" and raw.size and raw.max() >= 2.0**63 and _exact(data) is not None:
        kind = "u"
    datatype = {"b": "BOOL", "i": "INT64", "u": "UINT64", "f": "FP32"}.get(kind)
    if datatype is None:
        raise InvalidInput(f"input '{name}': elements must be numbers, booleans or strings, all of one kind")
    return _numbers(name, data, datatype)


def json_from_array(name: str, array: Array) -> object:
    """What orjson can write for the array. Raises ModelFailed for NaN and infinity, which JSON does not have."""
    if array.dtype == object:
        return np.vectorize(_text, otypes=[object])(array).tolist() if array.size else array.tolist()
    if array.dtype == BFLOAT16:
        array = float32_from_bfloat16(array)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ModelFailed(f"output '{name}' holds NaN or infinity, which JSON cannot: ask for it as binary data")
    if array.dtype.char in "qQ":  # C's long long, int64 by another name: orjson knows no scalar of it
        array = array.view(array.dtype.str)
    return np.ascontiguousarray(array)


def _raw(name: str, data: list[object]) -> Array:
    try:
        return np.array(data)
    except (ValueError, OverflowError, RecursionError):
        raise InvalidInput(f"input '{name}': data must be numbers in lists of equal lengths") from None


def _floats(data: list[Any], datatype: str) -> Array | None:
    """Floats in a well-formed list, the common case, at a fifth of numpy's price; None for whatever needs a closer look."""
    shape = [len(data)]
    while data and type(data[0]) is list:
        width = len(data[0])
        if len(shape) == _MAX_DEPTH or not all(type(row) is list and len(row) == width for row in data):
            return None
        shape.append(width)
        data = list(chain.from_iterable(data))
    if not data or type(data[0]) is not float:
        return None
    try:  # a number too large is an OverflowError, what is no number a struct.error
        packed = struct.pack(f"<{len(data)}{_FLOATS[datatype]}", *data)
    except (struct.error, OverflowError):
        return None
    return np.frombuffer(packed, f"<{_FLOATS[datatype]}").reshape(shape)


def _numbers(name: str, data: list[object], datatype: str) -> Array:
    """For BF16 the float32 that they are rounded from."""
    floats = _floats(data, datatype) if datatype in _FLOATS else None
    if floats is not None:
        return floats
    raw = _raw(name, data)
    dtype: np.dtype[Any] = np.dtype(np.float32) if datatype == "BF16" else DTYPES[datatype]
    if not raw.size:
        return raw.astype(dtype)
    accepted = {"b": "b", "i": "iu", "u": "iu", "f": "fiu"}[dtype.kind]
    exact = _exact(data) if raw.dtype.kind == "f" and dtype.kind in "iu" else None
    if exact is not None:
        raw = exact
    elif raw.dtype.kind not in accepted:
        raise InvalidInput(
            f"input '{name}': elements must be {_KINDS[dtype.kind]} for {datatype}, in lists of equal lengths"
        )
    if raw.dtype == dtype:
        return raw
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        low, high = int(raw.min()), int(raw.max())
        if low < limits.min or high > limits.max:
            wrong = low if low < limits.min else high
            raise InvalidInput(
                f"input '{name}': element {wrong}, must be in [{limits.min}, {limits.max}] for {datatype}"
            )
        return raw.astype(dtype)
    with np.errstate(over="ignore"):
        array = raw.astype(dtype)
    if not np.isfinite(array).all():
        raise _out_of_range(name, datatype, _LARGEST_BFLOAT16 if datatype == "BF16" else float(np.finfo(dtype).max))
    return array


def _out_of_range(name: str, datatype: str, largest: float) -> InvalidInput:
    return InvalidInput(f"input '{name}': elements must be in [-{largest}, {largest}] for {datatype}")


def _exact(data: list[object]) -> Array | None:
    """Integers as objects: where some are 2**63 or more and others less, numpy makes float64 of all. None for others."""
    exact = np.array(data, object)
    return exact if all(type(element) is int for element in exact.flat) else None


def _strings(name: str, data: list[object]) -> Array:
    """Strings as UTF-8, `{"b64": …}` as the bytes that it encodes (TensorFlow Serving's and KServe v1's form)."""
    flat: list[bytes] = []
    shape: list[int] = []

    def walk(value: object, depth: int) -> None:
        if isinstance(value, list):
            if depth == len(shape):
                if flat or depth >= _MAX_DEPTH:
                    raise InvalidInput(
                        f"input '{name}': strings must stand in lists of equal lengths, at most {_MAX_DEPTH} deep"
                    )
                shape.append(len(value))
            elif shape[depth] != len(value):
                raise InvalidInput(f"input '{name}': strings must stand in lists of equal lengths")
            for element in value:
                walk(element, depth + 1)
        elif depth != len(shape):
            raise InvalidInput(f"input '{name}': strings must stand in lists of equal lengths")
        elif isinstance(value, str):
            flat.append(value.encode())
        elif isinstance(value, dict) and set(value) == {"b64"}:
            try:
                flat.append(b64decode(value["b64"], validate=True))
            except (ValueError, TypeError):
                raise InvalidInput(f"input '{name}': b64 must hold valid base64") from None
        else:
            raise InvalidInput(f"input '{name}': elements must be strings, or objects with b64 alone, for BYTES")

    walk(data, 0)
    return object_array(flat, shape)


def _text(value: object) -> str:
    try:
        return element_bytes(value).decode()
    except UnicodeDecodeError:
        raise ModelFailed("a BYTES tensor is no UTF-8, which JSON needs: ask for it as binary data") from None
