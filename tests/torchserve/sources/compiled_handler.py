"""What `pt2` in the model's YAML does to the model, beside its answer."""

import torch
from ts.torch_handler.base_handler import BaseHandler


class CompiledHandler(BaseHandler):
    def preprocess(self, data):
        return torch.tensor([row["body"] for row in data])

    def postprocess(self, data):
        return [{"y": row, "model": type(self.model).__name__} for row in data.tolist()]
