"""The mean of a user's features: the user."""

from typing import Annotated

import numpy as np


class Total:
    def predict(self, features: Annotated[np.ndarray, "float32[rows, 64]"]) -> Annotated[np.ndarray, "float32[rows]"]:
        return features.mean(1)
