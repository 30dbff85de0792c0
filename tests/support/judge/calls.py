"""Calls and cases in short."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from judge.messages import INFERENCE, MANAGEMENT
from judge.scenes import Call, Case, GrpcCall

JSON = {"content-type": "application/json"}
TEXT = {"content-type": "text/plain"}
BYTES = {"content-type": "application/octet-stream"}


def case(name: str, *calls: Call | GrpcCall, status: Any = 200, **more: Any) -> Case:
    """A case whose calls all have that status, or one each."""
    statuses = status if isinstance(status, list) else [status] * len(calls)
    return Case(name, calls, statuses, **more)


def dumps(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode()


def post(model: str, body: bytes | str = b"", headers: Mapping[str, str] = BYTES, path: str = "/predictions/") -> Call:
    return Call("POST", path + model, body.encode() if isinstance(body, str) else body, headers)


def manage(method: str, path: str) -> Call:
    return Call(method, path, is_management=True)


def v1(model: str, instances: Any, verb: str = "predict") -> Call:
    return Call("POST", f"/v1/models/{model}:{verb}", json.dumps({"instances": instances}).encode(), JSON)


def v2(model: str, *inputs: Mapping[str, Any], verb: str = "infer", **fields: Any) -> Call:
    body = json.dumps({"inputs": inputs} | fields).encode()
    return Call("POST", f"/v2/models/{model}/{verb}", body, JSON)


def tensor(name: str, datatype: str, shape: Sequence[int], data: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": data}


def form(model: str, **fields: str) -> Call:
    body = "&".join(f"{name}={value}" for name, value in fields.items())
    return post(model, body, {"content-type": "application/x-www-form-urlencoded"})


def multipart(model: str, *parts: tuple[str, str, str, bytes]) -> Call:
    """parts: field, file name (none: a plain field), content type, value."""
    body = b""
    for name, file, kind, value in parts:
        named = f'; filename="{file}"' if file else ""
        body += f'--limit\r\nContent-Disposition: form-data; name="{name}"{named}\r\n'.encode()
        body += (f"Content-Type: {kind}\r\n" if kind else "").encode() + b"\r\n" + value + b"\r\n"
    return post(model, body + b"--limit--\r\n", {"content-type": "multipart/form-data; boundary=limit"})


def predictions(model: str, streams: bool = False, version: str = "", **fields: bytes) -> GrpcCall:
    message = {"model_name": model, "model_version": version, "input": fields}
    return GrpcCall(f"{INFERENCE}.InferenceAPIsService/{'Stream' if streams else ''}Predictions", message, streams)


def sequence(model: str, **fields: bytes) -> GrpcCall:
    message = {"model_name": model, "input": fields, "sequence_id": "one"}
    return GrpcCall(f"{INFERENCE}.InferenceAPIsService/StreamPredictions2", message, True, sends_stream=True)


def asked(method: str, **message: Any) -> GrpcCall:
    return GrpcCall(f"{MANAGEMENT}.ManagementAPIsService/{method}", message, is_management=True)


def registered(file: str, workers: int = 1, **query: Any) -> Call:
    """A registration, which is over when its workers are ready."""
    given = {"url": file, "initial_workers": workers, "synchronous": "true"} | query
    return manage("POST", "/models?" + "&".join(f"{key}={value}" for key, value in given.items()))


def opened(method: str, **message: Any) -> GrpcCall:
    """The server puts its own package in front: TorchServe's is not KServe's."""
    return GrpcCall(f"GRPCInferenceService/{method}", message)


def infer(name: str, datatype: str, shape: list[int], model: str = "v2_echo", **contents: Any) -> GrpcCall:
    tensor = {"name": name, "datatype": datatype, "shape": shape, "contents": contents}
    return opened("ModelInfer", model_name=model, model_version="1.0", id="one", inputs=[tensor])
