"""What the settings of `[device]` do to a model: precision, memory format, compilation.

They reach the class's modules: after `load`, each `nn.Module` that is an attribute of the instance, or stands in a list
or dict that is one, or the instance itself. A setting that finds nothing to act on is an error, not a silent nothing.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ..signature import TensorSpec
from .user_class import UserClassError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch import device as TorchDevice  # noqa: N812

logger = logging.getLogger("torpor.model")


@dataclass(frozen=True, slots=True)
class Tuning:
    """The settings of the same names; see `settings.py`."""

    dtype: str = "keep"
    channels_last: bool = False
    autocast: str = "off"
    compile: str = "off"
    cuda_graphs: bool = False

    def text(self) -> str:
        """The settings that are not at their defaults, as a model.toml has them."""
        changed = (f.name for f in fields(self) if getattr(self, f.name) != f.default)
        return ", ".join(f"{name} = {json.dumps(getattr(self, name))}" for name in changed)

    def apply(self, model: object, device: "TorchDevice") -> None:
        """Bring the modules of a loaded model to their device, dtype, memory format, and have them compiled.

        Modules that lie elsewhere than on the CPU stay where `load` put them. Raises UserClassError.
        """
        import torch

        modules = list(modules_of(model))
        if not modules and (self.dtype != "keep" or self.channels_last or self.compile != "off"):
            raise UserClassError(
                f"{self.text()} finds nothing to act on: {type(model).__name__} has no nn.Module as an attribute, "
                "or in a list or dict that is one"
            )
        for module in modules:
            if all(tensor.device.type == "cpu" for tensor in (*module.parameters(), *module.buffers())):
                module.to(device)
            if self.dtype != "keep":
                module.to(getattr(torch, self.dtype))
            if self.channels_last:
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if self.compile != "off":
                self._compile(module)

    def _compile(self, module: "nn.Module") -> None:
        import torch

        forward = module.forward

        def compiled(
            *inputs: Any, **named: Any
        ) -> Any:  # a frame of our own: torch leaves out those of its own modules
            return forward(*inputs, **named)

        # dynamic: rows differ from batch to batch, and a compilation for each number would stall traffic.
        module.forward = torch.compile(compiled, mode=self.compile, dynamic=True)

    def check_compiled(self, model: object) -> None:
        """After the first batch: warn if it did not go through anything that was compiled."""
        from torch._dynamo.utils import counters

        if not counters["stats"]["unique_graphs"]:
            logger.warning(
                "compile = %s has no effect: %s.predict calls none of the modules that are its attributes",
                self.compile, type(model).__name__,
            )  # fmt: skip

    def autocasting(self, device: "TorchDevice") -> AbstractContextManager[Any]:
        """Where `predict` runs."""
        import torch

        if self.autocast == "off":
            return nullcontext()
        return torch.autocast(device.type, getattr(torch, self.autocast))

    @property
    def changes_inputs(self) -> bool:
        return self.dtype != "keep" or self.channels_last

    def input(self, tensor: "Tensor") -> "Tensor":
        """A batch's input as the modules want it: floating ones in their dtype, images in their memory format."""
        import torch

        if self.dtype != "keep" and tensor.is_floating_point():
            tensor = tensor.to(getattr(torch, self.dtype))
        if self.channels_last and tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    @property
    def changes_outputs(self) -> bool:
        return self.dtype != "keep" or self.autocast != "off"

    def output(self, tensor: "Tensor", spec: TensorSpec | None) -> "Tensor":
        """A batch's output in the dtype that is declared, or float32: callers do not see the precision that was used."""
        import torch

        from .tensors import TORCH_DTYPES

        if not tensor.is_floating_point():
            return tensor
        return tensor.to(TORCH_DTYPES[spec.datatype] if spec is not None else torch.float32)


def modules_of(model: object) -> "Iterator[nn.Module]":
    """The modules that the settings reach."""
    from torch import nn

    if isinstance(model, nn.Module):
        yield model
        return
    for value in getattr(model, "__dict__", {}).values():
        values = value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else (value,)
        yield from (entry for entry in values if isinstance(entry, nn.Module))
