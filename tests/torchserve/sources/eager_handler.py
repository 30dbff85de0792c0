"""A class on top of the stock base: rows of three numbers by JSON, form or multipart, by the key `x` or as the body itself."""

import json

import torch
from ts.torch_handler.base_handler import BaseHandler


class EagerHandler(BaseHandler):
    def preprocess(self, data):
        return torch.tensor([self.numbers(row) for row in data])

    def numbers(self, row):
        found = row.get("x", row.get("body"))
        if isinstance(found, (bytes, bytearray)):
            found = json.loads(found.decode())
        if isinstance(found, dict):
            found = found["x"]
        return [float(number) for number in found]

    def postprocess(self, data):
        return [{"y": row} for row in data.tolist()]
