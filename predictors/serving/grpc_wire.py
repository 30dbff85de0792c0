"""gRPC over the server's own HTTP/2: Open Inference, TorchServe's inference, health checking and reflection, without grpcio.

Wire format: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md. A message is a byte (compressed or not), its
length as a big-endian uint32, and the protobuf bytes; the status comes as trailers.
"""

import logging
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

from google.protobuf.message import DecodeError

from ..errors import (
    GrpcCode,
    InvalidInput,
    ModelFailed,
    NotFound,
    NotSupported,
    PayloadTooLarge,
    TorporError,
    Unavailable,
)
from ..protocol import v2_grpc
from ..protocol.inference import Terms
from ..protocol.messages import FILES, SERVICES, SYMBOLS, message
from .batcher import Outputs
from .calls import Answered, Call, CallAnswer, health_text, in_one_piece, pass_on
from .content_coding import ContentCoder, Inflation, Result, is_worth_compressing
from .data_plane import EXTENSIONS, DataPlane, Served
from .exchange import Exchange, Field
from .http2 import Stream
from .repository import Repository
from .rest import VERSION, error_text
from .tasks import Tasks

logger = logging.getLogger("torpor.grpc")

_GRPC = (b"content-type", b"application/grpc")
_OK = ((b"grpc-status", b"0"),)
_PUSHBACK = b"grpc-retry-pushback-ms"
"""When the call may be sent again (https://github.com/grpc/proposal/blob/master/A6-client-retries.md)."""
_PREFIX_BYTES = 5

_MAX_SMALL_BYTES = 64 << 10
"""All but ModelInfer take small messages."""

_INTERNAL = "internal error; the server's log has the details"

_TORCHSERVE = "org.pytorch.serve.grpc.inference"

_INFERENCES = (
    "/inference.GRPCInferenceService/ModelInfer",
    f"/{_TORCHSERVE}.InferenceAPIsService/Predictions",
    f"/{_TORCHSERVE}.InferenceAPIsService/StreamPredictions",
)

Trailers = tuple[Field, ...]

Handler = Callable[[Exchange], None]
Run = Callable[[Exchange, bytes, int], None]
"""Runs the inference whose message lies in the bytes, from a place on."""

Start = Callable[[Mapping[str, str] | None], Any]
"""Begins with an inference for a caller of these headers, and gives what `cancel` takes."""

Unary = Callable[[Any], Any]
Streaming = Callable[[AsyncIterator[Any], str], AsyncIterator[Any]]


