"""How a row becomes a request on the wire, and an answer becomes a row again.

One class for each form: KServe's v2 with binary tensors, v2 JSON, v1 JSON, the bare tensor, and ModelInfer. A form is
pure: no sockets. `encode` gives an `Exchange`, `decode` an array [1, features].

Torpor's own codecs are not used on purpose: a mistake in them would agree with itself.
"""

import itertools
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np

from bodies import Row, plain, to_json, to_raw

OUTPUTS = {"mlp": "output", "minilm": "embedding"}
DATATYPES = {"float32": "FP32", "int64": "INT64", "object": "BYTES"}


@dataclass(frozen=True)
class Exchange:
    """One HTTP request, ready to be sent."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_grpc(self) -> bool:
        return self.headers.get("content-type") == "application/grpc"

    @property
    def message(self) -> bytes:
        """The body without gRPC's frame."""
        return self.body[5:] if self.is_grpc else self.body

    def http1(self, host: str = "127.0.0.1") -> bytes:
        """The whole message, as wrk sends it. Keep-alive is HTTP/1.1's default."""
        lines = [f"POST {self.path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


class Wire(Protocol):
    @property
    def form(self) -> str:
        """What the table calls it."""
        ...

    def encode(self, row: Row) -> Exchange: ...

    def decode(self, headers: Mapping[str, str], body: bytes) -> np.ndarray: ...


@dataclass(frozen=True)
class V2Binary:
    """The binary tensor extension both ways."""

    model: str
    form: str = "v2 binary"

    def encode(self, row: Row) -> Exchange:
        inputs = [
            {"name": name, "shape": list(values.shape), "datatype": DATATYPES[values.dtype.name],
             "parameters": {"binary_data_size": values.nbytes}}
            for name, values in row.items()
        ]  # fmt: skip
        outputs = [{"name": OUTPUTS[self.model], "parameters": {"binary_data": True}}]
        head = json.dumps({"inputs": inputs, "outputs": outputs}, separators=(",", ":")).encode()
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        return Exchange(f"/v2/models/{self.model}/infer", headers, head + to_raw(row))

    def decode(self, headers: Mapping[str, str], body: bytes) -> np.ndarray:
        head = int(headers["inference-header-content-length"])
        (output,) = json.loads(body[:head])["outputs"]
        return np.frombuffer(body[head:], dtype=np.float32).reshape(output["shape"])


@dataclass(frozen=True)
class Large:
    """A tensor of so many bytes in v2's binary form, which comes back as it is."""

    size: int
    form: str = "v2 binary"

    def encode(self, row: Row) -> Exchange:
        tensor = {
            "name": "x",
            "datatype": "UINT8",
            "shape": [1, self.size],
            "parameters": {"binary_data_size": self.size},
        }
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        return Exchange("/v2/models/echo/infer", headers, head + to_raw(row))

    def decode(self, headers: Mapping[str, str], body: bytes) -> np.ndarray:
        return np.frombuffer(body[int(headers["inference-header-content-length"]) :], np.uint8).reshape(1, -1)


@dataclass(frozen=True)
class V2Json:
    model: str
    form: str = "v2 JSON"

    def encode(self, row: Row) -> Exchange:
        inputs = [
            {"name": name, "shape": list(values.shape), "datatype": DATATYPES[values.dtype.name],
             "data": plain(values.ravel())}
            for name, values in row.items()
        ]  # fmt: skip
        body = json.dumps({"inputs": inputs}, separators=(",", ":")).encode()
        return Exchange(f"/v2/models/{self.model}/infer", {"Content-Type": "application/json"}, body)

    def decode(self, headers: Mapping[str, str], body: bytes) -> np.ndarray:
        (output,) = json.loads(body)["outputs"]
        return np.array(output["data"], dtype=np.float32).reshape(output["shape"])


@dataclass(frozen=True)
class V1Json:
    """`instances` and `predictions`, for peers without KServe's routes at their own path."""

    path: str
    bare: bool = False
    """The answer is the list itself."""

    form: str = "v1 JSON"

    def encode(self, row: Row) -> Exchange:
        body = json.dumps(to_json(row), separators=(",", ":")).encode()
        return Exchange(self.path, {"Content-Type": "application/json"}, body)

    def decode(self, headers: Mapping[str, str], body: bytes) -> np.ndarray:
        answer = json.loads(body)
        return np.array(answer if self.bare else answer["predictions"], dtype=np.float32)


@dataclass(frozen=True)
class Raw:
    """The tensor's bytes as the body."""

    path: str
    form: str = "raw tensor"

    def encode(self, row: Row) -> Exchange:
        return Exchange(self.path, {"Content-Type": "application/octet-stream"}, to_raw(row))

    def decode(self, headers: Mapping[str, str], body: bytes) -> np.ndarray:
        return np.frombuffer(body, dtype=np.float32).reshape(1, -1)


@dataclass(frozen=True)
class Text:
    """A text as the body, the vector's bytes as the answer."""

    path: str
    form: str = "text"

    def encode(self, row: Row) -> Exchange:
        return Exchange(self.path, {"Content-Type": "text/plain"}, str(row["text"][0]).encode())

    def decode(self, headers: Mapping[str, str], body: bytes) -> np.ndarray:
        return np.frombuffer(body, dtype=np.float32).reshape(1, -1)


@dataclass(frozen=True)
class Echo:
    """The body of another form, which comes back as it is."""

    original: Wire
    form: str = "echo"

    def encode(self, row: Row) -> Exchange:
        return self.original.encode(row)

    def decode(self, headers: Mapping[str, str], body: bytes) -> np.ndarray:
        return np.frombuffer(body, dtype=np.uint8)


_EVENTS = itertools.count(1)


@dataclass(frozen=True)
class InEvent:
    """A request of another form as the data of a CloudEvent in binary mode; its answer is an event as well.

    Each event has an id of its own; `rotate.lua` numbers those of the load anew.
    """

    original: Wire
    path: str = "/"
    form: str = "event"

    def encode(self, row: Row) -> Exchange:
        bare = self.original.encode(row)
        attributes = {
            "ce-specversion": "1.0", "ce-id": str(next(_EVENTS)), "ce-source": "/benchmark", "ce-type": "ask",
            "ce-time": "2026-01-31T12:00:00Z",
        }  # fmt: skip
        headers = {_IN_EVENTS.get(name.lower(), name): value for name, value in bare.headers.items()}
        return Exchange(self.path, attributes | headers, bare.body)

    def decode(self, headers: Mapping[str, str], body: bytes) -> np.ndarray:
        if headers["ce-type"] != "io.kserve.inference.response":
            raise ValueError(f"an event of type {headers['ce-type']}")
        bare = {name: headers[attribute] for name, attribute in _IN_EVENTS.items() if attribute in headers}
        return self.original.decode(bare, body)


_IN_EVENTS = {"inference-header-content-length": "ce-inferenceheadercontentlength"}
"""Headers that go on only as attributes: a broker keeps no others."""


@dataclass(frozen=True)
class ModelInfer:
    """`inference.GRPCInferenceService/ModelInfer` with raw contents; the body carries gRPC's five-byte frame."""

    model: str
    form: str = "gRPC"
    path: str = "/inference.GRPCInferenceService/ModelInfer"

    def encode(self, row: Row) -> Exchange:
        inputs = [
            {"name": name, "datatype": DATATYPES[values.dtype.name], "shape": values.shape}
            for name, values in row.items()
        ]
        raw = [np.ascontiguousarray(values).tobytes() for values in row.values()]
        message = _messages()["ModelInferRequest"](model_name=self.model, inputs=inputs, raw_input_contents=raw)
        frame = message.SerializeToString()
        headers = {"content-type": "application/grpc", "te": "trailers"}
        return Exchange(self.path, headers, struct.pack(">BI", 0, len(frame)) + frame)

    def decode(self, headers: Mapping[str, str], body: bytes) -> np.ndarray:
        """`body` without the frame, as grpcio hands it out."""
        answer = _messages()["ModelInferResponse"].FromString(body)
        raw = answer.raw_output_contents[0]
        return np.frombuffer(raw, dtype=np.float32).reshape(tuple(answer.outputs[0].shape))


@cache
def _messages() -> dict[str, Any]:
    """The few fields of the Open Inference Protocol's messages that one row needs, declared without a compiler."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    tensor = [("name", 1, kinds.TYPE_STRING), ("datatype", 2, kinds.TYPE_STRING), ("shape", 3, kinds.TYPE_INT64)]
    fields: dict[str, list[tuple[str, int, Any]]] = {
        "Tensor": tensor,
        "ModelInferRequest": [
            ("model_name", 1, kinds.TYPE_STRING), ("inputs", 5, ".bench.Tensor"),
            ("raw_input_contents", 7, kinds.TYPE_BYTES),
        ],
        "ModelInferResponse": [("outputs", 5, ".bench.Tensor"), ("raw_output_contents", 6, kinds.TYPE_BYTES)],
    }  # fmt: skip
    repeated = {"shape", "inputs", "outputs", "raw_input_contents", "raw_output_contents"}
    file = descriptor_pb2.FileDescriptorProto(name="bench.proto", package="bench", syntax="proto3")
    for message, members in fields.items():
        declared = file.message_type.add(name=message)
        for name, number, kind in members:
            label = kinds.LABEL_REPEATED if name in repeated else kinds.LABEL_OPTIONAL
            if isinstance(kind, str):
                declared.field.add(name=name, number=number, label=label, type=kinds.TYPE_MESSAGE, type_name=kind)
            else:
                declared.field.add(name=name, number=number, label=label, type=kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"bench.{name}")) for name in fields}
