"""An ONNX session, which the stock `inference` can't call, with an inference of its own."""

import numpy as np
from ts.torch_handler.base_handler import BaseHandler


class OnnxHandler(BaseHandler):
    def preprocess(self, data):
        return np.array([row["body"] for row in data], np.float32)

    def inference(self, data, *args, **kwargs):
        return self.model.run(None, {"x": data})[0]

    def postprocess(self, data):
        return data.tolist()
