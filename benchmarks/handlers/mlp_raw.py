"""The MLP on TorchServe's base handler: a row's float32 bytes in, the answer's float32 bytes out."""

import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler


class RawHandler(BaseHandler):
    def preprocess(self, data):
        return torch.from_numpy(np.stack([np.frombuffer(row["body"], np.float32) for row in data]))

    def postprocess(self, data):
        return [row.tobytes() for row in data.numpy()]
