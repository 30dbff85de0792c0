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

import torch
from torpor.predictors.errors import InvalidInput, ModelFailed
from torpor.predictors.protocol.datatypes import Array
from torpor.predictors.signature import Request
from torpor.predictors.torchserve.worker.context import Context, RequestHeaders, RequestProcessor
from torpor.predictors.torchserve.worker.handler import load


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
        self.context = Context(said["name"], said["manifest"], system, said["yaml"])
        with chdir(folder):
            if "weights" in parameters:
                _read_safetensors(parameters["network"], folder / parameters["weights"])
            self.handle = load(said["handler"], folder, self.context)

    def predict(self, row: Array, requests: Sequence[Request]) -> list[str]:
        data = [_row(json.loads(text)) for text in row]
        processors = [RequestProcessor(RequestHeaders({**request.headers, "explain": "False"})) for request in requests]
        ids = [request.id or request.headers.get("x-request-id", "") for request in requests]
        self.context.begin(ids, processors)
        try:
            results = self.handle(data, self.context)
        except Exception as error:
            if type(error).__name__ != "PredictionException":
                raise
            raise _refusal(getattr(error, "error_code", 500), getattr(error, "message", error)) from error
        if not isinstance(results, list) or len(results) != len(data):
            raise ModelFailed(f"the handler returned {_shape(results)}, must be a list of {len(data)} items")
        for result, processor in zip(results, processors, strict=True):
            status = processor.get_response_status_code()
            if status >= 400:
                raise _refusal(status, _value(result))
        return [json.dumps(_value(result)) for result in results]


class Alone(Handler):
    """The same for a handler that was never given several requests at a time."""

    def predict(self, row: Array, request: Request) -> list[str]:  # type: ignore[override]
        return super().predict(row, [request] * len(row))


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


def _row(value: Any) -> Any:
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


def _shape(results: Any) -> str:
    return f"{len(results)} items" if isinstance(results, list) else f"a {type(results).__name__}"
