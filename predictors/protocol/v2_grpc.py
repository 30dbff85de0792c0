"""Open Inference (v2) over gRPC: protobuf messages to and from tensors.

Source: the Open Inference Protocol's inference_grpc.md. Data come raw (`raw_input_contents`, one entry an input) or typed
(`contents`); a request that brings raw data gets raw data, any other gets typed contents where the datatype has a field.
"""

import math
from typing import Any

import numpy as np

from ..errors import InvalidInput
from .datatypes import DTYPES, Array, array_from_raw, datatype_of, element_bytes, encode_bytes, object_array
from .inference import NO_PARAMETERS, InferRequest, InferResponse, Parameter, Parameters, timeout_of
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


def decode(request: Any) -> InferRequest:
    """An `inference.ModelInferRequest` (model name and version are the caller's to read). Raises InvalidInput."""
    raw = request.raw_input_contents
    tensors = request.inputs
    if not tensors:
        raise InvalidInput("inputs must not be empty")
    if raw and len(raw) != len(tensors):
        raise InvalidInput(f"raw_input_contents has {len(raw)} entries, must have {len(tensors)}, one for each input")
    inputs: dict[str, Array] = {}
    for position, tensor in enumerate(tensors):
        name = tensor.name
        if not name or name in inputs:
            raise InvalidInput(f"inputs[{position}].name = '{name}', must be given, and once only")
        datatype = tensor.datatype
        if datatype not in DTYPES:
            raise InvalidInput(f"input '{name}': datatype = '{datatype}', must be one of {', '.join(DTYPES)}")
        shape = tuple(tensor.shape)
        if shape and min(shape) < 0:
            raise InvalidInput(f"input '{name}': shape = {list(shape)}, must be integers of at least 0")
        check_shape(name, shape)
        if raw and tensor.contents.ListFields():
            raise InvalidInput(f"input '{name}': contents and raw_input_contents exclude one another")
        inputs[name] = _from_raw(name, datatype, shape, raw[position]) if raw else _from_typed(tensor, datatype, shape)
    outputs = tuple(output.name for output in request.outputs)
    if len(set(outputs)) != len(outputs) or "" in outputs:
        raise InvalidInput("outputs must each have a name, and each name once only")
    parameters = _parameters(request.parameters) if request.parameters else NO_PARAMETERS
    timeout_s = timeout_of(parameters) if parameters else None
    layout = (tuple([(name, array.dtype, array.shape) for name, array in inputs.items()]), outputs)
    return InferRequest(inputs, outputs, None if raw else frozenset(), request.id, parameters, timeout_s, layout)


def encode(response: InferResponse, *, raw: bool) -> Any:
    """An `inference.ModelInferResponse`; FP16 has no typed field, so a response that holds it is raw in any case."""
    answer = ModelInferResponse(model_name=response.model_name, model_version=response.model_version, id=response.id)
    datatypes = {name: datatype_of(array) for name, array in response.outputs.items()}
    raw = raw or "FP16" in datatypes.values()
    for name, array in response.outputs.items():
        datatype = datatypes[name]
        output = answer.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            answer.raw_output_contents.append(encode_bytes(array) if datatype == "BYTES" else array.tobytes())
        elif datatype == "BYTES":
            output.contents.bytes_contents.extend(map(element_bytes, array.ravel()))
        else:
            getattr(output.contents, _FIELDS[datatype]).extend(array.ravel().tolist())
    return answer


def _from_raw(name: str, datatype: str, shape: tuple[int, ...], data: bytes) -> Array:
    check_size(name, datatype, shape, len(data))
    return array_from_raw(name, datatype, shape, data, 0, len(data))


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
    if datatype == "BYTES":
        return object_array(list(values), shape)
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
