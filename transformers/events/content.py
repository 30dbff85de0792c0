"""What an event's data asks of a model, and its answers as an event's data.

- JSON: v1 or v2, told apart by their keys `instances` and `inputs`; answered in the same protocol.
- application/octet-stream with the length of its JSON: v2 with binary tensors. The length is the HTTP header
  Inference-Header-Content-Length, or the extension `inferenceheadercontentlength`, which travels in every mode.
- A type that the transformer declares in `media_types`, such as text/plain: the data is the one row of its only input;
  answered as v1.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import orjson
from torpor.predictors.errors import InvalidInput, UnsupportedMedia
from torpor.predictors.protocol import v1, v2_rest
from torpor.predictors.protocol.datatypes import object_array
from torpor.predictors.protocol.inference import InferRequest, InferResponse
from torpor.predictors.serving.data_plane import Served

from . import Event
from .content_type import content_type

JSON = "application/json"
_BINARY = "application/octet-stream"
LENGTH = "inferenceheadercontentlength"
"""The extension that says how much of the data is v2's JSON object."""

_NO_EXTENSIONS: Mapping[str, str] = MappingProxyType({})


class Answered(NamedTuple):
    """An answer's data, its content type, and the extensions that tell how to read it."""

    data: bytes
    datacontenttype: str
    extensions: Mapping[str, str] = _NO_EXTENSIONS


class Asked(NamedTuple):
    """Requests that are answered together, and what makes their answer. `encode` raises ModelFailed."""

    requests: list[InferRequest]
    encode: Callable[[Sequence[InferResponse]], Answered]


def read(event: Event, model: Served, json_length: str | None) -> Asked:
    """json_length: the message's header. Raises InvalidInput, UnsupportedMedia."""
    data = event.data
    if data is None:
        raise InvalidInput("the event has no data, must have a request for the model")
    said = event.datacontenttype
    media = content_type(said) if said is not None else None
    if media is None or media.is_json:
        if _is_v1(data):
            return Asked(v1.decode(data, model.signature.names, model.signature.v1_datatypes), _encode_v1)
        return _asked_v2(v2_rest.decode(data, None))
    length = json_length if json_length is not None else event.attributes.get(LENGTH)
    if media.essence == _BINARY and length is not None:
        if not (length.isdecimal() and len(length) < 20):
            raise InvalidInput(f"Inference-Header-Content-Length = {length[:40]!r}, must be an integer")
        return _asked_v2(v2_rest.decode(data, int(length)))
    if media.essence in model.media_types:
        (name,) = model.signature.names
        return Asked([InferRequest({name: object_array([data], [1])})], _encode_v1)
    takes = ", ".join((JSON, f"{_BINARY} with Inference-Header-Content-Length", *model.media_types))
    raise UnsupportedMedia(f"datacontenttype = {media.essence[:40]!r}, must be {takes}")


def _is_v1(data: bytes) -> bool:
    """By the first key, which is enough for what most write; else by all of them. Raises InvalidInput."""
    start = data[:32].translate(None, b" \t\r\n")
    if start.startswith(b'{"instances":'):
        return True
    if start.startswith((b'{"inputs":', b'{"id":')):
        return False
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the event's data is not JSON: {error}") from None
    if not isinstance(value, dict) or not ({"instances", "inputs"} & value.keys()):
        raise InvalidInput("the event's data must be an object with instances (v1) or inputs (v2)")
    return "instances" in value


def _encode_v1(responses: Sequence[InferResponse]) -> Answered:
    return Answered(v1.encode(responses), JSON)


def _asked_v2(request: InferRequest) -> Asked:
    def encode(responses: Sequence[InferResponse]) -> Answered:
        data, json_length = v2_rest.encode(responses[0], request.terms.binary_outputs)
        if json_length is None:
            return Answered(data, JSON)
        return Answered(data, _BINARY, {LENGTH: str(json_length)})

    return Asked([request], encode)
