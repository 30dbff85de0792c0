"""Doubles sequences of any length, counts what is no padding, and refuses 999."""

import numpy as np
from torpor.predictors import InvalidInput


class Padded:
    inputs = {"ids": "int64[rows, tokens]", "mask": "int64[rows, tokens]"}
    outputs = {"doubled": "int64[rows, tokens]", "count": "int64[rows]"}
    pad = {"ids": -1}

    def predict(self, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        if 999 in ids:
            raise InvalidInput("999 is not to this model's taste")
        return {"doubled": ids * 2, "count": mask.sum(1)}
