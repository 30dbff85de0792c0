"""The eager model file of several archives: exactly one class, made without arguments, its weights in a state dict."""

import torch


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x)