class Grpc:
    """The gRPC services by path."""

    def __init__(self, data_plane: DataPlane, repository: Repository, coder: ContentCoder) -> None:
        self._data_plane = data_plane
        self._repository = repository
        self._coder = coder
        self._requests = data_plane.metrics.requests
        inference, health = "inference.GRPCInferenceService", "grpc.health.v1.Health"
        model_infer, predictions, stream_predictions = _INFERENCES
        self._unary: dict[str, Handler] = {
            model_infer: partial(self._with_message, self._infer),
            predictions: partial(self._with_message, partial(self._predict, in_one_piece)),
            stream_predictions: partial(self._with_message, partial(self._predict, lambda answer: answer)),
            f"/{_TORCHSERVE}.InferenceAPIsService/Ping": partial(self._answer, f"{_TORCHSERVE}.Empty", self._ping),
            f"/{inference}/ServerLive": partial(self._answer, "inference.ServerLiveRequest", self._server_live),
            f"/{inference}/ServerReady": partial(self._answer, "inference.ServerReadyRequest", self._server_ready),
            f"/{inference}/ModelReady": partial(self._answer, "inference.ModelReadyRequest", self._model_ready),
            f"/{inference}/ServerMetadata": partial(
                self._answer, "inference.ServerMetadataRequest", self._server_metadata
            ),
            f"/{inference}/ModelMetadata": partial(
                self._answer, "inference.ModelMetadataRequest", self._model_metadata
            ),
            f"/{inference}/RepositoryIndex": partial(
                self._answer, "inference.RepositoryIndexRequest", self._repository_index
            ),
            f"/{inference}/RepositoryModelLoad": self._load,
            f"/{inference}/RepositoryModelUnload": self._unload,
            f"/{health}/Check": partial(self._answer, "grpc.health.v1.HealthCheckRequest", self._check),
        }
        self._streaming: dict[str, tuple[str, Streaming]] = {
            f"/{health}/Watch": ("grpc.health.v1.HealthCheckRequest", self._watch)
        }
        for version in ("v1", "v1alpha"):
            package = f"grpc.reflection.{version}"
            path = f"/{package}.ServerReflection/ServerReflectionInfo"
            self._streaming[path] = (f"{package}.ServerReflectionRequest", self._reflect)
        self._tasks = Tasks()

    def route(self, exchange: Exchange) -> Handler | None:
        """Who answers the call; None for a streaming one, which reads for itself. Raises a TorporError."""
        head = exchange.head
        if not _takes_trailers(exchange):
            raise InvalidInput("header te must be trailers")
        handler = self._unary.get(head.path)
        if handler is not None:
            return handler
        streaming = self._streaming.get(head.path)
        if streaming is None:
            if head.path.endswith("/ModelStreamInfer"):
                raise NotSupported("ModelStreamInfer is not supported: this server does not stream, ModelInfer answers")
            if head.path.endswith("/StreamPredictions2"):
                raise NotSupported(
                    "StreamPredictions2 is not supported: no model has sequences, StreamPredictions answers"
                )
            raise NotSupported(f"method {head.path[:200]} is unknown")
        task = self._tasks.start(self._answer_streaming(_stream(exchange), *streaming), head.path)
        exchange.on_leave = task.cancel
        return None

    def fail(self, exchange: Exchange, error: Exception, model: Served | None = None) -> None:
        """End a call with an error's status. model: that the call was for, if that is known."""
        code = error.grpc_code if isinstance(error, TorporError) else GrpcCode.INTERNAL
        if exchange.head.path in _INFERENCES:
            self._requests["grpc", code.name] += 1
        if model is not None:
            self._data_plane.metrics.failed(model.name, model.version, error)
        refuse(exchange, error)

    def _answer(self, request_type: str, method: Unary, exchange: Exchange) -> None:
        """A unary call that is answered at once."""
        respond(exchange, method(read(exchange, request_type)))

    async def _answer_streaming(self, stream: Stream, request_type: str, method: Streaming) -> None:
        stream.start_grpc()
        status: Trailers = _OK
        try:
            async for response in method(_messages(stream, request_type), stream.head.path):
                await stream.send_message(_frame(response.SerializeToString()))
        except TorporError as error:
            status = _status(error.grpc_code, str(error))
        except Exception:
            logger.exception("%s failed", stream.head)
            status = _status(GrpcCode.INTERNAL, _INTERNAL)
        stream.respond_grpc(b"", status)

    def _with_message(self, run: Run, exchange: Exchange) -> None:
        """Run an inference when its message is there, inflated if it was compressed."""
        body = exchange.body
        refusal = exchange.head.options.refusal
        if refusal is not None:
            raise refusal()
        if not _check_frame(body):
            run(exchange, body, _PREFIX_BYTES)
            return

        def inflated(content: Result) -> None:
            try:
                run(exchange, content(), 0)
            except Exception as error:
                self.fail(exchange, error)

        self._coder.inflate(exchange, exchange.body[_PREFIX_BYTES:], exchange.head.options.coding, inflated)

    def _infer(self, exchange: Exchange, data: bytes, start: int) -> None:
        """Run the request whose message lies in `data` from `start` on."""
        name, version, request = v2_grpc.decode(data, start)
        model = self._data_plane.model(name, _version(exchange, version))
        answer = partial(self._inferred, _stream(exchange), model, request.terms)
        timeout_s = exchange.timeout_s
        self._start(exchange, model, lambda headers: model.start(request, headers, timeout_s, answer))

    def _start(self, exchange: Exchange, model: Served, start: Start) -> None:
        """Have the model begin with an inference, if it takes any."""
        try:
            self._data_plane.check_accepting(model)
            headers, span = self._data_plane.begin(model, exchange.head)
            started = start(headers)
        except Exception as error:
            self.fail(exchange, error, model)
            return
        exchange.on_leave = self._data_plane.leaving(partial(model.cancel, started), started, span)

    def _inferred(self, stream: Stream, model: Served, terms: Terms, result: Outputs | TorporError) -> None:
        if isinstance(result, TorporError):
            self.fail(stream, result, model)
            return
        try:
            answer = v2_grpc.encode(model.response(terms, result), raw=terms.binary_outputs is None)
        except Exception as error:
            self.fail(stream, error, model)
            return
        self._send(stream, answer)

    def _send(self, stream: Stream, answer: bytes) -> None:
        """Answer an inference with a message, compressed where the caller accepts it."""
        self._requests["grpc", "OK"] += 1
        coding = stream.head.options.accepts
        if not coding or not is_worth_compressing(answer):
            stream.respond_grpc(_frame(answer), _OK)
            return
        fields = ((b"grpc-encoding", coding),)
        self._coder.compress(
            stream, answer, coding, lambda content: stream.respond_grpc(_frame(content(), 1), _OK, fields)
        )

    def _predict(self, pieces: Callable[[Answered], Answered], exchange: Exchange, data: bytes, start: int) -> None:
        """TorchServe's own, for models that read requests themselves: the answer is what their body is over HTTP.

        pieces: what becomes of an answer that comes in several.
        """
        try:
            request = message(f"{_TORCHSERVE}.PredictionsRequest").FromString(data[start:])
        except DecodeError:
            raise InvalidInput("the message is not a valid PredictionsRequest") from None
        model = self._data_plane.model(request.model_name, _version(exchange, request.model_version))
        if not model.takes_calls:
            refusal = NotFound(f"model '{model.name}' is none of TorchServe's, must be asked by ModelInfer")
            self.fail(exchange, refusal, model)
            return
        answer = pieces(partial(self._predicted, _stream(exchange), model))

        def begin(headers: Mapping[str, str] | None) -> Any:
            call = Call("predictions", headers or {}, b"", fields=dict(request.input))
            return model.call(call, exchange.timeout_s, answer)

        self._start(exchange, model, begin)

    def _predicted(self, stream: Stream, model: Served, result: CallAnswer | TorporError) -> None:
        if isinstance(result, TorporError):
            self.fail(stream, result, model)
            return
        response = message(f"{_TORCHSERVE}.PredictionResponse")(prediction=result.body).SerializeToString()
        if result.flow is not None:
            if not stream.has_begun:
                stream.begin_grpc()
            pass_on(stream, result.flow, _frame(response))
        elif stream.has_begun:
            self._requests["grpc", "OK"] += 1
            stream.send(_frame(response))
            stream.respond_grpc(b"", _OK)
        else:
            self._send(stream, response)

    def _ping(self, request: Any) -> Any:
        health = health_text(self._data_plane.is_healthy)
        return message(f"{_TORCHSERVE}.TorchServeHealthResponse")(health=health)

    def _server_live(self, request: Any) -> Any:
        return message("inference.ServerLiveResponse")(live=True)

    def _server_ready(self, request: Any) -> Any:
        return message("inference.ServerReadyResponse")(ready=self._data_plane.is_ready)

    def _model_ready(self, request: Any) -> Any:
        model = self._data_plane.model(request.name, request.version)
        return message("inference.ModelReadyResponse")(ready=self._data_plane.is_ready and model.is_ready)

    def _server_metadata(self, request: Any) -> Any:
        return message("inference.ServerMetadataResponse")(
            name="torpor", version=self._data_plane.version, extensions=EXTENSIONS
        )

    def _model_metadata(self, request: Any) -> Any:
        return message("inference.ModelMetadataResponse")(**self._data_plane.metadata(request.name, request.version))

    def _repository_index(self, request: Any) -> Any:
        return message("inference.RepositoryIndexResponse")(models=self._repository.index(request.ready))

    def _load(self, exchange: Exchange) -> None:
        request = read(exchange, "inference.RepositoryModelLoadRequest")
        load = partial(self._repository.load, parameters=request.parameters)
        self._change(exchange, request, load, isLoaded=True)

    def _unload(self, exchange: Exchange) -> None:
        request = read(exchange, "inference.RepositoryModelUnloadRequest")
        self._change(exchange, request, self._repository.unload, isUnloaded=True)

    def _change(
        self, exchange: Exchange, request: Any, change: Callable[[str], Coroutine[Any, Any, None]], **done: bool
    ) -> None:
        """Load or unload, and answer then. Triton's clients leave the first field empty, KServe's have the name in it."""
        name = request.model_name or request.repository_or_model_name
        kind = type(request).DESCRIPTOR.full_name.replace("Request", "Response")

        async def answer() -> None:
            try:
                await change(name)
                respond(exchange, message(kind)(model_name=name, **done))
            except Exception as error:
                self.fail(exchange, error)

        self._tasks.start(answer(), kind)

    def _check(self, request: Any) -> Any:
        if not self._knows(request.service):
            raise NotFound(f"service '{request.service[:200]}' is unknown")
        return self._health(request.service)

    async def _watch(self, requests: AsyncIterator[Any], path: str) -> AsyncIterator[Any]:
        request = await anext(requests, None)
        if request is None:
            raise InvalidInput("the call ended without a message")
        changed = self._data_plane.readiness_changed
        while True:
            told = self._health(request.service)
            yield told  # a caller that does not read holds this up, and nobody else
            if self._data_plane.is_draining:  # an open stream would hold up the server's end
                raise Unavailable("the server is shutting down")
            async with changed:
                await changed.wait_for(lambda: self._health(request.service) != told)  # noqa: B023

    def _health(self, service: str) -> Any:
        """SERVING, NOT_SERVING, or (in a watch) SERVICE_UNKNOWN; a model's name is a service as well."""
        status = "SERVICE_UNKNOWN"
        if self._knows(service):
            status = "SERVING" if self._data_plane.is_ready else "NOT_SERVING"
        return message("grpc.health.v1.HealthCheckResponse")(status=status)

    def _knows(self, service: str) -> bool:
        return not service or service in SERVICES or bool(self._data_plane.versions(service))

    async def _reflect(self, requests: AsyncIterator[Any], path: str) -> AsyncIterator[Any]:
        package = path.split(".ServerReflection/")[0].removeprefix("/")
        async for request in requests:
            response = message(f"{package}.ServerReflectionResponse")(valid_host=request.host, original_request=request)
            kind = request.WhichOneof("message_request")
            file: str | None = None
            if kind == "list_services":
                for name in SERVICES:
                    response.list_services_response.service.add(name=name)
            elif kind == "file_by_filename":
                file = request.file_by_filename
            elif kind == "file_containing_symbol":
                file = SYMBOLS.get(request.file_containing_symbol)
            if file in FILES:
                response.file_descriptor_response.file_descriptor_proto.append(FILES[file])
            elif kind != "list_services":
                response.error_response.error_code = GrpcCode.NOT_FOUND
                response.error_response.error_message = "not found"
            yield response


