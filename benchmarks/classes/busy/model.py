"""Keeps Python busy for as many seconds as it is told."""

import time

import numpy as np


class Busy:
    def predict(self, seconds: np.ndarray) -> np.ndarray:
        end_s = time.monotonic() + float(seconds.max())
        while time.monotonic() < end_s:
            pass
        return seconds
