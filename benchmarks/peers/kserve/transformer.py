"""KServe's own transformer, as its documentation writes one: `preprocess`, and the SDK's client asks the predictor.

A text becomes token ids as the sentence model's own tokenizer has them. Asked in v1, it asks its predictor in v1; in v2, with
a BYTES tensor as JSON, it asks by gRPC with raw contents: binary tensors over REST go out with two content types, and the
SDK's own server refuses them.
"""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from kserve import InferInput, InferRequest, Model, ModelServer, model_server
from tokenizers import Tokenizer

LONGEST = 128
"""Tokens, as in the benchmark's `rows`."""


class Sentences(Model):  # type: ignore[misc]
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.tokenizer = Tokenizer.from_file(str(Path(os.environ["BENCH_MINILM"]) / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(LONGEST)
        self.ready = True

    async def preprocess(self, payload: Any, headers: Any = None) -> Any:
        if not isinstance(payload, InferRequest):
            (text,) = payload["instances"]
            ids = self.tokenizer.encode(text).ids
            return {"instances": [{"input_ids": ids, "attention_mask": [1] * len(ids)}]}
        ((text,),) = [tensor.data for tensor in payload.inputs]
        ids = np.array([self.tokenizer.encode(text).ids], dtype=np.int64)
        inputs = []
        for name, values in (("input_ids", ids), ("attention_mask", np.ones_like(ids))):
            tensor = InferInput(name, list(values.shape), "INT64")
            tensor.set_data_from_numpy(values, binary_data=True)
            inputs.append(tensor)
        return InferRequest(self.name, inputs)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    # The server has read its flags from the command line.
    ModelServer().start([Sentences(model_server.args.model_name)])
