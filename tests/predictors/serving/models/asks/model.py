"""Tells each row what its request said beside its tensors."""

import json

import numpy as np
from torpor.predictors.signature import Request


class Asks:
    inputs = {"x": "float32[rows]"}

    def predict(self, x: np.ndarray, requests: list[Request]) -> dict[str, object]:
        return {"x": x, "said": [json.dumps(said(request)) for request in requests]}


def said(request: Request) -> dict[str, object]:
    return {
        "id": request.id,
        "parameters": dict(request.parameters),
        "tensor_parameters": {name: dict(its) for name, its in request.tensor_parameters.items()},
        "remaining_s": request.remaining_s,
        "traceparent": request.headers.get("traceparent"),
    }
