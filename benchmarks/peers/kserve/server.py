"""KServe's own SDK 0.21: a custom model under `ModelServer`, as its documentation writes one.

The SDK doesn't batch, and runs a plain `predict` on the event loop. Both are left as they come: this peer is what a
user of KServe has today. Latency lines, access log and gRPC's thread pool are at their quietest.
"""

import logging
import sys
from typing import Any

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.utils.utils import generate_uuid

from assignment import MODEL, PORT
from bodies import from_json
from models import MODELS, run


class Served(Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(MODEL)
        self.load()

    def load(self) -> bool:
        self.model = MODELS[MODEL]()
        self.ready = True
        return True

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        if not isinstance(payload, InferRequest):
            return {"predictions": run(self.model, [from_json(payload)]).tolist()}
        output = run(self.model, [{tensor.name: tensor.as_numpy() for tensor in payload.inputs}])
        tensor = InferOutput(self.model.output, list(output.shape), "FP32")
        tensor.set_data_from_numpy(np.ascontiguousarray(output))
        return InferResponse(
            payload.id or generate_uuid(),
            MODEL,
            [tensor],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


if __name__ == "__main__":
    # The server reads its own flags from the command line; logs are cut off at the root.
    sys.argv[1:] = ["--configure_logging", "False", "--enable_latency_logging", "False"]
    logging.disable(logging.WARNING)
    ModelServer(http_port=PORT, grpc_port=PORT + 1, enable_latency_logging=False).start([Served()])
