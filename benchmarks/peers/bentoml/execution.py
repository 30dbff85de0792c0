"""BentoML's view of the MLP: rows joined along axis 0."""

import bentoml
import numpy as np
import torch

from assignment import MAX_BATCH_ROWS, MODEL
from models import MODELS


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Served:
    def __init__(self) -> None:
        self.model = MODELS[MODEL]()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_ROWS, max_latency_ms=60_000, route="/predict")
    def predict(self, instances: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.model(torch.from_numpy(instances.astype(np.float32))).numpy()
