"""BERT's encoder in plain torch, as MiniLM uses it: https://arxiv.org/abs/1810.04805. Inference only.

Legend: rows = sentences, tokens = the longest sentence's, hidden = 384, heads = 12.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional


class Bert:
    """The weights by their names in Hugging Face's checkpoints; query, key and value fused into one product."""

    def __init__(self, weights: dict[str, Tensor], heads: int, layers: int, epsilon: float) -> None:
        self._weights = weights
        self._heads = heads
        self._layers = layers
        self._epsilon = epsilon
        for layer in range(layers):
            prefix = f"encoder.layer.{layer}.attention.self."
            for kind in ("weight", "bias"):
                parts = [weights.pop(f"{prefix}{part}.{kind}") for part in ("query", "key", "value")]
                weights[f"{prefix}qkv.{kind}"] = torch.cat(parts)

    @classmethod
    def from_folder(cls, folder: Path) -> "Bert":
        config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
        return cls(weights, config["num_attention_heads"], config["num_hidden_layers"], config["layer_norm_eps"])

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids, attention_mask: [rows, tokens]; the last layer's output: [rows, tokens, hidden]."""
        rows, tokens = input_ids.shape
        words = functional.embedding(input_ids, self._weights["embeddings.word_embeddings.weight"])
        positions = self._weights["embeddings.position_embeddings.weight"][:tokens]
        x = self._norm(words + positions + self._weights["embeddings.token_type_embeddings.weight"][0], "embeddings")
        mask = attention_mask.to(torch.bool)[:, None, None, :]  # [rows, 1, 1, tokens]
        if mask.all():
            mask = None
        for layer in range(self._layers):
            prefix = f"encoder.layer.{layer}"
            qkv = self._linear(x, f"{prefix}.attention.self.qkv").view(rows, tokens, 3, self._heads, -1)
            query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [rows, heads, tokens, hidden / heads]
            attended = functional.scaled_dot_product_attention(query, key, value, mask)
            attended = attended.transpose(1, 2).reshape(rows, tokens, -1)
            x = self._norm(x + self._linear(attended, f"{prefix}.attention.output.dense"), f"{prefix}.attention.output")
            inner = functional.gelu(self._linear(x, f"{prefix}.intermediate.dense"))
            x = self._norm(x + self._linear(inner, f"{prefix}.output.dense"), f"{prefix}.output")
        return x

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[f"{name}.LayerNorm.weight"], self._weights[f"{name}.LayerNorm.bias"]
        return functional.layer_norm(x, weight.shape, weight, bias, self._epsilon)
