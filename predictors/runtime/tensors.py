"""Between numpy and torch: the one place that knows which dtype is which. Imported only where torch is there."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..protocol.datatypes import BFLOAT16, NAMES, Array

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8, "UINT16": torch.uint16, "UINT32": torch.uint32, "UINT64": torch.uint64,
    "INT8": torch.int8, "INT16": torch.int16, "INT32": torch.int32, "INT64": torch.int64,
    "FP16": torch.float16, "BF16": torch.bfloat16, "FP32": torch.float32, "FP64": torch.float64,
}  # fmt: skip
"""torch's dtype of each datatype that can be a tensor."""


def from_array(array: Array) -> Tensor:
    """A tensor on the memory of a writable array."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_array(tensor: Tensor) -> Array:
    """An array on the memory of a tensor of the host; the values are not read, they may come later."""
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(BFLOAT16)
    array: Array = tensor.numpy()
    return array


def view_of(buffer: Tensor, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Tensor:
    """A piece of a buffer of bytes, of exactly that size, as a tensor."""
    return buffer.view(TORCH_DTYPES[NAMES[dtype]]).view(shape)
