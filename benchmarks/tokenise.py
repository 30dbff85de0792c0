"""Texts to tensors, by the ready-made class and by the library alone, which gives neither arrays nor errors with a row."""

import random
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from environments import minilm_folder
from loads import BadAnswerError, Rate
from rows import LONGEST, MEDIAN_TOKENS, SHORTEST, SIGMA, WORDS

COUNT = 1_000
OTHERS = ["naïve", "Größe", "東京", "e-mail@example.com", "3.14159", "don't", "🙂", "internationalisation"]


def texts() -> list[str]:
    """Seeded sentences of log-normal lengths; every tenth word is not of plain English letters."""
    choice = random.Random(0)
    words = WORDS + choice.choices(OTHERS, k=len(WORDS) // 9)
    lengths = (round(choice.lognormvariate(np.log(MEDIAN_TOKENS), SIGMA)) for _ in range(COUNT))
    return [" ".join(choice.choices(words, k=min(max(length, SHORTEST), LONGEST))) for length in lengths]


@dataclass(frozen=True)
class Tokenised:
    """Sentences a second in batches of a thousand. how: "torpor", or the name of the library's method."""

    label: str
    how: str

    def measure(self, seconds: float) -> Rate:
        from tokenizers import Tokenizer
        from torpor.predictors.protocol.datatypes import object_array
        from torpor.transformers.text import Text

        folder = minilm_folder()
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        ours = Text()
        ours.load(folder, {})
        given = texts()
        rows = object_array([text.encode() for text in given], [COUNT])
        expected = tokenizer.encode_batch(given)
        for row, one in zip(ours.preprocess(rows)["input_ids"], expected, strict=True):
            if row.tolist() != one.ids:
                raise BadAnswerError(f"{row.tolist()} instead of {one.ids}")

        def work() -> Any:
            return ours.preprocess(rows) if self.how == "torpor" else getattr(tokenizer, self.how)(given)

        work()
        done, began_s = 0, time.perf_counter()
        while (spent_s := time.perf_counter() - began_s) < seconds:
            work()
            done += COUNT
        return Rate(done / spent_s, float("nan"), float("nan"))
