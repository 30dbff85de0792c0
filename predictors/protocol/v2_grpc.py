"""Open Inference (v2) over gRPC: the bytes of protobuf messages to and from tensors.

Source: the Open Inference Protocol's inference_grpc.md. Data come raw (`raw_input_contents`, one entry an input) or typed
(`contents`); a request that brings raw data gets raw data, any other gets typed contents where the datatype has a field.

Callers send the same message with every request, only the raw data differ, and these come last, since protobuf writes
fields in the order of their numbers. So what precedes them is read once and found again by its bytes, and tensors are
views of the received bytes; anything else takes protobuf's own way. A response's message is kept likewise.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from ..errors import InvalidInput
from ..remembered import Remembered
from .datatypes import DTYPES, Array, array_from_raw, datatype_of, element_bytes, encode_bytes
from .inference import (
    NO_PARAMETERS,
    InferRequest,
    InferResponse,
    Parameter,
    Parameters,
    Terms,
    check_parameters,
    timeout_of,
)
from .messages import message
from .v2_rest import check_shape, check_size

ModelInferRequest = message("inference.ModelInferRequest")
ModelInferResponse = message("inference.ModelInferResponse")

_FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip

_LENGTH_DELIMITED = 2
RAW_INPUT_CONTENTS = 7 << 3 | _LENGTH_DELIMITED
_RAW_OUTPUT_CONTENTS = 6 << 3 | _LENGTH_DELIMITED
"""Tags: a field's number and its wire type (https://protobuf.dev/programming-guides/encoding)."""


class InferCall(NamedTuple):
    """A request and whom it is for; version "" for any."""

    model_name: str
    model_version: str
    request: InferRequest


Tensor = tuple[str, str, tuple[int, ...]]
"""Name, datatype and shape."""


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """What a message says beside its tensors' data."""

    model_name: str
    model_version: str
    tensors: tuple[Tensor, ...]
    terms: Terms


_LAYOUTS: Remembered[bytes, _Layout] = Remembered(512)
"""Layouts of messages with raw data, by the bytes that precede these."""

_LARGEST_KEPT_BYTES = 2048

_HEADS: Remembered[tuple[object, ...], bytes] = Remembered(1024)
"""Messages of responses without their raw data, by model, version and the tensors' names, dtypes and shapes."""


def decode(data: bytes, start: int = 0) -> InferCall:
    """The `inference.ModelInferRequest` in `data` from `start` on. Raises InvalidInput."""
    found = _find_raw(data, start)
    if found is not None:
        text, places = found
        layout = _LAYOUTS.get(text)
        if layout is not None and len(layout.tensors) == len(places):
            inputs: dict[str, Array] = {}
            for (name, datatype, shape), (at, size) in zip(layout.tensors, places, strict=True):
                check_size(name, datatype, shape, size)
                inputs[name] = array_from_raw(name, datatype, shape, data, at, size)
            return InferCall(layout.model_name, layout.model_version, InferRequest(inputs, layout.terms))
    try:
        said = ModelInferRequest.FromString(data[start:])
    except DecodeError:
        raise InvalidInput("the message is not a valid inference.ModelInferRequest") from None
    kept_by = found[0] if found is not None and len(found[0]) <= _LARGEST_KEPT_BYTES else None
    layout = _read_layout(said, is_kept=kept_by is not None)
    inputs = read_contents(layout.tensors, said.inputs, said.raw_input_contents)
    if kept_by is not None:
        _LAYOUTS.keep(kept_by, layout)
    return InferCall(layout.model_name, layout.model_version, InferRequest(inputs, layout.terms))


def _find_raw(data: bytes, start: int) -> tuple[bytes, list[tuple[int, int]]] | None:
    """What precedes the raw data, and where each of them lies: (start, size). None if they are not all at the end."""
    places: list[tuple[int, int]] = []
    at, head_end, end = start, -1, len(data)
    while at < end - 1:
        tag, size = data[at], data[at + 1]
        if tag & 0x87 != _LENGTH_DELIMITED:
            return None
        if tag == RAW_INPUT_CONTENTS:
            if head_end < 0:
                head_end = at
        elif head_end >= 0:
            return None
        at += 2
        if size > 127:  # a varint of several bytes, the lowest seven bits first
            size &= 127
            for shift in (7, 14, 21, 28):
                if at >= end:
                    return None
                byte = data[at]
                at += 1
                size |= (byte & 127) << shift
                if byte < 128:
                    break
            else:
                return None
        if head_end >= 0:
            places.append((at, size))
        at += size
    return (data[start:head_end], places) if at == end and places else None


def _read_layout(said: Any, is_kept: bool) -> _Layout:
    """Check everything but the data."""
    raw = said.raw_input_contents
    tensors, tensor_parameters = read_tensors(said.inputs, raw)
    outputs = tuple(output.name for output in said.outputs)
    if len(set(outputs)) != len(outputs) or "" in outputs:
        raise InvalidInput("outputs must each have a name, and each name once only")
    for output in said.outputs:
        check_parameters("output", output.name, output.parameters)
    parameters = _parameters(said.parameters) if said.parameters else NO_PARAMETERS
    binary_outputs = None if raw else frozenset[str]()
    terms = Terms(outputs, binary_outputs, said.id, parameters, timeout_of(parameters), is_kept, tensor_parameters)
    return _Layout(said.model_name, said.model_version, tensors, terms)


