"""The shapes in which requests reach a handler: TorchServe's request envelopes, chosen by the request's path.

An envelope makes rows of a request, and an answer of the rows that the handler gave back for them. TorchServe's `kserve` and
`kservev2` read the first request of a batch alone, and the handler sees its instances, or inputs, as the list of data. Here the
rows of several requests are one list, and each gets its part, if the handler returns one item a row.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ...errors import InvalidInput, ModelFailed
from ...protocol.datatypes import (
    BFLOAT16,
    NAMES,
    Array,
    array_from_raw,
    encode_bytes,
    float32_from_bfloat16,
    object_array,
)
from . import answers, request_data
from .answers import Unanswerable


@dataclass
class Call:
    """A request to a handler. headers: names in lower case. inputs: of its tensors, what is said beside their data.

    fields: of what has no body, the names of its blobs. query: parameters that are fields beside the body's.
    place: in its batch. has_begun: whether pieces of its answer have gone, so that no other can be given.
    rows: what the handler gets for it. types: the content type of each field of its row.
    """

    id: str
    headers: Mapping[str, str]
    blobs: Sequence[bytes]
    is_explained: bool = False
    inputs: Sequence[Mapping[str, Any]] = ()
    fields: Sequence[str] | None = None
    query: str = ""
    place: int = 0
    has_begun: bool = False
    rows: list[Any] = field(default_factory=list)
    types: Mapping[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    v2_id: str = ""


@dataclass
class Answer:
    """content_type: "" for none. outputs: of tensors, what is said beside their data."""

    content_type: str
    blobs: list[bytes | bytearray]
    outputs: list[dict[str, Any]] = field(default_factory=list)


class Envelope(Protocol):
    def open(self, call: Call) -> None:
        """Give the call its rows. Raises InvalidInput."""

    def may_join(self, call: Call) -> bool:
        """Whether its rows may stand in a list with those of others."""

    def answer(self, call: Call, results: Any) -> Answer:
        """Of the items for the call's rows: a list, of any length if the call was alone. Raises Unanswerable."""


@dataclass
class Plain:
    """No envelope, or `body`, or `json`: rows of what `request_data` reads."""

    decodes: bool
    envelope: str = ""

    def open(self, call: Call) -> None:
        row = _row(call, self.decodes)
        if self.envelope == "":
            call.rows = [row]
            return
        content = row.get("data") or row.get("body")
        if self.envelope == "body":
            call.rows = [content]
            return
        instances = _object(content if content is not None else row).get("instances")
        if not isinstance(instances, list) or not instances:
            raise InvalidInput("instances must be a non-empty list")
        call.rows = [_decoded(instance) for instance in instances]

    def may_join(self, call: Call) -> bool:
        return True

    def answer(self, call: Call, results: Any) -> Answer:
        if self.envelope == "json":
            return Answer("", [answers.json_text({"predictions": results}, has_blanks=True)])
        if len(results) != 1:
            raise Unanswerable(f"number of batch response mismatched: {len(results)} items for one request")
        return Answer("", [answers.body(results[0])])


@dataclass
class KServeV1:
    """`kserve`: the instances are the data, and the predictions what the handler returns.

    is_v1: the path is v1's; else the answer is written as TorchServe writes it on its own.
    """

    is_v1: bool

    def open(self, call: Call) -> None:
        instances = _object(_content(call)).get("instances")
        if not isinstance(instances, list):
            raise InvalidInput("instances must be a list")
        call.rows = instances

    def may_join(self, call: Call) -> bool:
        return bool(call.rows)

    def answer(self, call: Call, results: Any) -> Answer:
        key = "explanations" if call.is_explained else "predictions"
        return _written({key: results}, self.is_v1)


@dataclass
class KServeV2:
    """`kservev2`: the inputs are the data, as objects; each item that the handler returns is an output, flat.

    The request is JSON, or tensors: then so is the answer. is_v2: the path is v2's, as `KServeV1.is_v1`.
    """

    is_v2: bool
    model_name: str
    model_version: str

    def open(self, call: Call) -> None:
        if call.inputs:
            call.rows = [_input_of(said, blob) for said, blob in zip(call.inputs, call.blobs, strict=True)]
        else:
            content = _object(_content(call))
            inputs = content.get("inputs")
            if not isinstance(inputs, list) or not inputs:
                raise InvalidInput("inputs must be a non-empty list of tensors")
            call.rows = [_shaped(entry, position) for position, entry in enumerate(inputs)]
            v2_id = content.get("id")
            if v2_id is not None and not isinstance(v2_id, str):
                raise InvalidInput(f"id is a {type(v2_id).__name__}, must be a string")
            call.v2_id = v2_id if v2_id and v2_id.strip() else ""
        call.names = [row["name"] for row in call.rows]

    def may_join(self, call: Call) -> bool:
        # A handler of several inputs may find them by their places in the list.
        return len(call.rows) == 1

    def answer(self, call: Call, results: Any) -> Answer:
        if len(results) > len(call.names):
            raise Unanswerable(f"the handler returned {len(results)} items for {len(call.names)} inputs")
        arrays = {name: _flat(name, item) for name, item in zip(call.names, results, strict=False)}
        outputs = [
            {"name": name, "datatype": datatype, "shape": [len(array)]} for name, (array, datatype) in arrays.items()
        ]
        if call.inputs:
            return Answer("", [_raw(array) for array, _ in arrays.values()], outputs)
        for output, (array, _) in zip(outputs, arrays.values(), strict=True):
            output["data"] = array.tolist()
        content = {
            "id": call.v2_id or call.id,
            "model_name": self.model_name,
            "model_version": self.model_version,
            "outputs": outputs,
        }
        return _written(content, self.is_v2)


