"""Which of a model's errors say that the device has no memory left."""

import sys


def is_out_of_memory(error: Exception) -> bool:
    """Python's and numpy's MemoryError, torch's OutOfMemoryError, and what its allocator on a CPU has: a text.

    (c10/core/impl/alloc_cpu.cpp: "DefaultCPUAllocator: can't allocate memory: you tried to allocate N bytes".)
    """
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
