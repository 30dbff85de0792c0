"""The handler of a TorchServe archive, whole, as a model's class: rows of JSON to its `handle`, what that returns back.

`archive.json` has what its context tells it. It runs on the model's thread, in the server's process: its working folder is
this one while it loads, and no longer. A row `{"body": {"b64": …}}` is a body of bytes.
"""

import importlib
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torpor.predictors.errors import InvalidInput, ModelFailed
from torpor.predictors.protocol.datatypes import NAMES, Array, object_array
from torpor.predictors.signature import Request
from torpor.predictors.torchserve.worker.context import Context, RequestHeaders, RequestProcessor
from torpor.predictors.torchserve.worker.handler import load
from torpor.predictors.torchserve.worker.metrics import Noted


class Handler:
    """Parameters: network, weights: `module:Class` and the safetensors file that replace the handler's pickled weights."""

    inputs = {"row": "json[rows]"}
    outputs = {"prediction": "json[rows]"}

    def load(self, folder: Path, device: torch.device, parameters: Mapping[str, Any]) -> None:
        said = json.loads((folder / "archive.json").read_text())
        system = {
            **said["system"],
            "model_dir": str(folder),
            "gpu_id": device.index or 0 if device.type == "cuda" else None,
        }
        self.context = Context(said["name"], said["manifest"], system, said["yaml"], Noted())
        with chdir(folder):
            if "weights" in parameters:
                _read_safetensors(parameters["network"], folder / parameters["weights"])
            self.handle = load(said["handler"], folder, self.context)

    def predict(self, row: Array, requests: Sequence[Request]) -> list[str]:
        results = self.results([_row(text) for text in row], requests)
        if len(results) != len(row):
            raise ModelFailed(f"the handler returned {len(results)} items, must be {len(row)}, one a row")
        return [json.dumps(_value(result)) for result in results]

    def results(self, data: list[Any], requests: Sequence[Request]) -> list[Any]:
        """What the handler returns for these rows. requests: of each. Raises InvalidInput, ModelFailed."""
        processors = [RequestProcessor(RequestHeaders({**request.headers, "explain": "False"})) for request in requests]
        ids = [request.id or request.headers.get("x-request-id", "") for request in requests]
        self.context.begin(ids, processors)
        try:
            results = self.handle(data, self.context)
        except Exception as error:
            if type(error).__name__ != "PredictionException":
                raise
            raise _refusal(getattr(error, "error_code", 500), getattr(error, "message", error)) from error
        if not isinstance(results, list):
            raise ModelFailed(f"the handler returned a {type(results).__name__}, must be a list")
        for result, processor in zip(results, processors, strict=False):
            status = processor.get_response_status_code()
            if status >= 400:
                raise _refusal(status, _value(result))
        return results


class Alone(Handler):
    """The same for a handler that was never given several requests at a time."""

    def predict(self, row: Array, request: Request) -> list[str]:  # type: ignore[override]
        return super().predict(row, [request] * len(row))


class Inputs(Handler):
    """For one that was called by v2: it gets a request's inputs as objects, and each item that it returns is an output."""

    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}

    def predict(self, request: Request, **inputs: Any) -> dict[str, Array]:  # type: ignore[override]
        data = [_input(name, _array(value)) for name, value in inputs.items()]
        results = self.results(data, [request] * len(data))
        if len(results) > len(data):
            raise ModelFailed(f"the handler returned {len(results)} items for {len(data)} inputs")
        rows = data[0]["shape"][0]
        return {name: _output(name, result, rows) for name, result in zip(inputs, results, strict=False)}


def _read_safetensors(network: str, weights: Path) -> None:
    """Have TorchServe's base handler make its eager model of these."""
    from safetensors.torch import load_file
    from ts.torch_handler.base_handler import BaseHandler

    def read(handler: Any, *paths: object) -> torch.nn.Module:
        module, _, name = network.partition(":")
        model: torch.nn.Module = getattr(importlib.import_module(module), name)()
        model.load_state_dict(load_file(weights, device=str(handler.device)))
        return model

    BaseHandler._load_pickled_model = read


def _refusal(status: int, text: object) -> InvalidInput | ModelFailed:
    return InvalidInput(f"{text}") if status < 500 else ModelFailed(f"{text}")


def _row(text: bytes) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:  # v1's are JSON, v2's may be anything
        raise InvalidInput(f"input 'row' is not JSON: {error}") from None
    body = value.get("body") if isinstance(value, dict) else None
    if isinstance(body, dict) and list(body) == ["b64"]:
        try:
            return {**value, "body": bytearray(b64decode(body["b64"]))}
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"body.b64 is not base64: {error}") from None
    return value


def _value(result: Any) -> Any:
    """Bytes as text, or as `{"b64": …}`; what JSON has as it is."""
    if not isinstance(result, bytes | bytearray):
        return result
    try:
        return result.decode()
    except UnicodeDecodeError:
        return {"b64": b64encode(result).decode()}


def _array(value: Any) -> Array:
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else value


def _input(name: str, array: Array) -> dict[str, Any]:
    """As TorchServe gives it to a handler: of BYTES the first element, a text if it is one, else in base64."""
    data: Any = array.tolist()
    if array.dtype == object:
        data = _value(array.ravel()[0])
        data = data["b64"] if isinstance(data, dict) else data
    return {"name": name, "shape": list(array.shape), "datatype": NAMES[array.dtype], "data": data}


def _output(name: str, result: Any, rows: int) -> Array:
    """[rows, …]: the result's elements, whatever its shape; objects as texts of JSON."""
    array: Array = np.array(result)
    if array.dtype.kind in "OU":
        texts = [item if isinstance(item, str) else json.dumps(item) for item in array.ravel().tolist()]
        array = object_array(texts, [len(texts)])
    if array.size % rows:
        raise ModelFailed(f"output '{name}' has {array.size} elements, must be as many for each of {rows} rows")
    return array.reshape(rows, -1) if array.size != rows else array.reshape(rows)
