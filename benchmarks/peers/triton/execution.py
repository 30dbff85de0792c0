"""Triton's view of a model: the whole batch in one call, rows out again by request.

The backend's stub runs its interpreter isolated, so that PYTHONPATH is read here.
"""

# ruff: noqa: E402  (the path comes before what lies on it)
import os
import sys
from typing import Any

sys.path[:0] = os.environ["PYTHONPATH"].split(":")

import triton_python_backend_utils as backend

from assignment import MODEL
from models import MODELS, run


class TritonPythonModel:
    def initialize(self, _: dict[str, str]) -> None:
        self.model = MODELS[MODEL]()

    def execute(self, requests: list[Any]) -> list[Any]:
        rows = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        outputs = run(self.model, rows)
        name = self.model.output
        return [
            backend.InferenceResponse([backend.Tensor(name, outputs[index : index + 1])])
            for index in range(len(requests))
        ]
