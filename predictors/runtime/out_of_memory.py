"""Which of a model's errors say that the device has no memory left."""

import sys

_TEXTS = (
    "DefaultCPUAllocator: can't allocate memory",  # c10/core/impl/alloc_cpu.cpp
    "CUDA error: out of memory",  # of page-locked memory and whatever else does not come from torch's allocator
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What torch's RuntimeErrors say that have no class of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error, or one that it was raised from, is a MemoryError, torch's OutOfMemoryError or has such a text."""
    torch = sys.modules.get("torch")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (torch is not None and isinstance(cause, torch.OutOfMemoryError)):
            return True
        if isinstance(cause, RuntimeError) and any(text in str(cause) for text in _TEXTS):
            return True
        cause = cause.__cause__
    return False
