"""Words to numbers and back: each word is a row as long as its letters."""

from typing import Annotated

import numpy as np
from torpor.predictors.errors import InvalidInput

VALUES = {"!": 666.0, "$": 999.0}


class Words:
    outputs = {"said": "bytes[rows]", "total": "float32[rows]"}
    media_types = ("text/plain",)

    def preprocess(self, word: Annotated[np.ndarray, "bytes[rows]"]):
        """A list of rows that differ in length; a word may not be empty."""
        if b"" in word:
            raise InvalidInput("word = '', must have a letter")
        if b"?" in word:
            raise RuntimeError("no answer to that")
        return {
            "x": [np.array([VALUES.get(letter, ord(letter)) for letter in text.decode()], np.float32) for text in word]
        }

    def postprocess(self, total: Annotated[np.ndarray, "float32[rows]"]):
        if (total == ord("#")).any():
            raise RuntimeError("cannot say that")
        return {"said": [f"{value:g}" for value in total], "total": total}
