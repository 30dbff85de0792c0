"""The OpenAPI 3.1 document of a server: its inference protocols' routes, and each model's inputs and outputs as declared.

Source: https://spec.openapis.org/oas/v3.1.0. Binary tensors (application/octet-stream) are outside what a schema can say.
"""

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from ..protocol.datatypes import DTYPES
from ..signature import TensorSpec
from .data_plane import DataPlane, Served

Schema = dict[str, Any]

_MODELS: Schema = {"type": "object", "properties": {"models": {"type": "array", "items": {"type": "string"}}}}
_READY: Schema = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "ready": {"type": "boolean"}},
    "required": ["ready"],
}
_SERVER: Schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "version": {"type": "string"},
        "extensions": {"type": "array", "items": {"type": "string"}},
    },
}
_TENSOR_METADATA: Schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "datatype": {"enum": [*DTYPES]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": -1}},
    },
}
_METADATA: Schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "versions": {"type": "array", "items": {"type": "string"}},
        "platform": {"type": "string"},
        "inputs": {"type": "array", "items": {"$ref": "#/components/schemas/TensorMetadata"}},
        "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/TensorMetadata"}},
    },
}
_PARAMETERS: Schema = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_BINARY: Schema = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def document(data_plane: DataPlane) -> Schema:
    """The document, ready for JSON."""
    paths: Schema = {
        "/": _get("live", "The server runs.", {"type": "object"}),
        "/v1/models": _get("listModelsV1", "The models' names.", _MODELS),
        "/v1/models/{model}": _get("readyV1", "Whether the model takes requests; 503 if not.", _READY, ["model"]),
        "/v2": _get("serverMetadata", "The server, and the extensions that it has.", _SERVER),
        "/v2/health/live": _get("serverLive", "The server runs.", {"type": "object"}),
        "/v2/health/ready": _get("serverReady", "Whether the server takes requests; 503 if not.", _READY),
        "/v2/models": _get("listModels", "The models' names.", _MODELS),
    }
    for name in data_plane.names():
        part, versions = quote(name, safe=""), data_plane.versions(name)
        paths |= _model_paths(versions[0], name, part)
        for model in versions:
            paths |= _model_paths(model, f"{name}.{model.version}", f"{part}/versions/{model.version}")
    return {
        "openapi": "3.1.0",
        "info": {"title": "torpor", "version": data_plane.version},
        "paths": paths,
        "components": {
            "schemas": {
                "Error": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]},
                "Parameters": _PARAMETERS,
                "TensorMetadata": _TENSOR_METADATA,
            }
        },
    }


def _model_paths(model: Served, name: str, part: str) -> Schema:
    """The routes of one version. name: begins their operations' names; part: of the path, the model's."""
    signature = model.signature
    inputs, outputs = [*signature.inputs.values()], [*signature.outputs.values()]
    # Where not everything is declared, anything may come.
    names = signature.names or tuple(signature.inputs)
    are_complete = all(n in signature.inputs for n in names)
    return {
        f"/v1/models/{part}:predict": _post(
            f"{name}.predict",
            _object({"instances": _rows(inputs if are_complete else [], names, signature.optional)}, ["instances"]),
            _object({"predictions": _rows(outputs, tuple(signature.outputs), frozenset())}, ["predictions"]),
            {},
        ),
        f"/v2/models/{part}": _get(f"{name}.metadata", "What the model takes and gives.", _METADATA),
        f"/v2/models/{part}/ready": _get(f"{name}.ready", "Whether the model takes requests; 503 if not.", _READY),
        f"/v2/models/{part}/infer": _post(
            f"{name}.infer",
            _object(
                {
                    "id": {"type": "string"},
                    "parameters": {"$ref": "#/components/schemas/Parameters"},
                    "inputs": {"type": "array", "minItems": 1, "items": _tensor(inputs if are_complete else [])},
                    "outputs": {"type": "array", "items": _requested_output(signature.outputs)},
                },
                ["inputs"],
            ),
            _object(
                {
                    "model_name": {"type": "string"},
                    "model_version": {"type": "string"},
                    "id": {"type": "string"},
                    "outputs": {"type": "array", "items": _tensor(outputs)},
                },
                ["model_name", "outputs"],
            ),
            _BINARY,
        ),
    }


def _rows(specs: list[TensorSpec], names: tuple[str, ...], optional: frozenset[str]) -> Schema:
    """v1's rows: of the only tensor, or objects by name. names: what the object must have, but for the optional."""
    if not specs:
        return {"type": "array"}
    if len(specs) == 1:
        return {"type": "array", "items": _nested(specs[0])}
    required = [name for name in names if name not in optional]
    return {"type": "array", "items": _object({spec.name: _nested(spec) for spec in specs}, required)}


def _nested(spec: TensorSpec) -> Schema:
    """One row of a tensor as nested lists."""
    schema = _element(spec.datatype)
    for axis in reversed(spec.axes):
        schema = {"type": "array", "items": schema}
        if isinstance(axis, int) and axis >= 0:
            schema |= {"minItems": axis, "maxItems": axis}
    return schema


def _element(datatype: str) -> Schema:
    if datatype == "BYTES":
        return {"anyOf": [{"type": "string"}, _object({"b64": {"type": "string"}}, ["b64"])]}
    dtype = DTYPES[datatype]
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return {"type": "integer", "minimum": int(limits.min), "maximum": int(limits.max)}
    return {"type": "boolean" if dtype.kind == "b" else "number"}


def _tensor(specs: list[TensorSpec]) -> Schema:
    """A v2 tensor: one of those declared, or any."""
    if not specs:
        return _tensor_of({"type": "string"}, {"enum": [*DTYPES]}, {"type": "array"})
    choices = []
    for spec in specs:
        sizes = [{"const": n} if n >= 0 else {"type": "integer", "minimum": 0} for n in spec.shape]
        shape = {"type": "array", "prefixItems": sizes, "minItems": len(sizes), "maxItems": len(sizes)}
        choices.append(_tensor_of({"const": spec.name}, {"const": spec.datatype}, shape))
    return choices[0] if len(choices) == 1 else {"oneOf": choices}


def _tensor_of(name: Schema, datatype: Schema, shape: Schema) -> Schema:
    shape = shape | {"description": "Rows come first."}
    data = {"type": "array", "description": "Flat, or nested as the shape says."}
    parameters = {"$ref": "#/components/schemas/Parameters"}
    return _object(
        {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters, "data": data},
        ["name", "datatype", "shape"],
    )


def _requested_output(names: Iterable[str]) -> Schema:
    names = [*names]
    name: Schema = {"enum": names} if names else {"type": "string"}
    return _object({"name": name, "parameters": {"$ref": "#/components/schemas/Parameters"}}, ["name"])


def _object(properties: Schema, required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required}


def _get(operation: str, summary: str, schema: Schema, variables: Sequence[str] = ()) -> Schema:
    get: Schema = {"operationId": operation, "summary": summary, "responses": _responses(schema, {})}
    if variables:
        get["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in variables
        ]
    return {"get": get}


def _post(operation: str, request: Schema, response: Schema, others: Schema) -> Schema:
    body = {"required": True, "content": {"application/json": {"schema": request}, **others}}
    return {"post": {"operationId": operation, "requestBody": body, "responses": _responses(response, others)}}


def _responses(schema: Schema, others: Schema) -> Schema:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "200": {"description": "The answer.", "content": {"application/json": {"schema": schema}, **others}},
        "default": {"description": "What is wrong.", "content": error},
    }
