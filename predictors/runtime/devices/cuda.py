"""A CUDA GPU: page-locked buffers, a stream for copies in and one for computing. Untested: see docs/status.md.

Everything here is a line or two of CUDA; what must wait for what is decided in `pipeline.py` and tested there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_BROKEN = (
    "device-side assert", "illegal memory access", "illegal instruction", "misaligned address", "invalid program counter",
    "operation not supported on global/shared address space", "hardware stack error", "unspecified launch failure",
    "launch timed out", "uncorrectable ECC error", "uncorrectable NVLink error",
)  # fmt: skip
"""The texts of cudaGetErrorString for errors after which "the process must be terminated and relaunched"
(https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html)."""


class Device:
    in_flight = 2  # one computes while the next is copied in

    def __init__(self, name: str) -> None:
        index = torch.device(name).index or 0
        self.torch_device = torch.device("cuda", index)
        self._copies = torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]
        self._compute = torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def computing(self) -> Iterator[None]:
        with torch.inference_mode(), torch.cuda.stream(self._compute):
            yield

    def is_broken(self, error: BaseException) -> bool:
        return is_broken(error)

    def allocated_bytes(self) -> int:
        return torch.cuda.memory_allocated(self.torch_device)

    def free(self) -> None:
        torch.cuda.empty_cache()

    def host_buffer(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def device_buffer(self, size: int) -> Tensor:
        # In the stream of copies: the allocator gives memory back to its own stream while that still computes with it.
        with torch.cuda.stream(self._copies):
            return torch.empty(size, dtype=torch.uint8, device=self.torch_device)

    def copy_in(self, target: Tensor, source: Tensor) -> Any:
        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)
            return self._copies.record_event()

    def wait_for(self, event: Any) -> None:
        self._compute.wait_event(event)

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def copy_out(self, source: Tensor) -> Tensor:
        # torch's host allocator keeps page-locked memory and gives it out again when its last view is gone.
        target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        return target.copy_(source, non_blocking=True)

    def mark(self) -> Any:
        # blocking: the thread that waits sleeps, where it would keep a core busy.
        return self._compute.record_event(torch.cuda.Event(blocking=True))  # type: ignore[no-untyped-call]

    def synchronize(self, event: Any) -> None:
        event.synchronize()

    def capture(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        function()  # what libraries set up at their first call cannot be captured
        graph = torch.cuda.CUDAGraph()
        # thread_local: other devices' threads go on meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._compute, capture_error_mode="thread_local"):
            result = function()
        return result, graph.replay


def is_broken(error: BaseException) -> bool:
    """Whether the error, or one that it came from, is one that CUDA does not recover from in this process."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RuntimeError) and any(
            text in str(cause) for text in _BROKEN
        ):  # torch.AcceleratorError is one
            return True
        cause = cause.__cause__ or cause.__context__
    return False
