"""Explains by `get_insights`, as the base handler wants it."""

import torch
from ts.torch_handler.base_handler import BaseHandler


class Explained(BaseHandler):
    def preprocess(self, data):
        contents = [row.get("body", row) for row in data]
        return torch.tensor([content["x"] if "x" in content else content["data"] for content in contents])

    def get_insights(self, tensor_data, raw, target):
        return [{"target": target, "row": row} for row in tensor_data.tolist()]

    def describe_handle(self):
        return {"described": True}
