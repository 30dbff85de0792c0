"""Explains by `get_insights`, as the base handler wants it."""

import torch
from ts.torch_handler.base_handler import BaseHandler


class Explained(BaseHandler):
    def preprocess(self, data):
        return torch.tensor([row["x"] for row in data])

    def get_insights(self, tensor_data, raw, target):
        return [{"target": target, "row": row} for row in tensor_data.tolist()]

    def describe_handle(self):
        return {"described": True}
