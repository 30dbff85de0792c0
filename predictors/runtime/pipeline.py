"""Batches in flight on an asynchronous device: what is copied where, and who waits for whom.

One batch's copy in overlaps the computing of the one before it. Each has a slot: a host buffer that its rows are
gathered into, and its twin on the device. Three waits order everything:

1. computing waits for the copy in, on the device;
2. the host waits for the end of a batch before it reads the outputs, which lie in host memory of their own;
3. a slot is free again after that same wait, or, for a batch that failed on its way, after one of its own: a later batch
   must write neither buffer while a copy or a kernel may still read it.

Outputs are copied out in the order of computing, so a graph's next replay cannot overtake them.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..protocol.datatypes import Array
from .devices import AsynchronousDevice
from .tensors import view_of

if TYPE_CHECKING:
    from torch import Tensor

_ALIGNMENT = 256
"""Bytes at which an input begins in its buffer, as CUDA's own allocations do: kernels load vectors."""

Layout = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""dtype and shape of each input that is copied in."""


class Slot:
    """One batch's buffers. They grow to the largest batch seen and stay; the batch's inputs are views of them."""

    def __init__(self, device: AsynchronousDevice) -> None:
        self._device = device
        self._host: Tensor | None = None
        self._twin: Tensor | None = None
        self.end: Any = None

    def send(self, layout: Layout, gather: Callable[[str, Array], None]) -> "dict[str, Tensor]":
        """Let `gather` write each input, copy all at once, and return them as tensors on the device."""
        places: dict[str, slice] = {}
        size = 0
        for name, (dtype, shape) in layout.items():
            places[name] = slice(size, size + dtype.itemsize * prod(shape))
            size = -(-places[name].stop // _ALIGNMENT) * _ALIGNMENT
        if self._host is None or self._twin is None or len(self._host) < size:
            capacity = 1 << (size - 1).bit_length()
            self._host, self._twin = self._device.host_buffer(capacity), self._device.device_buffer(capacity)
        host = self._host.numpy()
        for name, (dtype, shape) in layout.items():
            gather(name, host[places[name]].view(dtype).reshape(shape))
        self._device.wait_for(self._device.copy_in(self._twin[:size], self._host[:size]))
        return {name: view_of(self._twin[places[name]], *layout[name]) for name in layout}


class Pipeline:
    """The slots of a device, as many as it wants batches in flight."""

    def __init__(self, device: AsynchronousDevice) -> None:
        self._device = device
        self._free = [Slot(device) for _ in range(device.in_flight)]

    def take(self) -> Slot:
        return self._free.pop()

    def copy_out(self, tensor: "Tensor") -> "Tensor":
        """Enqueue a copy of an output; the host tensor has its values when the batch has ended."""
        return self._device.copy_out(tensor)

    def close(self, slot: Slot) -> None:
        """Everything of the slot's batch is enqueued."""
        slot.end = self._device.mark()

    def wait(self, slot: Slot) -> None:
        """Wait for the end of the slot's batch; any thread may. Raises what went wrong on the device."""
        self._device.synchronize(slot.end)

    def give_back(self, slot: Slot) -> None:
        """Wait for the end of the slot's batch, and have the slot free. Raises what went wrong on the device."""
        try:
            self.wait(slot)
        finally:
            self._free.append(slot)
