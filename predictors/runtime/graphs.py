"""`predict` as CUDA graphs, one for each shape of its inputs: a whole batch is one launch, whatever Python it took.

A graph reads and writes the same memory at each replay: its inputs are copied to that, on the device, in the order of
computing, since the next batch's rows may already be on their way into the slot that they came from.
"""

import logging
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any

from .devices import AsynchronousDevice

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("torpor.model")

_MOST = 128
"""Graphs that are kept: eight numbers of rows and sixteen lengths. Shapes that come later run without."""

_Graph = tuple[Mapping[str, "Tensor"], Any, Callable[[], None]]
"""Inputs, result, replay."""


class Graphs:
    """The graphs of one model on one device."""

    def __init__(self, device: AsynchronousDevice) -> None:
        self._device = device
        self._graphs: dict[Hashable, _Graph] = {}

    @staticmethod
    def rows(rows: int) -> int:
        """How many rows a batch is filled up to: the next power of two, so that few graphs are enough."""
        return 1 << (rows - 1).bit_length()

    def run(self, inputs: "Mapping[str, Tensor]", predict: Callable[..., Any]) -> Any:
        """What `predict(**inputs)` gives, by a graph; read it before the next run."""
        # Their dtypes are declared.
        key = tuple((name, tensor.shape) for name, tensor in inputs.items())
        graph = self._graphs.get(key)
        if graph is None:
            if len(self._graphs) == _MOST:
                return predict(**inputs)
            graph = self._graphs[key] = self._capture(inputs, predict)
            logger.info(
                "captured a graph for %s", ", ".join(f"{n} {list(tensor.shape)}" for n, tensor in inputs.items())
            )
        own, result, replay = graph
        self._fill(own, inputs)
        replay()
        return result

    def _capture(self, inputs: "Mapping[str, Tensor]", predict: Callable[..., Any]) -> _Graph:
        own = {name: tensor.new_empty(tensor.shape) for name, tensor in inputs.items()}
        self._fill(own, inputs)
        result, replay = self._device.capture(lambda: predict(**own))
        return own, result, replay

    def _fill(self, own: "Mapping[str, Tensor]", inputs: "Mapping[str, Tensor]") -> None:
        for name, tensor in inputs.items():
            self._device.copy(own[name], tensor)
