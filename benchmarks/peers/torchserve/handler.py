"""TorchServe's handler: a list of bodies in, a list of answers out."""

from typing import Any

from assignment import FORM, MODEL
from bodies import from_json, from_raw
from models import MODELS, run


class Handler:
    def initialize(self, context: Any) -> None:
        self.model = MODELS[MODEL]()

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Any]:
        if FORM == "raw":
            outputs = run(self.model, [from_raw(MODEL, request["body"]) for request in data])
            return [row.tobytes() for row in outputs]
        outputs = run(self.model, [from_json(request["body"]) for request in data])
        return [{"predictions": [row]} for row in outputs.tolist()]
