"""The seeded inputs: images for the MLP, sentences for the sentence model.

`mlp_rows` are 784 numbers with four decimals, so that the JSON form has the digits real pixels have. `sentences` are
words from a short list through the model's own tokenizer, their lengths in tokens log-normal (median 20, sigma 0.6,
clipped to 4 ... 128), which is roughly what search queries and paragraphs' sentences look like.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bodies import Row

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MEDIAN_TOKENS, SIGMA, SHORTEST, LONGEST = 20, 0.6, 4, 128

LARGE_BYTES = 5_000_000

VOCABULARY = """
river winter engine garden market letter window summer doctor city music paper morning ocean silver village teacher
kitchen mountain forest bridge station animal harbour captain science history language machine quiet broken distant
yellow careful ancient gentle heavy narrow frozen early honest hollow modern opens carries follows repairs describes
watches borrows measures forgets delivers paints answers gathers the a every this near under behind without across
between and but because while
"""
WORDS = VOCABULARY.split()


def mlp_rows(seed: int, count: int) -> list[Row]:
    values = np.random.default_rng(seed).random((count, 1, 784)).round(4).astype(np.float32)
    return [{"input": value} for value in values]


def sentences(seed: int, count: int, folder: Path) -> list[Row]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # A word is at least one token, so that as many words reach the length; the tokenizer cuts the rest.
    return [_tokens(tokenizer, text, length) for length, text in _drawn(seed, count)]


def texts(seed: int, count: int) -> list[Row]:
    """The sentences' words before any tokenizer has seen them, and without its cuts: a few tokens more."""
    return [{"text": np.array([text], dtype=object)} for _, text in _drawn(seed, count)]


def tokenised(rows: list[Row], folder: Path) -> list[Row]:
    """What a model of sentences gets of such texts."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [_tokens(tokenizer, row["text"][0], LONGEST) for row in rows]


def _drawn(seed: int, count: int) -> Iterator[tuple[int, str]]:
    """Lengths, and texts of so many words."""
    choice = random.Random(seed)
    for _ in range(count):
        drawn = round(choice.lognormvariate(np.log(MEDIAN_TOKENS), SIGMA))
        length = min(max(drawn, SHORTEST), LONGEST)
        yield length, " ".join(choice.choices(WORDS, k=length))


def _tokens(tokenizer: "Tokenizer", text: str, most: int) -> Row:
    tokenizer.no_padding()
    tokenizer.enable_truncation(most)
    ids = np.array([tokenizer.encode(text).ids], dtype=np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def large_rows(seed: int, count: int) -> list[Row]:
    """Rows of LARGE_BYTES random bytes."""
    generator = np.random.default_rng(seed)
    return [{"x": generator.integers(0, 256, (1, LARGE_BYTES), np.uint8)} for _ in range(count)]
