"""Explains by `get_insights`, as the base handler wants it."""

import torch
from ts.torch_handler.base_handler import BaseHandler


class Explained(BaseHandler):
    def preprocess(self, data):
        rows = [row.get("data", row.get("body")) if isinstance(row, dict) else row for row in data]
        rows = [row["x"] if isinstance(row, dict) else row for row in rows]
        return torch.tensor(rows)

    def get_insights(self, tensor_data, raw, target):
        return [{"target": target, "row": row} for row in tensor_data.tolist()]

    def describe_handle(self):
        return {"described": True}
