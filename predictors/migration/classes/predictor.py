"""The network of a TorchServe archive: tensors in, tensors out."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor


class Network:
    """Loads it.

    Parameters:
    network: `module:Class` of a file beside this one, made without arguments.
    weights: its state, as safetensors, or as a file that torch.load reads with weights_only.
    torchscript: a file that has both, instead of these two.
    """

    def load(self, folder: Path, device: torch.device, parameters: Mapping[str, Any]) -> None:
        if "torchscript" in parameters:
            file = folder / parameters["torchscript"]
            self.network = torch.jit.load(file, map_location=device)  # type: ignore[no-untyped-call]
        else:
            module, _, name = parameters["network"].partition(":")
            self.network = getattr(importlib.import_module(module), name)()
            if "weights" in parameters:
                self.network.load_state_dict(_read(folder / parameters["weights"]))
        self.network.eval()


class Tensors(Network):
    """As TorchServe's base handler: what comes is the network's input, of the dtype that its JSON shows."""

    def predict(self, input: Tensor) -> Tensor:
        return self.network(input)  # type: ignore[no-any-return]


class Classifier(Network):
    """As TorchServe's image classifier: the five likeliest classes."""

    outputs = {"probability": "float32[rows, -1]", "index": "int64[rows, -1]"}

    def predict(self, image: Annotated[Tensor, "float32[rows, -1, -1, -1]"]) -> dict[str, Tensor]:
        probability, index = self.network(image).softmax(1).topk(5)  # both [rows, 5]
        return {"probability": probability, "index": index}


class Segmenter(Network):
    """As TorchServe's image segmenter: of each pixel the likeliest class and its probability."""

    outputs = {"prediction": "float32[rows, -1, -1, 2]"}

    def predict(self, image: Annotated[Tensor, "float32[rows, -1, -1, -1]"]) -> Tensor:
        best = self.network(image)["out"].softmax(1).max(1)  # of [rows, classes, height, width]
        return torch.stack([best.indices.to(best.values.dtype), best.values], dim=3)


class Detector(Network):
    """As TorchServe's object detector. Rows have as many boxes as the row with most of them; those too many score 0."""

    outputs = {"box": "float32[rows, -1, 4]", "index": "int64[rows, -1]", "score": "float32[rows, -1]"}

    def predict(self, image: Annotated[Tensor, "float32[rows, -1, -1, -1]"]) -> dict[str, Tensor]:
        found = self.network(image)
        rows, boxes = len(found), max(len(one["scores"]) for one in found)
        box, index, score = (
            image.new_zeros(rows, boxes, 4),
            image.new_zeros(rows, boxes).long(),
            image.new_zeros(rows, boxes),
        )
        for row, one in enumerate(found):
            own = len(one["scores"])
            box[row, :own], index[row, :own], score[row, :own] = one["boxes"], one["labels"], one["scores"]
        return {"box": box, "index": index, "score": score}


def _read(file: Path) -> Mapping[str, Any]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, weights_only=True)  # type: ignore[no-any-return]