def read(exchange: Exchange, message_type: str) -> Any:
    """The message of a unary call, a small one. Raises InvalidInput, PayloadTooLarge."""
    return _parse(message_type, exchange.body, exchange.head.options.coding)


def respond(exchange: Exchange, response: Any) -> None:
    """Answer a unary call with a message."""
    _stream(exchange).respond_grpc(_frame(response.SerializeToString()), _OK)


def refuse(exchange: Exchange, error: Exception) -> None:
    """End a call with an error's status."""
    code, text = GrpcCode.INTERNAL, _INTERNAL
    more: Trailers = ()
    if isinstance(error, TorporError):
        code, text = error.grpc_code, str(error)
        if isinstance(error, Unavailable) and error.retry_after_s is not None:
            more = ((_PUSHBACK, b"%d" % math.ceil(error.retry_after_s * 1e3)),)
        if isinstance(error, ModelFailed):
            logger.warning("%s: %s", exchange.head, text)
    else:
        logger.error("%s failed", exchange.head, exc_info=error)
    if _takes_trailers(exchange):
        _stream(exchange).respond_grpc(b"", (*_status(code, text), *more))
    else:  # a proxy that strips `te` would strip trailers as well
        exchange.respond(200, b"", (_GRPC, *_status(code, text), *more))


