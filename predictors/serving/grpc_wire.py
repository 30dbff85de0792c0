"""gRPC over the server's own HTTP/2: Open Inference, health checking and reflection, without grpcio.

Wire format: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md. A message is a byte (compressed or not), its
length as a big-endian uint32, and the protobuf bytes; the status comes as trailers.
"""

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import quote

from google.protobuf.message import DecodeError

from ..errors import GrpcCode, InvalidInput, NotFound, NotSupported, PayloadTooLarge, TorporError, Unavailable
from ..protocol import v2_grpc
from ..protocol.messages import FILES, SERVICES, SYMBOLS, message
from .data_plane import EXTENSIONS, DataPlane
from .exchange import CallerLeft, Exchange
from .rest import error_text

logger = logging.getLogger("torpor.grpc")

_GRPC = (b"content-type", b"application/grpc")
_OK = [(b"grpc-status", b"0")]
_INTERNAL = "internal error; the server's log has the details"
_TIMEOUT_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")

Unary = Callable[[Any, Exchange], Awaitable[Any]]
Stream = Callable[[AsyncIterator[Any], Exchange], AsyncIterator[Any]]


class Grpc:
    """The gRPC services by path."""

    def __init__(self, data_plane: DataPlane) -> None:
        self._data_plane = data_plane
        self._requests = data_plane.metrics.requests
        inference, health = "inference.GRPCInferenceService", "grpc.health.v1.Health"
        self._unary: dict[str, tuple[str, Unary]] = {
            f"/{inference}/ModelInfer": ("inference.ModelInferRequest", self._model_infer),
            f"/{inference}/ServerLive": ("inference.ServerLiveRequest", self._server_live),
            f"/{inference}/ServerReady": ("inference.ServerReadyRequest", self._server_ready),
            f"/{inference}/ModelReady": ("inference.ModelReadyRequest", self._model_ready),
            f"/{inference}/ServerMetadata": ("inference.ServerMetadataRequest", self._server_metadata),
            f"/{inference}/ModelMetadata": ("inference.ModelMetadataRequest", self._model_metadata),
            f"/{health}/Check": ("grpc.health.v1.HealthCheckRequest", self._check),
        }
        self._streams: dict[str, tuple[str, Stream]] = {
            f"/{health}/Watch": ("grpc.health.v1.HealthCheckRequest", self._watch)
        }
        for version in ("v1", "v1alpha"):
            package = f"grpc.reflection.{version}"
            path = f"/{package}.ServerReflection/ServerReflectionInfo"
            self._streams[path] = (f"{package}.ServerReflectionRequest", self._reflect)

    def is_stream(self, path: str) -> bool:
        """Whether a call of this path may last without a request in it."""
        return path in self._streams

    async def answer(self, exchange: Exchange) -> None:
        """Answer one call; every error becomes a status."""
        if b"trailers" not in exchange.headers.get(b"te", b""):
            await exchange.respond(200, b"", [_GRPC, *_status(GrpcCode.INVALID_ARGUMENT, "header te must be trailers")])
            return
        try:
            unary = self._unary.get(exchange.path)
            if unary is not None:
                await self._answer_unary(exchange, *unary)
                return
            stream = self._streams.get(exchange.path)
            if stream is None:
                raise NotSupported(f"method {exchange.path[:200]} is unknown")
            await self._answer_stream(exchange, *stream)
        except CallerLeft:
            return
        except TorporError as error:
            if exchange.path.endswith("/ModelInfer"):
                self._requests["grpc", error.grpc_code.name] += 1
            await self._refuse(exchange, error.grpc_code, str(error))
        except Exception:
            logger.exception("%s failed", exchange.path)
            await self._refuse(exchange, GrpcCode.INTERNAL, _INTERNAL)

    async def _answer_unary(self, exchange: Exchange, request_type: str, method: Unary) -> None:
        body = await exchange.body()
        request = _parse(request_type, _message_bytes(body))
        response = _frame((await method(request, exchange)).SerializeToString())
        await exchange.start_grpc()
        await exchange.end_grpc(_OK, response)

    async def _answer_stream(self, exchange: Exchange, request_type: str, method: Stream) -> None:
        await exchange.start_grpc()
        try:
            async for response in method(_messages(exchange, request_type), exchange):
                await exchange.send_message(_frame(response.SerializeToString()))
        except TorporError as error:
            await exchange.end_grpc(_status(error.grpc_code, str(error)))
        except CallerLeft:
            raise
        except Exception:
            logger.exception("%s failed", exchange.path)
            await exchange.end_grpc(_status(GrpcCode.INTERNAL, _INTERNAL))
        else:
            await exchange.end_grpc(_OK)

    async def _refuse(self, exchange: Exchange, code: GrpcCode, text: str) -> None:
        await exchange.start_grpc()
        await exchange.end_grpc(_status(code, text))

    async def _model_infer(self, request: Any, exchange: Exchange) -> Any:
        model = self._data_plane.model(request.model_name, request.model_version)
        self._data_plane.check_accepting(model)
        timeout_s = _timeout(exchange)
        decoded = v2_grpc.decode(request)
        headers = exchange.text_headers() if model.signature.wants else None
        response = await model.infer(decoded, headers, timeout_s)
        answer = v2_grpc.encode(response, raw=decoded.binary_outputs is None)
        self._requests["grpc", "OK"] += 1
        return answer

    async def _server_live(self, request: Any, exchange: Exchange) -> Any:
        return message("inference.ServerLiveResponse")(live=True)

    async def _server_ready(self, request: Any, exchange: Exchange) -> Any:
        return message("inference.ServerReadyResponse")(ready=self._data_plane.is_ready)

    async def _model_ready(self, request: Any, exchange: Exchange) -> Any:
        self._data_plane.model(request.name, request.version)
        return message("inference.ModelReadyResponse")(ready=self._data_plane.is_ready)

    async def _server_metadata(self, request: Any, exchange: Exchange) -> Any:
        return message("inference.ServerMetadataResponse")(
            name="torpor", version=self._data_plane.version, extensions=EXTENSIONS
        )

    async def _model_metadata(self, request: Any, exchange: Exchange) -> Any:
        return message("inference.ModelMetadataResponse")(
            **self._data_plane.model(request.name, request.version).metadata()
        )

    async def _check(self, request: Any, exchange: Exchange) -> Any:
        if not self._knows(request.service):
            raise NotFound(f"service '{request.service[:200]}' is unknown")
        return self._health(request.service)

    async def _watch(self, requests: AsyncIterator[Any], exchange: Exchange) -> AsyncIterator[Any]:
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
        return not service or service in SERVICES or service in self._data_plane.models

    async def _reflect(self, requests: AsyncIterator[Any], exchange: Exchange) -> AsyncIterator[Any]:
        package = exchange.path.split(".ServerReflection/")[0].removeprefix("/")
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


