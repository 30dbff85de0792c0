"""The OpenAPI 3.1 document of a server: all that it answers over REST, and each model's inputs and outputs as declared.

Source: https://spec.openapis.org/oas/v3.1.0. Binary tensors (application/octet-stream) are outside what a schema can say,
and so is what an archive's handler reads.
"""

from collections.abc import Iterable, Mapping, Sequence
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
_STATUS: Schema = {"type": "object", "properties": {"status": {"type": "string"}}}
_INDEX: Schema = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "version": {"type": "string"},
            "state": {"enum": ["READY", "LOADING", "UNAVAILABLE"]},
            "reason": {"type": "string"},
        },
    },
}
_EVENT: Schema = {
    "type": "object",
    "description": "CloudEvents 1.0: https://github.com/cloudevents/spec",
    "properties": {
        "specversion": {"const": "1.0"},
        "id": {"type": "string", "minLength": 1},
        "source": {"type": "string", "minLength": 1},
        "type": {"type": "string", "minLength": 1},
        "datacontenttype": {"type": "string"},
        "data": {"description": "A request of v1 or v2."},
        "data_base64": {"type": "string"},
    },
    "required": ["specversion", "id", "source", "type"],
}
_ONE_EVENT: Schema = {"$ref": "#/components/schemas/CloudEvent"}
_EVENTS: Schema = {
    "application/cloudevents+json": {"schema": _ONE_EVENT},
    "application/cloudevents-batch+json": {"schema": {"type": "array", "items": _ONE_EVENT}},
}
_BYTES: Schema = {"schema": {"type": "string", "format": "binary"}}
_BINARY: Schema = {"application/octet-stream": _BYTES}
_TEXT: Schema = {"text/plain": {"schema": {"type": "string"}}}
_ANYTHING: Schema = {"*/*": _BYTES}

_PINNED = "torpor-model-version"
_BY_PARAMETER = "As predictions, of the model that the parameter model_name names, or of the only one."


def document(data_plane: DataPlane, may_change: bool, takes_events: bool) -> Schema:
    """The document, ready for JSON. may_change: whether callers may load and unload."""
    paths: Schema = {
        "/": _get("live", "The server runs.", _STATUS),
        "/ping": _get("ping", "Whether all models take requests; 500 if not.", _STATUS),
        "/metrics": {"get": _operation("metrics", "The metrics for Prometheus.", _TEXT)},
        "/openapi.json": _get("openapi", "This document.", {"type": "object"}),
        "/v1/models": _get("listModelsV1", "The models' names.", _MODELS),
        "/v1/models/{model}": _get(
            "readyV1", "Whether the model takes requests; 503 if not.", _READY, [_variable("model")]
        ),
        "/v2": _get("serverMetadata", "The server, and the extensions that it has.", _SERVER),
        "/v2/health/live": _get("serverLive", "The server runs.", {"type": "object"}),
        "/v2/health/ready": _get("serverReady", "Whether the server takes requests; 503 if not.", _READY),
        "/v2/models": _get("listModels", "The models' names.", _MODELS),
        "/v2/repository/index": _asking(
            "repositoryIndex", "The models that there are, served or not.", {"ready": {"type": "boolean"}}, _INDEX
        ),
    }
    if may_change:
        paths |= _change_paths()
    events = _EVENTS if takes_events else {}
    for name in data_plane.names():
        part, versions = quote(name, safe=""), data_plane.versions(name)
        pinned = [_header(_PINNED, "The version that is asked.", {"enum": [model.version for model in versions]})]
        paths |= _model_paths(versions[0], name, part, events, pinned)
        for model in versions:
            paths |= _model_paths(model, f"{name}.{model.version}", f"{part}/versions/{model.version}", events)
            if model.takes_calls:
                older = {"predict": f"/{part}/{model.version}/predict"}
                paths |= _call_paths(f"{name}.{model.version}", f"{part}/{model.version}", older)
        if versions[0].takes_calls:
            older = {"invoke": f"/models/{part}/invoke", "predict": f"/{part}/predict"}
            paths |= _call_paths(name, part, older)
            paths |= _handler_paths("any", {"invocations": "/invocations"}, _BY_PARAMETER, ["post"])
        if takes_events and len(data_plane.names()) == 1:
            paths["/"] |= _event_path(pinned)
    return {
        "openapi": "3.1.0",
        "info": {"title": "torpor", "version": data_plane.version},
        "paths": paths,
        "components": {
            "schemas": {
                "CloudEvent": _EVENT,
                "Error": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]},
                "Parameters": _PARAMETERS,
                "TensorMetadata": _TENSOR_METADATA,
            }
        },
    }


def _change_paths() -> Schema:
    """The routes of the repository API that change what is served."""
    return {
        f"/v2/repository/models/{{model}}/{word}": _asking(
            f"{word}Model",
            summary,
            {"parameters": {"type": "object", **parameters}},
            {"type": "object", "properties": {"name": {"type": "string"}, word: {"const": True}}},
            [_variable("model")],
        )
        for word, summary, parameters in (
            ("load", "Load a model, or load it anew.", {"maxProperties": 0}),
            ("unload", "Serve a model no more.", {}),
        )
    }


