"""The MLP as `mlp_json.py` has it, on a device that takes its time beside the processor: 4 ms a batch, as a GPU's larger model.

The processor is free meanwhile, which is what overlapping batches use; a model on the processor's own cores would take them.
"""

import time

import torch
from ts.torch_handler.base_handler import BaseHandler


class DeviceHandler(BaseHandler):
    def preprocess(self, data):
        return torch.tensor([row["body"]["instances"][0] for row in data], dtype=torch.float32)

    def inference(self, data, *args, **kwargs):
        time.sleep(0.004)
        return super().inference(data)

    def postprocess(self, data):
        return [{"predictions": [row]} for row in data.tolist()]
