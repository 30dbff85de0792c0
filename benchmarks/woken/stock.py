"""KServe's own SDK over the class, as its documentation writes a custom model."""

import sys
from typing import Any

import torch
from kserve import Model, ModelServer

sys.path.insert(0, "/opt/torpor/examples/mlp")
from model import Mlp


class Served(Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__("mlp")
        self.load()

    def load(self) -> bool:
        self.model = Mlp()
        self.model.load()
        self.ready = True
        return True

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        with torch.inference_mode():
            return {"predictions": self.model.predict(torch.tensor(payload["instances"])).tolist()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    ModelServer().start([Served()])
