"""The two models that every peer serves, in plain torch.

The file is imported by its path in each peer's environment (PYTHONPATH), so it depends on torch and numpy alone, and
safetensors for the sentence model. One definition for all: a difference between two servers can't come from the model.

``rows`` are independent requests, ``tokens`` the positions of a sentence, ``features`` the numbers of a vector.

`MODELS[name]()` loads; `run(model, requests)` is what a peer's batch handler calls: it joins single rows (sentences are
padded to the longest of the batch, as each peer's documentation does it), runs torch and returns the rows.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Row = Mapping[str, np.ndarray]
"""A request's inputs by name, each with a first axis of length one."""


class Mlp(nn.Module):
    """784-512-10, seeded: small enough that a server's own cost per request is what is measured."""

    output = "output"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10))

    @classmethod
    def load(cls) -> "Mlp":
        return cls().eval()

    @staticmethod
    def join(requests: Sequence[Row]) -> list[Tensor]:
        return [torch.from_numpy(np.concatenate([row["input"] for row in requests]))]

    def forward(self, input: Tensor) -> Tensor:
        return cast(Tensor, self.layers(input))


class Attention(nn.Module):
    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # One product for the three projections: faster than three, and what a careful author of a peer would write.
        self.joint = nn.Linear(features, 3 * features)
        self.dense = nn.Linear(features, features)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        rows, tokens, features = hidden.shape
        joint = self.joint(hidden).view(rows, tokens, 3, self.heads, features // self.heads)
        query, key, value = joint.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return cast(Tensor, self.dense(mixed.transpose(1, 2).reshape(rows, tokens, features)))


class Layer(nn.Module):
    def __init__(self, features: int, heads: int, inner: int, epsilon: float) -> None:
        super().__init__()
        self.attention = Attention(features, heads)
        self.attention_norm = nn.LayerNorm(features, epsilon)
        self.widen = nn.Linear(features, inner)
        self.narrow = nn.Linear(inner, features)
        self.norm = nn.LayerNorm(features, epsilon)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        hidden = self.attention_norm(hidden + self.attention(hidden, mask))
        return cast(Tensor, self.norm(hidden + self.narrow(functional.gelu(self.widen(hidden)))))


class MiniLm(nn.Module):
    """all-MiniLM-L6-v2: a BERT encoder of six layers, mean over the mask, length one."""

    output = "embedding"

    def __init__(self, config: Mapping[str, int | float]) -> None:
        super().__init__()
        features, epsilon = int(config["hidden_size"]), float(config["layer_norm_eps"])
        self.words = nn.Embedding(int(config["vocab_size"]), features)
        self.positions = nn.Embedding(int(config["max_position_embeddings"]), features)
        self.types = nn.Embedding(int(config["type_vocab_size"]), features)
        self.norm = nn.LayerNorm(features, epsilon)
        self.layers = nn.ModuleList(
            Layer(features, int(config["num_attention_heads"]), int(config["intermediate_size"]), epsilon)
            for _ in range(int(config["num_hidden_layers"]))
        )

    @classmethod
    def load(cls) -> "MiniLm":
        from safetensors.torch import load_file

        folder = Path(os.environ["BENCH_MINILM"])
        model = cls(json.loads((folder / "config.json").read_text()))
        model.load_state_dict(_renamed(load_file(folder / "model.safetensors"), len(model.layers)))
        return model.eval()

    @staticmethod
    def join(requests: Sequence[Row]) -> list[Tensor]:
        longest = max(row["input_ids"].shape[1] for row in requests)
        # Zero is both the padding token's id and the mask's "not there".
        joined = np.zeros((2, len(requests), longest), dtype=np.int64)
        for index, row in enumerate(requests):
            tokens = row["input_ids"].shape[1]
            joined[0, index, :tokens] = row["input_ids"][0]
            joined[1, index, :tokens] = row["attention_mask"][0]
        return [torch.from_numpy(joined[0]), torch.from_numpy(joined[1])]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[rows, tokens] twice -> [rows, features]."""
        tokens = input_ids.shape[1]
        hidden = self.norm(self.words(input_ids) + self.positions.weight[:tokens] + self.types.weight[0])
        mask = attention_mask[:, None, None, :].bool()
        for layer in self.layers:
            hidden = layer(hidden, mask)
        weights = attention_mask[:, :, None].to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return functional.normalize(mean, dim=1)


def _renamed(stored: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The file's tensors under this module's names; the file's pooler is unused by sentence embeddings."""
    names = {"words": "word_embeddings", "positions": "position_embeddings", "types": "token_type_embeddings"}
    state = {f"{ours}.weight": stored[f"embeddings.{theirs}.weight"] for ours, theirs in names.items()}
    pairs = {"norm": "embeddings.LayerNorm"}
    for index in range(layers):
        ours, theirs = f"layers.{index}", f"encoder.layer.{index}"
        pairs |= {
            f"{ours}.attention.dense": f"{theirs}.attention.output.dense",
            f"{ours}.attention_norm": f"{theirs}.attention.output.LayerNorm",
            f"{ours}.widen": f"{theirs}.intermediate.dense",
            f"{ours}.narrow": f"{theirs}.output.dense",
            f"{ours}.norm": f"{theirs}.output.LayerNorm",
        }
    for kind in ("weight", "bias"):
        state |= {f"{ours}.{kind}": stored[f"{theirs}.{kind}"] for ours, theirs in pairs.items()}
        for index in range(layers):
            parts = [
                stored[f"encoder.layer.{index}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")
            ]
            state[f"layers.{index}.attention.joint.{kind}"] = torch.cat(parts)
    return state


MODELS: dict[str, Callable[[], Mlp | MiniLm]] = {"mlp": Mlp.load, "minilm": MiniLm.load}


def run(model: Mlp | MiniLm, requests: Sequence[Row]) -> np.ndarray:
    """One batch of single rows -> [rows, features]."""
    with torch.inference_mode():
        return cast(Tensor, model(*model.join(requests))).numpy()
