"""A row of features as the bytes of a Redis value.

    version  dtype  axes  size of each axis (uint32)  elements         little-endian, C order
    01       04     01    20 00 00 00                 128 bytes        float32[rows, 32]
    01       ff                                                        the loader has no row for this key

The head is the same for all rows of a table. A value with another one was written for other features, and is none of this
table's.
"""

from typing import Any

import numpy as np
from torpor.predictors.protocol.datatypes import DTYPES, Array

_VERSION = 1
_CODES = {
    "BOOL": 0, "UINT8": 1, "INT8": 2, "FP16": 3, "FP32": 4, "FP64": 5, "UINT16": 6, "UINT32": 7, "UINT64": 8,
    "INT16": 9, "INT32": 10, "INT64": 11,
}  # fmt: skip
"""Written, so that none ever changes."""

MISSING = bytes((_VERSION, 0xFF))

DATATYPES = tuple(_CODES)


class RowCodec:
    """Rows of one datatype (a name of the Open Inference Protocol, one of `DATATYPES`) and shape."""

    def __init__(self, datatype: str, shape: tuple[int, ...]) -> None:
        self.dtype: np.dtype[Any] = DTYPES[datatype]
        self.shape = shape
        sizes = np.array(shape, "<u4").tobytes()
        self._head = bytes((_VERSION, _CODES[datatype], len(shape))) + sizes
        self._size = len(self._head) + self.dtype.itemsize * int(np.prod(shape))

    def row(self, value: Any) -> Array:
        """What a loader gave for a key, as a row. Raises ValueError for another shape, or a dtype that loses something."""
        row: Array = np.asarray(value)
        if row.shape != self.shape:
            raise ValueError(f"shape = {list(row.shape)}, must be {list(self.shape)}")
        if not np.can_cast(row.dtype, self.dtype, "same_kind"):
            raise ValueError(f"dtype = {row.dtype}, must be {self.dtype}")
        return np.ascontiguousarray(row, self.dtype).reshape(self.shape)

    def encode(self, row: Array | None) -> bytes:
        """row: of this dtype and shape; None if there is none for the key."""
        return MISSING if row is None else self._head + row.tobytes()

    def decode(self, value: bytes) -> Array | None:
        """The row, a read-only view. Raises ValueError for what `encode` has not made of a row of this dtype and shape."""
        if len(value) == self._size and value.startswith(self._head):
            return np.ndarray(self.shape, self.dtype, value, len(self._head))
        if value == MISSING:
            return None
        raise ValueError("not a row of this table")
