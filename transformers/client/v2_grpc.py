"""Requests over gRPC by the package grpcio (the extra `grpc`), in the messages of `predictors.protocol.v2_grpc`.

grpcio keeps the connection, and has a task of its own for each call.
"""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from torpor.predictors.errors import InvalidInput, ModelFailed, TorporError, Unavailable
from torpor.predictors.protocol.inference import InferRequest, InferResponse
from torpor.predictors.protocol.messages import message
from torpor.predictors.protocol.v2_grpc import (
    RAW_INPUT_CONTENTS,
    ModelInferRequest,
    ModelInferResponse,
    read_contents,
    read_tensors,
    with_raw,
)
from torpor.predictors.serving.tasks import Tasks

from .address import Address
from .answers import error_of_grpc, malformed
from .v2_rest import datatype_of

Answer = Callable[[InferResponse | TorporError], None]

_SERVICE = "/inference.GRPCInferenceService/"


def encode(model_name: str, request: InferRequest) -> bytes:
    """An `inference.ModelInferRequest` with raw data. Raises InvalidInput."""
    terms = request.terms
    said = ModelInferRequest(model_name=model_name, id=terms.id)
    _set_parameters(said.parameters, terms.parameters)
    for name, array in request.inputs.items():
        tensor = said.inputs.add(name=name, datatype=datatype_of(name, array), shape=array.shape)
        _set_parameters(tensor.parameters, terms.tensor_parameters.get(name, {}))
    for name in terms.outputs:
        said.outputs.add(name=name)
    try:
        return with_raw(said.SerializeToString(), RAW_INPUT_CONTENTS, request.inputs)
    except ModelFailed as error:
        raise InvalidInput(str(error)) from None


def decode(data: bytes) -> InferResponse:
    """An `inference.ModelInferResponse`. Raises PredictorFailed."""
    try:
        said = ModelInferResponse.FromString(data)
        tensors, _ = read_tensors(said.outputs, said.raw_output_contents)
        outputs = read_contents(tensors, said.outputs, said.raw_output_contents)
    except DecodeError:
        raise malformed("is no inference.ModelInferResponse") from None
    except InvalidInput as error:
        raise malformed(str(error)) from None
    return InferResponse(said.model_name, said.model_version, outputs, said.id)


class Grpc:
    """A model of a predictor that is asked over gRPC. ca_file: certificates to trust, in PEM; the system's with ""."""

    protocol = "grpc-v2"

    def __init__(self, address: Address, model_name: str, max_answer_bytes: int, ca_file: str) -> None:
        options = [
            ("grpc.max_receive_message_length", max_answer_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_retries", 0),  # what may be sent again is decided in one place
        ]
        target = f"unix:{address.path}" if address.path else f"{address.host}:{address.port}"
        if ":" in address.host:
            target = f"[{address.host}]:{address.port}"
        if address.is_tls:
            roots = Path(ca_file).read_bytes() if ca_file else None
            credentials = grpc.ssl_channel_credentials(roots)
            self._channel = grpc.aio.secure_channel(target, credentials, options)
        else:
            self._channel = grpc.aio.insecure_channel(target, options)
        self._model_name = model_name
        self._infer = self._channel.unary_unary(_SERVICE + "ModelInfer")
        self._tasks = Tasks()
        self._answers: dict[asyncio.Task[None], Answer] = {}
        """Whom the calls that are under way are for."""

    def start(
        self, request: InferRequest, kept: Mapping[str, str], timeout_s: float | None, answer: Answer
    ) -> "asyncio.Task[None]":
        """kept: the metadata that go on. Raises InvalidInput, and then does not call `answer`."""
        metadata = _metadata(kept)
        data = encode(self._model_name, request)

        async def ask() -> None:
            result: InferResponse | TorporError
            try:
                result = decode(await self._infer(data, timeout=timeout_s, metadata=metadata))
            except grpc.aio.AioRpcError as error:
                result = _error(error)
            except TorporError as error:
                result = error
            answer(result)

        task = self._tasks.start(ask(), "gRPC inference")
        self._answers[task] = answer
        task.add_done_callback(self._answers.pop)
        return task

    async def metadata(self, kept: Mapping[str, str]) -> dict[str, Any]:
        """What the predictor says of the model. Raises a TorporError."""
        said = await self._ask("ModelMetadata", kept)
        metadata: dict[str, Any] = MessageToDict(said, preserving_proto_field_name=True)
        for tensor in (*metadata.get("inputs", ()), *metadata.get("outputs", ())):
            tensor["shape"] = [int(size) for size in tensor.get("shape", ())]  # 64 bits are strings in protobuf's JSON
        return metadata

    async def is_ready(self, kept: Mapping[str, str]) -> bool:
        """Raises NotFound for a model that the predictor does not have."""
        return bool((await self._ask("ModelReady", kept)).ready)

    async def close(self) -> None:
        underway = [*self._answers.values()]
        await self._tasks.cancel()
        await self._channel.close()
        for answer in underway:
            answer(Unavailable("the client has been closed", None))

    async def _ask(self, method: str, kept: Mapping[str, str]) -> Any:
        request, response = message(f"inference.{method}Request"), message(f"inference.{method}Response")
        call = self._channel.unary_unary(_SERVICE + method, request.SerializeToString, response.FromString)
        try:
            return await call(request(name=self._model_name), metadata=_metadata(kept))
        except grpc.aio.AioRpcError as error:
            raise _error(error) from None


def _metadata(kept: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    for name, value in kept.items():
        if not value.isascii():
            raise InvalidInput(f"header {name[:40]!r} = {value[:40]!r}, must be ASCII to go over gRPC")
    return tuple(kept.items())


def _error(error: grpc.aio.AioRpcError) -> TorporError:
    text = error.details() or ""
    if error.code() is grpc.StatusCode.UNAVAILABLE and "failed to connect" in text:  # grpcio has no other sign of it
        return Unavailable(f"the predictor cannot be reached: {text}", 0.0)
    pushback = dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms")
    return error_of_grpc(error.code().value[0], text, pushback if isinstance(pushback, str) else None)


def _set_parameters(field: Any, parameters: Mapping[str, bool | int | float | str]) -> None:
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        if kind == "int64_param" and int(value) >= 1 << 63:
            kind = "uint64_param"
        setattr(field[name], kind, value)
