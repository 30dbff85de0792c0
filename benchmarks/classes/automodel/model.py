"""The sentence model as Hugging Face's AutoModel, from the folder that $BENCH_MINILM names."""

import os

import torch
from torch import Tensor
from transformers import AutoModel


class Auto:
    inputs = {"input_ids": "int64[rows, tokens]", "attention_mask": "int64[rows, tokens]"}
    outputs = {"embedding": "float32[rows, 384]"}

    def load(self) -> None:
        self.model = AutoModel.from_pretrained(os.environ["BENCH_MINILM"], dtype=torch.float32).eval()

    def predict(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"embedding": self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.mean(1)}
