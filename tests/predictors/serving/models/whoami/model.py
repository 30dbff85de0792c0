"""Says which process it runs in; dies with it when it is told to, or hangs and lets no other thread run."""

import ctypes
import os
from typing import Annotated

import numpy as np

HANG = -2


class WhoAmI:
    outputs = {"pid": "int64[rows]"}

    def predict(self, x: Annotated[np.ndarray, "float32[rows]"]) -> dict[str, np.ndarray]:
        if x.min() == HANG:
            ctypes.PyDLL(None).sleep(600)  # PyDLL, unlike CDLL, keeps the interpreter's lock
        if x.min() < 0:
            os.kill(os.getpid(), 9)
        return {"pid": np.full(len(x), os.getpid())}