def _row(call: Call, decodes: bool) -> dict[str, Any]:
    """What the call says, by field. Raises InvalidInput."""
    if call.fields is not None:
        call.types = dict.fromkeys(call.fields, "")
        return {name: bytearray(blob) for name, blob in zip(call.fields, call.blobs, strict=True)}
    row, call.types = request_data.read(call.headers, call.blobs[0], decodes)
    if call.query:
        parameters = request_data.parameters(call.query)
        row, call.types = {**parameters, **row}, {**dict.fromkeys(parameters, ""), **call.types}
    return row


def _content(call: Call) -> Any:
    """Its body; of what has none the field that stands for it."""
    if call.fields is None:
        return call.blobs[0]
    row = _row(call, False)
    return row.get("data") or row.get("body") or b""


def _written(content: object, by_kserve: bool) -> Answer:
    """JSON, as KServe's server writes it or as TorchServe does. Raises Unanswerable."""
    return (
        Answer("application/json", [answers.json_text(content)]) if by_kserve else Answer("", [answers.body(content)])
    )


def _object(content: Any) -> dict[str, Any]:
    """Raises InvalidInput."""
    if isinstance(content, bytes | bytearray | memoryview):
        try:
            content = request_data.loads(content)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"the body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InvalidInput(f"the body is a JSON {type(content).__name__}, must be an object")
    return content


def _decoded(instance: Any) -> Any:
    """An instance, or one of its values, that is `{"b64": text}`, as bytes. Raises InvalidInput."""
    if not isinstance(instance, dict):
        return instance
    if list(instance) == ["b64"]:
        return _bytes_of(instance["b64"])
    return {
        name: _bytes_of(value["b64"]) if isinstance(value, dict) and list(value) == ["b64"] else value
        for name, value in instance.items()
    }


def _bytes_of(text: Any) -> bytes:
    try:
        return base64.b64decode(text)
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"b64 is not base64: {error}") from None


def _shaped(entry: Any, position: int) -> dict[str, Any]:
    """An input of JSON with its data in its shape; of BYTES the first element, as it stands. Raises InvalidInput."""
    where = f"inputs[{position}]"
    if not isinstance(entry, dict):
        raise InvalidInput(f"{where} is a {type(entry).__name__}, must be an object")
    for key, kind in (("name", str), ("datatype", str), ("shape", list), ("data", list)):
        if not isinstance(entry.get(key), kind):
            raise InvalidInput(f"{where}.{key} must be a {kind.__name__}")
    data, shape = entry["data"], entry["shape"]
    if entry["datatype"] == "BYTES":
        if not data:
            raise InvalidInput(f"{where}.data must have at least one element")
        return {**entry, "data": data[0]}
    if not all(type(size) is int for size in shape):
        raise InvalidInput(f"{where}.shape must be a list of integers")
    try:
        return {**entry, "data": np.array(data).reshape(shape).tolist()}
    except ValueError as error:
        raise InvalidInput(f"{where}: data do not fit shape = {shape[:32]}: {error}") from None


def _input_of(said: Mapping[str, Any], blob: bytes) -> dict[str, Any]:
    """A tensor as the JSON object that KServe's own server makes of it: of BYTES the first element, in base64."""
    name, datatype, shape = said["name"], said["datatype"], said["shape"]
    array = array_from_raw(name, datatype, tuple(shape), bytes(blob), 0, len(blob))
    data: Any
    if datatype == "BYTES":
        if not array.size:
            raise InvalidInput(f"input '{name}' must have at least one element")
        data = base64.b64encode(array.ravel()[0]).decode()
    else:
        data = (float32_from_bfloat16(array) if array.dtype == BFLOAT16 else array).tolist()
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def _flat(name: str, item: Any) -> tuple[Array, str]:
    """An output's elements, and its datatype by numpy. Raises Unanswerable."""
    try:
        array = np.array(item).flatten()
    except (ValueError, TypeError, RuntimeError) as error:
        raise Unanswerable(f"output '{name}' is no array: {error}") from None
    if array.dtype.kind in "OU":
        return array, "BYTES"
    if array.dtype not in NAMES:
        raise Unanswerable(f"output '{name}': dtype {array.dtype} has no Open Inference datatype")
    return array, NAMES[array.dtype]


def _raw(array: Array) -> bytes:
    if array.dtype.kind not in "OU":
        return array.tobytes()
    elements = [item if isinstance(item, bytes | str) else answers.json_text(item) for item in array.tolist()]
    try:
        return encode_bytes(object_array(elements, (len(elements),)))
    except ModelFailed as error:
        raise Unanswerable(str(error)) from None
