"""Takes and gives bfloat16 in numpy, which computes it as float32."""

import numpy as np


class Halves:
    inputs = {"x": "bfloat16[rows, 2]"}
    outputs = {"x": "bfloat16[rows, 2]"}

    def predict(self, x: np.ndarray) -> dict[str, np.ndarray]:
        assert x.dtype == np.float32
        return {"x": x}
