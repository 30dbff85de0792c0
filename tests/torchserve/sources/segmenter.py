"""A segmenter of three classes, whose answer is small enough for TorchServe's 6.5 MB: all pixels but 8 x 8 pooled away."""

import torch


class Segmenter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 1)

    def forward(self, images):
        return {"out": self.layer(torch.nn.functional.adaptive_avg_pool2d(images, 8))}
