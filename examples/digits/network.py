"""The network of the digits example: a small CNN over 8 × 8 grey images with values in [0, 16]."""

from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),  # [rows, 16, 8, 8]
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),  # [rows, 32, 4, 4]
            nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),  # [rows, 10]
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        """image: [rows, 8, 8], in [0, 16]; logits: [rows, 10]."""
        return self.layers(image.unsqueeze(1) / 16.0)