def _event_path(parameters: Sequence[Schema]) -> Schema:
    """`POST /`, for the only model."""
    attributes = ("ce-specversion", "ce-id", "ce-source", "ce-type")
    text = {"type": "string"}
    headers = [_header(name, "Of an event in binary mode, whose data is the body.", text) for name in attributes]
    content = {**_EVENTS, **_ANYTHING}
    operation = _operation("event", "An event; the answer is one.", content, [*headers, *parameters], content)
    operation["responses"]["202"] = {"description": "There is no answer, or it has gone to the sink."}
    return {"post": operation}


def _call_paths(name: str, part: str, older: Mapping[str, str]) -> Schema:
    """TorchServe's routes of one version. older: those that it has from before, by their word."""
    both = ["get", "post"]
    return {
        **_handler_paths(name, {"predictions": f"/predictions/{part}"}, "What the archive's handler answers.", both),
        **_handler_paths(name, {"explanations": f"/explanations/{part}"}, "What it explains.", both),
        **_handler_paths(name, older, "As predictions; parameters of the query are fields.", ["post"]),
    }


def _handler_paths(name: str, paths: Mapping[str, str], summary: str, methods: Sequence[str]) -> Schema:
    return {
        path: {
            method: _operation(
                f"{name}.{word}.{method}", summary, _ANYTHING, (), _ANYTHING if method == "post" else None
            )
            for method in methods
        }
        for word, path in paths.items()
    }


def _model_paths(model: Served, name: str, part: str, events: Schema, parameters: Sequence[Schema] = ()) -> Schema:
    """The routes of one version. name: begins their operations' names; part: of the path, the model's. parameters: of
    inferences. events: the contents by which these take and give events."""
    signature = model.signature
    inputs, outputs = [*signature.inputs.values()], [*signature.outputs.values()]
    # Where not everything is declared, anything may come.
    names = signature.names or tuple(signature.inputs)
    are_complete = all(n in signature.inputs for n in names)
    rows = _object({"instances": _rows(inputs if are_complete else [], names, signature.optional)}, ["instances"])
    predictions = _object({"predictions": _rows(outputs, tuple(signature.outputs), frozenset())}, ["predictions"])
    request = _object(
        {
            "id": {"type": "string"},
            "parameters": {"$ref": "#/components/schemas/Parameters"},
            "inputs": {"type": "array", "minItems": 1, "items": _tensor(inputs if are_complete else [])},
            "outputs": {"type": "array", "items": _requested_output(signature.outputs)},
        },
        ["inputs"],
    )
    response = _object(
        {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": _tensor(outputs)},
        },
        ["model_name", "outputs"],
    )
    predict = _operation(
        f"{name}.predict", "Inference by v1.", _json(predictions, events), parameters, _json(rows, events)
    )
    said = {"description": "The version that has answered.", "schema": {"type": "string"}}
    predict["responses"]["200"]["headers"] = {_PINNED: said}
    others = {**_BINARY, **events}
    infer = _operation(f"{name}.infer", "Inference by v2.", _json(response, others), parameters, _json(request, others))
    paths: Schema = {
        f"/v1/models/{part}:predict": {"post": predict},
        f"/v2/models/{part}": _get(f"{name}.metadata", "What the model takes and gives.", _METADATA),
        f"/v2/models/{part}/ready": _get(f"{name}.ready", "Whether the model takes requests; 503 if not.", _READY),
        f"/v2/models/{part}/infer": {"post": infer},
    }
    if model.takes_calls:
        for protocol, path in (("v1", f"/v1/models/{part}:explain"), ("v2", f"/v2/models/{part}/explain")):
            explain = _operation(f"{name}.explain.{protocol}", "What the handler explains.", _ANYTHING, (), _ANYTHING)
            paths[path] = {"post": explain}
    return paths


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
    schema = {} if spec.is_json else _element(spec.datatype)
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


def _get(name: str, summary: str, answer: Schema, parameters: Sequence[Schema] = ()) -> Schema:
    """The path of what is only read. answer: its schema."""
    return {"get": _operation(name, summary, _json(answer), parameters)}


def _asking(name: str, summary: str, properties: Schema, answer: Schema, parameters: Sequence[Schema] = ()) -> Schema:
    """The path of what is asked by an object that may be left out."""
    post = _operation(name, summary, _json(answer), parameters, _json(_object(properties, [])))
    post["requestBody"]["required"] = False
    return {"post": post}


def _operation(
    name: str, summary: str, answer: Schema, parameters: Sequence[Schema] = (), request: Schema | None = None
) -> Schema:
    """answer, request: what their bodies may be, by content type."""
    error = _json({"$ref": "#/components/schemas/Error"})
    operation: Schema = {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {"description": "The answer.", "content": answer},
            "default": {"description": "What is wrong.", "content": error},
        },
    }
    if parameters:
        operation["parameters"] = [*parameters]
    if request is not None:
        operation["requestBody"] = {"required": True, "content": request}
    return operation


def _json(schema: Schema, others: Schema | None = None) -> Schema:
    """A body of JSON, or one of the others."""
    return {"application/json": {"schema": schema}, **(others or {})}


def _variable(name: str) -> Schema:
    """A part of the path."""
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _header(name: str, description: str, schema: Schema) -> Schema:
    """A header that may be left out."""
    return {"name": name, "in": "header", "description": description, "schema": schema}
