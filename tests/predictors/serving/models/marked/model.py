"""Doubles its input, and misbehaves in the way that the first number of a row asks for."""

import os
from pathlib import Path

import numpy as np
from torpor.predictors import InvalidInput

RAISE, REFUSE, ONE_ROW_LESS, GIVE_NAN, EXIT, GIVE_LATIN_1, WAIT, LEAK = range(1000, 1008)


leaked: list[bytes] = []


class Marked:
    inputs = {"x": "float32[rows, 2]"}
    outputs = {"doubled": "float32[rows, 2]", "label": "bytes[rows]", "batch_rows": "int64[rows]"}

    def predict(self, x: np.ndarray) -> dict[str, np.ndarray]:
        marks = set(x[:, 0].tolist())
        if WAIT in marks:
            Path(os.environ["GATE"]).read_bytes()  # a pipe: returns when the test has closed its other end
        if LEAK in marks:
            leaked.append(b"x" * (64 << 20))
        if RAISE in marks:
            raise RuntimeError("a secret of the model")
        if REFUSE in marks:
            raise InvalidInput("x = 1001 is not to this model's taste")
        if EXIT in marks:
            raise SystemExit(3)
        doubled = x * 2
        if GIVE_NAN in marks:
            doubled[x[:, 0] == GIVE_NAN] = np.nan
        if ONE_ROW_LESS in marks:
            doubled = doubled[:-1]
        label = np.array([b"\xe9" if row[0] == GIVE_LATIN_1 else b"%d" % row[0] for row in x] + [None], object)[:-1]
        return {"doubled": doubled, "label": label, "batch_rows": np.full(len(x), len(x))}