def _parse(message_type: str, body: bytes, coding: bytes) -> Any:
    """The message in a frame, a small one."""
    is_compressed, data = _check_frame(body), body[_PREFIX_BYTES:]
    if is_compressed:
        data = Inflation(data, coding, _MAX_SMALL_BYTES).run_to_end()
    try:
        return message(message_type).FromString(data)
    except DecodeError:
        raise InvalidInput(f"the message is not a valid {message_type}") from None


def _frame(data: bytes, is_compressed: int = 0) -> bytes:
    return bytes((is_compressed,)) + len(data).to_bytes(4, "big") + data


def _check_frame(body: bytes) -> bool:
    """Whether the one message of a unary call, which must be whole and alone, is compressed."""
    if len(body) < _PREFIX_BYTES:
        raise InvalidInput(f"gRPC frame has {len(body)} bytes, must have {_PREFIX_BYTES} or more")
    if body[0] > 1:
        raise InvalidInput(f"gRPC frame begins with {body[0]}, must be 0 or 1")
    length = int.from_bytes(body[1:_PREFIX_BYTES], "big")
    if length != len(body) - _PREFIX_BYTES:
        raise InvalidInput(f"gRPC frame says {length} bytes, {len(body) - _PREFIX_BYTES} came")
    return body[0] == 1


