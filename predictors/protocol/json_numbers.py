"""A JSON list of numbers straight into an array, without a Python object for each: simdjson fills a buffer.

A quick way for what most requests are. Whatever it does not take (other datatypes, deeper or uneven lists, numbers out of
range, what is no JSON) it leaves to `json_tensor`, which takes it or says what is wrong with it.
"""

from typing import Literal

import numpy as np
import simdjson

from .datatypes import DTYPES, Array

_BUFFERS: dict[str | None, tuple[Literal["d", "i"], str]] = {
    "FP32": ("d", "<f8"), "FP64": ("d", "<f8"), "INT64": ("i", "<i8"), "INT32": ("i", "<i8"),
}  # fmt: skip
"""simdjson's letter for a buffer of a datatype's numbers, and numpy's for what is in it."""


def numbers(text: bytes, datatype: str | None) -> Array | None:
    """The array in `text`, a flat list of numbers or one of equal rows; None if it is left to others."""
    buffer = _BUFFERS.get(datatype)
    if buffer is None:
        return None
    letter, code = buffer
    try:
        data = simdjson.Parser().parse(text)
        if not isinstance(data, simdjson.Array):
            return None
        shape: tuple[int, ...] = (len(data),)
        lists = text.count(b"[")  # numbers have none
        if lists > 1:
            widths = {len(row) if isinstance(row, simdjson.Array) else -1 for row in data}
            if lists != len(data) + 1 or len(widths) != 1:
                return None
            shape = len(data), widths.pop()
        array: Array = np.frombuffer(data.as_buffer(of_type=letter), code)
    except (ValueError, TypeError, RuntimeError):  # the last for lists too deep and integers too large
        return None
    if not array.size:
        return None
    if datatype == "FP32":
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            return None
    elif datatype == "INT32":
        if array.min() < -(2**31) or array.max() >= 2**31:
            return None
        array = array.astype(DTYPES[datatype])
    return array.reshape(shape)
