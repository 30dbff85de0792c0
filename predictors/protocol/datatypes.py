"""Open Inference datatypes and their numpy counterparts.

Source: the Open Inference Protocol's "Tensor Data Types" (https://github.com/kserve/open-inference-protocol). BYTES are
object arrays of `bytes`; on the wire each element is preceded by its length as a little-endian uint32. BF16, which numpy
lacks, are 16 bits in a dtype of their own (`BFLOAT16`): nothing between wire and device computes with them.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput, ModelFailed

Array = NDArray[Any]
"""A tensor between the wire and the device: C order, little-endian, BYTES as objects."""

BFLOAT16: np.dtype[Any] = np.dtype([("bfloat16", "<u2")])
"""The upper half of a float32's bits. A dtype that equals no other, and costs no import (the package ml_dtypes: 10 ms)."""

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(np.object_),
}

JSON = "JSON"
"""No datatype of the protocol's, but what v1 reads BYTES of JSON texts as: any value (`signature.py`)."""

NAMES: dict[np.dtype[Any], str] = {dtype: name for name, dtype in DTYPES.items()}


def datatype_of(array: Array) -> str:
    """The protocol's name for an array's dtype; KeyError for one that the protocol has no name for."""
    return NAMES[array.dtype]


def bfloat16_from_float32(array: Array) -> Array:
    """The nearest BF16 of float32, ties to even, as torch rounds; beyond the largest value it is infinity."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype("<u2").reshape(array.shape)
    rounded[np.isnan(array)] = 0x7FC0
    return rounded.view(BFLOAT16)


def float32_from_bfloat16(array: Array) -> Array:
    """The same values as float32, exactly."""
    bits = np.ascontiguousarray(array).view("<u2").astype(np.uint32) << 16
    return bits.view(np.float32).reshape(array.shape)


def object_array(elements: Sequence[object], shape: Sequence[int]) -> Array:
    """An array of dtype object; numpy would make fixed-length strings of a list of bytes."""
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)


def array_from_raw(name: str, datatype: str, shape: tuple[int, ...], data: bytes, start: int, size: int) -> Array:
    """The tensor in `size` bytes of `data` at `start`: a read-only view, or for BYTES an object array.

    The size must have been checked against datatype and shape. Raises InvalidInput naming `name`.
    """
    if datatype == "BYTES":
        return object_array(decode_bytes(memoryview(data)[start : start + size], math.prod(shape), name), shape)
    array: Array = np.ndarray(shape, DTYPES[datatype], data, start)
    if datatype == "BOOL" and array.view(np.uint8).max(initial=0) > 1:
        raise InvalidInput(f"input '{name}': BOOL data must be bytes of 0 or 1")
    return array


def encode_bytes(array: Array) -> bytes:
    """An object array of `bytes` (or `str`, as UTF-8) in the wire form of BYTES, in C order. Raises ModelFailed."""
    pieces: list[bytes] = []
    for data in map(element_bytes, array.ravel()):
        pieces += (len(data).to_bytes(4, "little"), data)
    return b"".join(pieces)


def element_bytes(element: object) -> bytes:
    """An element of a BYTES tensor. Raises ModelFailed for one that is neither `bytes` nor `str` of valid Unicode."""
    if isinstance(element, bytes):
        return element
    if not isinstance(element, str):
        raise ModelFailed(f"a BYTES tensor holds a {type(element).__name__}, must hold bytes or str")
    try:
        return element.encode()
    except UnicodeEncodeError:
        raise ModelFailed("a BYTES tensor holds a str that is not valid Unicode") from None


def decode_bytes(data: memoryview, count: int, name: str) -> list[bytes]:
    """`count` elements of the wire form of BYTES; they must fill `data` exactly. Raises InvalidInput naming `name`."""
    elements: list[bytes] = []
    at, end = 0, len(data)
    while len(elements) < count:
        if at + 4 > end:
            raise InvalidInput(f"input '{name}': BYTES data ends inside element {len(elements)} of {count}")
        length = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if length > end - at:
            raise InvalidInput(
                f"input '{name}': element {len(elements)} says {length} bytes, {end - at} are left of the tensor's data"
            )
        elements.append(bytes(data[at : at + length]))
        at += length
    if at != end:
        raise InvalidInput(f"input '{name}': {end - at} bytes are left after {count} elements of BYTES data")
    return elements