def read_tensors(entries: Any, raw: Any) -> tuple[tuple[Tensor, ...], dict[str, Parameters]]:
    """The tensors in a request's or a response's message, beside their data, and the parameters of each that has any.

    raw: the message's raw contents. Raises InvalidInput, which calls them inputs.
    """
    if not entries:
        raise InvalidInput("inputs must not be empty")
    if raw and len(raw) != len(entries):
        raise InvalidInput(f"raw_input_contents has {len(raw)} entries, must have {len(entries)}, one for each input")
    read: dict[str, Tensor] = {}
    parameters: dict[str, Parameters] = {}
    for position, tensor in enumerate(entries):
        name, datatype = tensor.name, tensor.datatype
        if not name or name in read:
            raise InvalidInput(f"inputs[{position}].name = '{name}', must be given, and once only")
        if datatype not in DTYPES:
            raise InvalidInput(f"input '{name}': datatype = '{datatype}', must be one of {', '.join(DTYPES)}")
        shape = tuple(tensor.shape)
        if shape and min(shape) < 0:
            raise InvalidInput(f"input '{name}': shape = {list(shape)}, must be integers of at least 0")
        check_shape(name, shape)
        if raw and tensor.contents.ListFields():
            raise InvalidInput(f"input '{name}': contents and raw_input_contents exclude one another")
        if tensor.parameters:
            parameters[name] = _parameters(tensor.parameters)
            check_parameters("input", name, parameters[name])
        read[name] = name, datatype, shape
    return tuple(read.values()), parameters


def read_contents(tensors: tuple[Tensor, ...], entries: Any, raw: Any) -> dict[str, Array]:
    """The data of tensors that `read_tensors` has read, raw or typed. Raises InvalidInput."""
    arrays: dict[str, Array] = {}
    for position, (name, datatype, shape) in enumerate(tensors):
        if raw:
            content = raw[position]
            check_size(name, datatype, shape, len(content))
            arrays[name] = array_from_raw(name, datatype, shape, content, 0, len(content))
        else:
            arrays[name] = _from_typed(entries[position], datatype, shape)
    return arrays


def encode(response: InferResponse, *, raw: bool) -> bytes:
    """An `inference.ModelInferResponse`; FP16 and BF16 have no typed field: a response that holds them is raw in any case.

    Raises ModelFailed for an output that has no datatype.
    """
    outputs = response.outputs
    key: tuple[object, ...] | None = None
    if raw and not response.id:
        key = response.likeness()
        head = _HEADS.get(key)
        if head is not None:
            return with_raw(head, _RAW_OUTPUT_CONTENTS, outputs)
    answer = ModelInferResponse(model_name=response.model_name, model_version=response.model_version, id=response.id)
    datatypes = {name: datatype_of(array) for name, array in outputs.items()}
    raw = raw or not _FIELDS.keys() >= set(datatypes.values())
    for name, array in outputs.items():
        datatype = datatypes[name]
        output = answer.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            continue
        if datatype == "BYTES":
            output.contents.bytes_contents.extend(map(element_bytes, array.ravel()))
        else:
            getattr(output.contents, _FIELDS[datatype]).extend(array.ravel().tolist())
    head = answer.SerializeToString()
    if key is not None:
        _HEADS.keep(key, head)
    return with_raw(head, _RAW_OUTPUT_CONTENTS, outputs) if raw else head


def with_raw(head: bytes, tag: int, tensors: dict[str, Array]) -> bytes:
    """A message with its raw data, whose field, by its tag, has the highest number and therefore comes last."""
    pieces = [head]
    for array in tensors.values():
        content = encode_bytes(array) if array.dtype == object else array.tobytes()
        size = len(content)
        prefix = [tag]
        while size > 127:
            prefix.append(size & 127 | 128)
            size >>= 7
        pieces += (bytes((*prefix, size)), content)
    return b"".join(pieces)


def _from_typed(tensor: Any, datatype: str, shape: tuple[int, ...]) -> Array:
    name, field = tensor.name, _FIELDS.get(datatype)
    if field is None:
        raise InvalidInput(f"input '{name}': {datatype} must come in raw_input_contents")
    filled = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    if filled and filled != [field]:
        raise InvalidInput(f"input '{name}': contents has {', '.join(filled)}, must have {field} alone for {datatype}")
    values = getattr(tensor.contents, field)
    if len(values) != math.prod(shape):
        raise InvalidInput(
            f"input '{name}': shape {list(shape)} needs {math.prod(shape)} elements, {field} has {len(values)}"
        )
    dtype = DTYPES[datatype]
    array = np.array(values, np.int64 if dtype.kind in "iu" and dtype.itemsize < 4 else dtype)
    if array.dtype != dtype:
        limits = np.iinfo(dtype)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise InvalidInput(f"input '{name}': elements must be in [{limits.min}, {limits.max}] for {datatype}")
        array = array.astype(dtype)
    return array.reshape(shape)


def _parameters(values: Any) -> Parameters:
    parameters: dict[str, Parameter] = {}
    for name, value in values.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidInput(f"parameter {name} has no value")
        parameters[name] = getattr(value, choice)
    return parameters
