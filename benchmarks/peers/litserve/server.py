"""LitServe 0.2: uvicorn in one process, the model in another, a queue between them.

A request that reaches LitServe's queue is JSON or a form; it takes no raw tensor, so both models use JSON. `fast_queue`
is the queue over ZeroMQ. One API server and one worker.
"""

from typing import Any

import litserve
import numpy as np

from assignment import MAX_BATCH_ROWS, MAX_WAIT_S, MODEL, PORT
from bodies import Row, from_json
from models import MODELS, run


class Served(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        self.model = MODELS[MODEL]()

    def decode_request(self, request: dict[str, Any]) -> Row:
        return from_json(request)

    def batch(self, inputs: list[Row]) -> list[Row]:
        return inputs

    def predict(self, inputs: list[Row]) -> np.ndarray:
        return run(self.model, inputs)

    def unbatch(self, output: np.ndarray) -> list[list[float]]:
        return output.tolist()

    def encode_response(self, output: list[float]) -> dict[str, Any]:
        return {"predictions": [output]}


if __name__ == "__main__":
    api = Served(max_batch_size=MAX_BATCH_ROWS, batch_timeout=MAX_WAIT_S)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1", port=PORT, num_api_servers=1, log_level="error", generate_client_file=False, access_log=False
    )
