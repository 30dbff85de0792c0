"""The MLP's architecture as an archive's model file has it: one class, made without arguments, weights beside it."""

from torch import Tensor, nn


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10))

    def forward(self, input: Tensor) -> Tensor:
        return self.layers(input)
