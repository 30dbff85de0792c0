"""Requests of KServe's v1 protocol and their answers; `predictors.protocol.v1` is the server's side of it.

v1 names neither datatypes nor the only output: an answer's datatypes are what its JSON elements are (int64, float32, bool,
BYTES), and its only output is called as the request asks, else "predictions".
"""

from base64 import b64encode
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson
from torpor.predictors.errors import InvalidInput, ModelFailed
from torpor.predictors.protocol.datatypes import Array, element_bytes
from torpor.predictors.protocol.inference import InferRequest, InferResponse
from torpor.predictors.protocol.json_tensor import array_of_unknown
from torpor.predictors.protocol.v1 import read_columns, write_columns
from torpor.predictors.protocol.v2_rest import parse_object

from .answers import malformed
from .message import Encoded, Reply, head
from .v2_rest import datatype_of, to_json

_VERSION = b"torpor-model-version"


class V1:
    """One model's requests. prefix, authority: of the predictor's address."""

    name = "v1"

    def __init__(self, model_name: str, prefix: str, authority: str) -> None:
        self._model_name = model_name
        self.model_path = f"{prefix}/v1/models/{quote(model_name, safe='')}"
        self.ready_path = self.model_path
        self._path = f"{self.model_path}:predict"
        self._authority = authority

    def encode(self, request: InferRequest) -> Encoded:
        """Raises InvalidInput for what the protocol has no form for."""
        rows = write_columns({name: _column(name, array) for name, array in request.inputs.items()})
        text = orjson.dumps({"instances": rows}, option=orjson.OPT_SERIALIZE_NUMPY)
        return head(self._path, self._authority, len(text)), [text]

    def decode(self, reply: Reply, request: InferRequest) -> InferResponse:
        """Raises PredictorFailed for what is no answer."""
        asked = request.terms.outputs
        try:
            predictions = parse_object(reply.body).get("predictions")
            if not isinstance(predictions, list) or not predictions:
                raise InvalidInput("predictions must be a non-empty list of rows")
            columns = read_columns(predictions, "predictions", asked if len(asked) == 1 else ())
            if not columns:
                raise InvalidInput("predictions[0] = {}, must have an output")
            outputs = {name: array_of_unknown(name, column) for name, column in columns.items()}
        except InvalidInput as error:
            raise malformed(str(error)) from None
        version = reply.headers.get(_VERSION, b"").decode("latin-1")
        if asked:
            missing = [name for name in asked if name not in outputs]
            if missing:
                raise malformed(f"predictions have no output '{missing[0]}', only {', '.join(outputs)}")
            outputs = {name: outputs[name] for name in asked}
        return InferResponse(self._model_name, version, outputs, request.terms.id)


def _column(name: str, array: Array) -> Any:
    """What orjson can write, one element a row. BYTES that are no UTF-8 go as base64."""
    if not array.ndim:
        raise InvalidInput(f"input '{name}': shape = [], must have rows on axis 0")
    datatype_of(name, array)
    if array.dtype != object:
        return to_json(name, array)
    try:
        return np.vectorize(_element, otypes=[object])(array).tolist() if array.size else array.tolist()
    except ModelFailed as error:  # it is made for outputs
        raise InvalidInput(f"input '{name}': {error}") from None


def _element(value: object) -> object:
    data = element_bytes(value)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"b64": b64encode(data).decode()}
