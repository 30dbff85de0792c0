"""The MLP on TorchServe's base handler: v1 JSON of one row in and out."""

import torch
from ts.torch_handler.base_handler import BaseHandler


class JsonHandler(BaseHandler):
    def preprocess(self, data):
        return torch.tensor([row["body"]["instances"][0] for row in data], dtype=torch.float32)

    def postprocess(self, data):
        return [{"predictions": [row]} for row in data.tolist()]
