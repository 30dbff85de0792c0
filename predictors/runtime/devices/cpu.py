"""The CPU: a call returns when its work is done, and a batch is one fresh buffer that the tensor shares."""

from contextlib import AbstractContextManager

import torch


class Device:
    in_flight = 1

    def __init__(self, name: str) -> None:
        self.torch_device = torch.device(name)

    def computing(self) -> AbstractContextManager[None]:
        return torch.inference_mode()

    def is_broken(self, error: BaseException) -> bool:
        return False

    def allocated_bytes(self) -> None:
        return None

    def free(self) -> None:
        pass  # malloc gives large blocks back by itself
