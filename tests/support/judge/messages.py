"""The messages of TorchServe's own gRPC services, declared without a compiler: torpor's could only agree with themselves."""

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

INFERENCE = "org.pytorch.serve.grpc.inference"
MANAGEMENT = "org.pytorch.serve.grpc.management"
OPEN = "org.pytorch.serve.grpc.openinference"

_TEXT, _NUMBER, _FLAG, _BYTES = "string", "int32", "bool", "bytes"
_FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    f"{INFERENCE}.Empty": {},
    f"{INFERENCE}.PredictionsRequest": {
        "model_name": (1, _TEXT),
        "model_version": (2, _TEXT),
        "input": (3, "map"),
        "sequence_id": (4, _TEXT),
    },
    f"{INFERENCE}.PredictionResponse": {"prediction": (1, _BYTES)},
    f"{INFERENCE}.TorchServeHealthResponse": {"health": (1, _TEXT)},
    f"{MANAGEMENT}.ManagementResponse": {"msg": (1, _TEXT)},
    f"{MANAGEMENT}.DescribeModelRequest": {
        "model_name": (1, _TEXT),
        "model_version": (2, _TEXT),
        "customized": (3, _FLAG),
    },
    f"{MANAGEMENT}.ListModelsRequest": {"limit": (1, _NUMBER), "next_page_token": (2, _NUMBER)},
    f"{MANAGEMENT}.RegisterModelRequest": {
        "batch_size": (1, _NUMBER),
        "handler": (2, _TEXT),
        "initial_workers": (3, _NUMBER),
        "max_batch_delay": (4, _NUMBER),
        "model_name": (5, _TEXT),
        "response_timeout": (6, _NUMBER),
        "synchronous": (8, _FLAG),
        "url": (9, _TEXT),
        "startup_timeout": (11, _NUMBER),
    },
    f"{MANAGEMENT}.ScaleWorkerRequest": {
        "model_name": (1, _TEXT),
        "model_version": (2, _TEXT),
        "max_worker": (3, _NUMBER),
        "min_worker": (4, _NUMBER),
        "synchronous": (6, _FLAG),
    },
    f"{MANAGEMENT}.SetDefaultRequest": {"model_name": (1, _TEXT), "model_version": (2, _TEXT)},
    f"{MANAGEMENT}.UnregisterModelRequest": {"model_name": (1, _TEXT), "model_version": (2, _TEXT)},
}
METHODS = {
    f"{INFERENCE}.InferenceAPIsService/Ping": ("Empty", "TorchServeHealthResponse"),
    f"{INFERENCE}.InferenceAPIsService/Predictions": ("PredictionsRequest", "PredictionResponse"),
    f"{INFERENCE}.InferenceAPIsService/StreamPredictions": ("PredictionsRequest", "PredictionResponse"),
    f"{INFERENCE}.InferenceAPIsService/StreamPredictions2": ("PredictionsRequest", "PredictionResponse"),
} | {
    f"{MANAGEMENT}.ManagementAPIsService/{name}": (f"{name}Request", "ManagementResponse")
    for name in ("DescribeModel", "ListModels", "RegisterModel", "ScaleWorker", "SetDefault", "UnregisterModel")
}
"""Message types of request and answer, in the method's own package."""


@cache
def of(method: str) -> tuple[Any, Any]:
    """The classes of a method's request and answer."""
    package = method.rpartition("/")[0].rpartition(".")[0]
    request, answer = (_pool().FindMessageTypeByName(f"{package}.{name}") for name in METHODS[method])
    return message_factory.GetMessageClass(request), message_factory.GetMessageClass(answer)


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    kinds = descriptor_pb2.FieldDescriptorProto
    types = {_TEXT: kinds.TYPE_STRING, _NUMBER: kinds.TYPE_INT32, _FLAG: kinds.TYPE_BOOL, _BYTES: kinds.TYPE_BYTES}
    pool = descriptor_pool.DescriptorPool()
    for package in (INFERENCE, MANAGEMENT):
        file = descriptor_pb2.FileDescriptorProto(name=f"judge/{package}.proto", package=package, syntax="proto3")
        for full_name, fields in _FIELDS.items():
            scope, _, name = full_name.rpartition(".")
            if scope != package:
                continue
            declared = file.message_type.add(name=name)
            for field, (number, kind) in fields.items():
                if kind != "map":
                    declared.field.add(name=field, number=number, type=types[kind], label=kinds.LABEL_OPTIONAL)
                    continue
                entry = declared.nested_type.add(name="InputEntry")
                entry.options.map_entry = True
                entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
                entry.field.add(name="value", number=2, type=kinds.TYPE_BYTES, label=kinds.LABEL_OPTIONAL)
                declared.field.add(
                    name=field, number=number, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_REPEATED,
                    type_name=f".{full_name}.InputEntry",
                )  # fmt: skip
        pool.Add(file)
    return pool