def _parse(message_type: str, data: bytes) -> Any:
    try:
        return message(message_type).FromString(data)
    except DecodeError:
        raise InvalidInput(f"the message is not a valid {message_type}") from None


def _frame(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4, "big") + data


def _message_bytes(body: bytes) -> bytes:
    """The one message of a unary call."""
    if len(body) < 5:
        raise InvalidInput(f"gRPC frame has {len(body)} bytes, must have 5 or more")
    if body[0]:
        raise NotSupported("compressed gRPC messages are not supported")
    length = int.from_bytes(body[1:5], "big")
    if length != len(body) - 5:
        raise InvalidInput(f"gRPC frame says {length} bytes, {len(body) - 5} came")
    return body[5:]


async def _messages(exchange: Exchange, message_type: str) -> AsyncIterator[Any]:
    """The messages of a streaming call, as they come."""
    buffer, more = b"", True
    while more:
        chunk, more = await exchange.chunk()
        buffer += chunk
        while len(buffer) >= 5:
            size = 5 + int.from_bytes(buffer[1:5], "big")
            if size > exchange.max_body_bytes:
                raise PayloadTooLarge(f"message = {size} bytes, must be in [0, {exchange.max_body_bytes}]")
            if len(buffer) < size:
                break
            yield _parse(message_type, _message_bytes(buffer[:size]))
            buffer = buffer[size:]
    if buffer:
        raise InvalidInput("the call ended inside a message")


def _timeout(exchange: Exchange) -> float | None:
    """Seconds of `grpc-timeout`; None without. Raises InvalidInput."""
    header = exchange.headers.get(b"grpc-timeout")
    if header is None:
        return None
    match = _TIMEOUT.fullmatch(header.decode("latin-1"))
    if match is None:
        raise InvalidInput(
            f"grpc-timeout = {header.decode('latin-1')[:40]!r}, must be digits and one of H, M, S, m, u, n"
        )
    return int(match[1]) * _TIMEOUT_UNITS[match[2]]


def _status(code: GrpcCode, text: str) -> list[tuple[bytes, bytes]]:
    escaped = quote(error_text(text), safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")
    return [(b"grpc-status", b"%d" % code), (b"grpc-message", escaped.encode())]