def _version(exchange: Exchange, in_message: str) -> str:
    """The version that a call wants, "" for any. Raises InvalidInput if its header and its message want different ones."""
    pinned = exchange.head.headers.get(VERSION)
    if pinned is None:
        return in_message
    version = pinned.decode("latin-1")
    if in_message and in_message != version:
        raise InvalidInput(f"torpor-model-version = {version[:40]}, must be {in_message[:40]} as in the message")
    return version


def _stream(exchange: Exchange) -> Stream:
    """gRPC comes by HTTP/2 alone."""
    assert isinstance(exchange, Stream)
    return exchange


def _takes_trailers(exchange: Exchange) -> bool:
    return b"trailers" in exchange.head.headers.get(b"te", b"")


async def _messages(stream: Stream, message_type: str) -> AsyncIterator[Any]:
    """The messages of a streaming call, as they come."""
    buffer, more = b"", True
    while more:
        chunk, more = await stream.chunk()
        buffer += chunk
        while len(buffer) >= _PREFIX_BYTES:
            size = _PREFIX_BYTES + int.from_bytes(buffer[1:_PREFIX_BYTES], "big")
            if size > _MAX_SMALL_BYTES:
                raise PayloadTooLarge(f"message = {size} bytes, must be in [0, {_MAX_SMALL_BYTES}]")
            if len(buffer) < size:
                break
            yield _parse(message_type, buffer[:size], stream.head.options.coding)
            buffer = buffer[size:]
    if buffer:
        raise InvalidInput("the call ended inside a message")


def _status(code: GrpcCode, text: str) -> Trailers:
    escaped = quote(error_text(text), safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")
    return (b"grpc-status", b"%d" % code), (b"grpc-message", escaped.encode())
