"""For servers of TorchServe's archives, whose PYTHONPATH has this folder.

$HANDLER_PACKAGES is where handlers find the `ts` package and what it imports, behind all that torpor's own environment has.

A torchvision that was built for CUDA is let in beside a torch that was not: package indexes have that pair, whose import
fails for two operators that no transform needs. Nothing happens where they exist.
"""

import importlib.abc
import os
import sys


class Operators(importlib.abc.MetaPathFinder):
    """Declares them when somebody imports torchvision, then steps aside."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision._meta_registrations":
            import torch

            for operator in ("nms", "qnms"):
                if not hasattr(torch.ops.torchvision, operator):
                    library = torch.library.Library("torchvision", "FRAGMENT")
                    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                    self.kept = [*getattr(self, "kept", []), library]


if packages := os.environ.get("HANDLER_PACKAGES"):
    sys.path.append(packages)
sys.meta_path.insert(0, Operators())
