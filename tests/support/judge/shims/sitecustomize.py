"""For the servers of the differential tests: lets a torchvision in that was built for CUDA, beside a torch that was not.

Package indexes have that pair; its import fails for two operators that no transform needs. Nothing happens where they exist.
"""

import importlib.abc
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


sys.meta_path.insert(0, Operators())
