"""Handwritten digits, 8 × 8: the class and its probability for each image."""

from pathlib import Path

from network import Network
from safetensors.torch import load_file
from torch import Tensor


class Digits:
    inputs = {"image": "float32[rows, 8, 8]"}
    outputs = {"digit": "int64[rows]", "probability": "float32[rows]"}

    def load(self, folder: Path) -> None:
        self.network = Network().eval()
        self.network.load_state_dict(load_file(folder / "digits.safetensors"))

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        probability, digit = self.network(image).softmax(dim=1).max(dim=1)
        return {"digit": digit, "probability": probability}
