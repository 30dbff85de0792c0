"""What a device must be able to do. Each kind is one file here: `device = "cuda:1"` is `cuda.Device("cuda:1")`.

A `Device` whose calls return when their work is done is all that a model needs. An `AsynchronousDevice` only takes note
of steps. It has two orders of them: *copies* in, and *computing*, to which all belongs that the user's code enqueues.
A step runs at some time after it was enqueued, after those before it in its own order; of the other order and of the
host it knows nothing but what `wait_for` and `synchronize` establish. Who needs which wait is `pipeline.py`'s concern;
a test device that runs steps in any order allowed shows that none is missing.
"""

import pkgutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as TorchDevice  # noqa: N812

T = TypeVar("T")


class Device(Protocol):
    """A device, used by one thread.

    in_flight: batches that it wants to be given at once; 1 if its calls return when their work is done.
    """

    torch_device: "TorchDevice"
    in_flight: int

    def computing(self) -> AbstractContextManager[Any]:
        """Where the user's code runs: without gradients, and what it enqueues belongs to the order of computing."""
        ...

    def is_broken(self, error: BaseException) -> bool:
        """Whether the error means that the device will never work again in this process."""
        ...

    def allocated_bytes(self) -> int | None:
        """What this process has allocated of the device's memory, None if it has none of its own; any thread may ask."""
        ...

    def free(self) -> None:
        """Give memory that nothing uses any more back to the system."""
        ...


class AsynchronousDevice(Device, Protocol):
    """A device that runs its steps some time after they were enqueued; all but buffers are for inside of `computing`."""

    def host_buffer(self, size: int) -> "Tensor":
        """`size` bytes of host memory that the device can copy from by itself."""
        ...

    def device_buffer(self, size: int) -> "Tensor":
        """`size` bytes on the device, which no step has to do with that was enqueued before."""
        ...

    def copy_in(self, target: "Tensor", source: "Tensor") -> Any:
        """Enqueue a copy from a host buffer to a device buffer in the order of copies; the event of its end."""
        ...

    def wait_for(self, event: Any) -> None:
        """What is enqueued for computing from now on runs after the event."""
        ...

    def copy(self, target: "Tensor", source: "Tensor") -> None:
        """Enqueue, in the order of computing, a copy on the device."""
        ...

    def copy_out(self, source: "Tensor") -> "Tensor":
        """Enqueue, in the order of computing, a copy into new host memory."""
        ...

    def mark(self) -> Any:
        """The event of the end of everything that was enqueued for computing so far."""
        ...

    def synchronize(self, event: Any) -> None:
        """The host waits for the event. Raises what went wrong on the device."""
        ...

    def capture(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """What `function` returns, and what enqueues its steps again, on the same memory. Nothing is enqueued yet."""
        ...


def open_device(name: str) -> Device:
    """The device of a torch name, or "auto": CUDA if there is one, else the CPU. Raises what opening it raises."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device: Device = import_module(f".{name.partition(':')[0]}", __name__).Device(name)
    return device


def kinds() -> list[str]:
    """The kinds of devices that there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))
