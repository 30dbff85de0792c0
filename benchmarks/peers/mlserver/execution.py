"""MLServer's view of the MLP: a request whose rows its adaptive batching has already joined."""

import torch
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from assignment import MODEL
from models import MODELS


class Served(MLModel):  # type: ignore[misc]
    async def load(self) -> bool:
        self.model = MODELS[MODEL]()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = torch.from_numpy(NumpyCodec.decode_input(payload.inputs[0]))
        with torch.inference_mode():
            output = self.model(rows).numpy()
        tensor = NumpyCodec.encode_output(self.model.output, output)
        return InferenceResponse(model_name=self.name, outputs=[tensor])
