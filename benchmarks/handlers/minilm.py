"""The sentence model: texts in, tokenised in the handler as a batch, vectors' float32 bytes out."""

import os

import torch
from tokenizers import Tokenizer
from ts.torch_handler.base_handler import BaseHandler

from models import MiniLm


class SentenceHandler(BaseHandler):
    def initialize(self, context):
        folder = context.system_properties["model_dir"]
        os.environ["BENCH_MINILM"] = folder
        self.model, self.device = MiniLm.load(), torch.device("cpu")
        self.tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        self.tokenizer.enable_truncation(128)
        self.tokenizer.enable_padding()
        self.context, self.initialized = context, True

    def preprocess(self, data):
        return self.tokenizer.encode_batch([row["body"] for row in data])

    def inference(self, encoded, *args, **kwargs):
        ids = torch.tensor([one.ids for one in encoded])
        mask = torch.tensor([one.attention_mask for one in encoded])
        with torch.inference_mode():
            return self.model(ids, mask)

    def postprocess(self, data):
        return [row.tobytes() for row in data.numpy()]
