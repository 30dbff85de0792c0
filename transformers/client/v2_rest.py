"""Requests of Open Inference (v2) over REST, JSON or with binary data, and their answers; `predictors.protocol.v2_rest` is the
server's side of it.

What precedes the data is kept, as the server keeps it: the head and the JSON object of requests that differ in their data
alone, and of answers what their object says, by its bytes.
"""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson
from torpor.predictors.errors import InvalidInput, ModelFailed
from torpor.predictors.protocol.datatypes import NAMES, Array, encode_bytes
from torpor.predictors.protocol.inference import InferRequest, InferResponse, Terms
from torpor.predictors.protocol.json_tensor import json_from_array
from torpor.predictors.protocol.v2_rest import LARGEST_KEPT_BYTES, Tensors, parse_object, read_tensors
from torpor.predictors.remembered import Remembered

from .answers import malformed
from .message import Encoded, Reply, head

_JSON_LENGTH = b"inference-header-content-length"

_VIEWED_BYTES = 16 << 10
"""Tensors from here on are sent from where they lie; to copy a smaller one costs less than to view it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """What the JSON object of an answer says."""

    model_name: str
    model_version: str
    id: str
    tensors: Tensors


_LAYOUTS: Remembered[bytes, _Layout] = Remembered(512)
"""Layouts of answers without an id, all of whose data are binary, by the bytes of their JSON object."""


class V2Rest:
    """One model's requests. prefix, authority: of the predictor's address. binary: else everything goes as JSON."""

    def __init__(self, model_name: str, prefix: str, authority: str, *, binary: bool) -> None:
        self.name = "v2-binary" if binary else "v2-json"
        self.model_path = f"{prefix}/v2/models/{quote(model_name, safe='')}"
        self.ready_path = f"{self.model_path}/ready"
        self._path = f"{self.model_path}/infer"
        self._authority = authority
        self._binary = binary
        self._kept: Remembered[tuple[object, ...], tuple[bytes, bytes]] = Remembered(512)

    def encode(self, request: InferRequest) -> Encoded:
        """Raises InvalidInput for what the protocol has no form for."""
        key: tuple[object, ...] | None = None
        if self._binary and says_nothing(request.terms):
            key = ()
            for name, array in request.inputs.items():
                key += name, array.dtype, array.shape
            kept = self._kept.get(key)
            if kept is not None:
                return kept[0], [kept[1], *map(_raw, request.inputs.values())]
        entries: list[dict[str, object]] = []
        blobs: list[bytes | memoryview] = []
        is_constant = True
        for name, array in request.inputs.items():
            entry: dict[str, object] = {"name": name, "datatype": datatype_of(name, array), "shape": array.shape}
            parameters = dict(request.terms.tensor_parameters.get(name, {}))
            if self._binary:
                is_constant &= array.dtype != object
                blob = _bytes(name, array) if array.dtype == object else _raw(array)
                parameters["binary_data_size"] = len(blob)
                blobs.append(blob)
            else:
                entry["data"] = to_json(name, array.ravel())
            if parameters:
                entry["parameters"] = parameters
            entries.append(entry)
        said = _said(request.terms, self._binary) | {"inputs": entries}
        text = orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY)
        if not self._binary:
            return head(self._path, self._authority, len(text)), [text]
        fields = b"content-type: application/octet-stream\r\n%b: %d\r\n" % (_JSON_LENGTH, len(text))
        start = head(self._path, self._authority, len(text) + sum(map(len, blobs)), fields)
        if key is not None and is_constant:
            self._kept.keep(key, (start, text))
        return start, [text, *blobs]

    def decode(self, reply: Reply, request: InferRequest) -> InferResponse:
        """Raises PredictorFailed for what is no answer."""
        body = reply.body
        try:
            json_length = _json_length(reply)
            text = body[:json_length]
            layout = _LAYOUTS.get(text) or _read_layout(text)
            outputs = layout.tensors.read(body, json_length)
        except InvalidInput as error:
            raise malformed(str(error)) from None
        return InferResponse(layout.model_name, layout.model_version, outputs, layout.id)


def says_nothing(terms: Terms) -> bool:
    """Whether a request with these terms differs from others in its tensors alone."""
    return not (terms.id or terms.outputs or terms.parameters or terms.tensor_parameters)


def datatype_of(name: str, array: Array) -> str:
    """Raises InvalidInput."""
    datatype = NAMES.get(array.dtype)
    if datatype is None:
        raise InvalidInput(f"input '{name}': dtype {array.dtype} has no Open Inference datatype")
    return datatype


def to_json(name: str, array: Array) -> object:
    """What orjson can write. Raises InvalidInput for what JSON cannot hold."""
    try:
        return json_from_array(name, array)
    except ModelFailed as error:  # it is made for outputs
        why = error if array.dtype == object else "it holds NaN or infinity"
        raise InvalidInput(f"input '{name}' cannot go as JSON: {why}") from None


def _bytes(name: str, array: Array) -> bytes:
    try:
        return encode_bytes(array)
    except ModelFailed as error:
        raise InvalidInput(f"input '{name}': {error}") from None


def _raw(array: Array) -> bytes | memoryview:
    if array.nbytes < _VIEWED_BYTES or not array.flags.c_contiguous:
        return array.tobytes()
    return memoryview(array.reshape(-1).view("u1"))  # type: ignore[arg-type]


def _said(terms: Terms, binary: bool) -> dict[str, object]:
    """What the JSON object says beside its tensors. In which form outputs come back is settled by what is spoken."""
    said: dict[str, object] = {}
    if terms.id:
        said["id"] = terms.id
    parameters = {name: value for name, value in terms.parameters.items() if name != "binary_data_output"}
    if binary:
        parameters["binary_data_output"] = True
    if parameters:
        said["parameters"] = parameters
    if terms.outputs:
        said["outputs"] = [
            {"name": name} | ({"parameters": {"binary_data": True}} if binary else {}) for name in terms.outputs
        ]
    return said


def _json_length(reply: Reply) -> int:
    length, most = reply.headers.get(_JSON_LENGTH), len(reply.body)
    if length is None:
        return most
    if not (length.isdigit() and len(length) < 20 and int(length) <= most):
        shown = length[:40].decode("latin-1")
        raise InvalidInput(f"Inference-Header-Content-Length = {shown!r}, must be in [0, {most}]")
    return int(length)


def _read_layout(text: bytes) -> _Layout:
    said = parse_object(text)
    tensors = read_tensors(said, "outputs")
    layout = _Layout(_text(said, "model_name"), _text(said, "model_version"), _text(said, "id"), tensors)
    if not tensors.arrays and not layout.id and len(text) <= LARGEST_KEPT_BYTES:
        _LAYOUTS.keep(text, layout)
    return layout


def _text(said: dict[str, Any], field: str) -> str:
    """Empty where it is missing or null, as in answers of KServe's SDK."""
    value = said.get(field)
    if not isinstance(value, str | None):
        raise InvalidInput(f"{field} must be a string")
    return value or ""
