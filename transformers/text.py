"""Texts to token ids, by a `tokenizer.json` of the library `tokenizers` (the extra `text`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from torpor.predictors.errors import InvalidInput
from torpor.predictors.protocol.datatypes import Array
from torpor.predictors.settings import SettingError

from .parameters import Parameters

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Text:
    """`text: bytes[rows]`, UTF-8, to `input_ids` and `attention_mask`: an int64 array a row, as long as its text has tokens.

    Parameters:
    tokenizer: the file, beside the model's own (tokenizer.json).
    max_length: most tokens of a row, special ones too; what a text has more is cut off. Without it the file's own truncation.
    max_text_bytes: longest text in bytes (1 MiB): a text is tokenised as a whole before it is cut.
    token_type_ids: true for models that take these too (false).
    """

    media_types = ("text/plain",)
    """Of an event whose data are the one input."""

    _tokenizer: "Tokenizer"
    _max_text_bytes: int
    _token_type_ids: bool

    def load(self, folder: Path | None, parameters: Mapping[str, Any]) -> None:
        """Raises SettingError for a parameter, or a folder, that cannot be used."""
        from tokenizers import Tokenizer

        owner = type(self).__name__
        given = Parameters(owner, parameters)
        file = (folder or Path()) / given.one("tokenizer", "tokenizer.json")
        if not file.is_file():
            raise SettingError(f"{owner}: {file} is not a file, must be a tokenizer.json of the library tokenizers")
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_padding()
        least = tokenizer.num_special_tokens_to_add(False) + 1
        own = tokenizer.truncation
        max_length = given.one("max_length", own["max_length"] if own else 0, least, 1 << 20)
        tokenizer.enable_truncation(**{**(own or {}), "max_length": max_length})
        self._tokenizer = tokenizer
        self._max_text_bytes = given.one("max_text_bytes", 1 << 20, 1, 1 << 30)
        self._token_type_ids = given.one("token_type_ids", False)
        given.end()

    def preprocess(self, text: Annotated[Array, "bytes[rows]"]) -> dict[str, list[Array]]:
        """Raises InvalidInput for a text that is too long or not UTF-8."""
        # Without offsets, which nobody reads.
        encoded = self._tokenizer.encode_batch_fast([self._decoded(row, data) for row, data in enumerate(text)])
        ids = [np.array(one.ids, np.int64) for one in encoded]
        # Nobody pads here, so that each token counts.
        tokens = {"input_ids": ids, "attention_mask": [np.ones_like(row) for row in ids]}
        if self._token_type_ids:
            tokens["token_type_ids"] = [np.array(one.type_ids, np.int64) for one in encoded]
        return tokens

    def _decoded(self, row: int, data: bytes) -> str:
        if len(data) > self._max_text_bytes:
            raise InvalidInput(
                f"input 'text': row {row} has {len(data)} bytes, must have at most {self._max_text_bytes}"
            )
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise InvalidInput(f"input 'text': row {row} is not UTF-8 at byte {error.start}") from None
