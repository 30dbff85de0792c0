"""The routes and the gRPC framing over a model that answers anything: every request gets one answer, never "internal"."""

import asyncio
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

import hpack
import numpy as np
from choices import Choices
from connections import Transport
from decoders import infer_message, v2_object
from torpor.predictors.batching.policy import BatchingPolicy, BatchingSettings
from torpor.predictors.batching.run_times import RunTimes
from torpor.predictors.errors import NotFound
from torpor.predictors.protocol.messages import message
from torpor.predictors.serving.app import App
from torpor.predictors.serving.batcher import Batcher
from torpor.predictors.serving.data_plane import DataPlane, ServedModel
from torpor.predictors.serving.exchange import Exchange, Field, Fields, Head
from torpor.predictors.serving.http2 import Http2
from torpor.predictors.serving.http2_fields import encode_fields
from torpor.predictors.serving.metrics import ModelMetrics
from torpor.predictors.serving.repository import Repository, Source
from torpor.predictors.serving.request_options import read_options
from torpor.predictors.serving.server import HttpServer, Port
from torpor.predictors.signature import Bound, Signature

MAX_BODY_BYTES = 1 << 16


class Device:
    """Gives one number a row, whatever the rows are."""

    devices = in_flight = 1
    overlaps = False

    def submit(self, parts: Sequence[Bound], done: Callable[..., None], loop: asyncio.AbstractEventLoop) -> None:
        loop.call_soon(done, [{"y": np.ones((part.rows, 1), np.float32)} for part in parts], 0.001)


class Empty:
    """A catalog with nothing to load."""

    def names(self) -> list[str]:
        return []

    def model(self, name: str) -> Source:
        raise NotFound(f"model '{name}' is unknown")


async def _serve() -> tuple[App, HttpServer]:
    data_plane = DataPlane("0")
    policy: BatchingPolicy[Bound] = BatchingPolicy(BatchingSettings(4, 0.0, 8), RunTimes())
    metrics = ModelMetrics("m", "1", policy)
    batcher = Batcher(policy, Device(), metrics)  # type: ignore[arg-type]
    data_plane.publish("m", [ServedModel("m", "1", Signature(), batcher, metrics)])
    await data_plane.set_ready(True)
    app = App(data_plane, Repository(Empty(), data_plane, may_change=True), MAX_BODY_BYTES, MAX_BODY_BYTES)
    return app, HttpServer(app, Port("", 0, None), MAX_BODY_BYTES, MAX_BODY_BYTES)


LOOP = asyncio.new_event_loop()
APP, SERVER = LOOP.run_until_complete(_serve())


async def _settle() -> None:
    """What is due now, and what that makes due."""
    for _ in range(4):
        await asyncio.sleep(0)


class Asked(Exchange):
    """Keeps its answers."""

    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self.answers: list[tuple[int, bytes]] = []

    def respond(self, status: int, body: bytes, fields: Fields = ()) -> None:
        self.answers.append((status, body))
        for name, value in fields:
            assert not {*name, *value} & {*b"\r\n\0"}


PATHS = (
    "/v2/models/m/infer", "/v1/models/m:predict", "/v2/models/m/versions/1/infer", "/v2/models/m/versions/2/infer", "/",
    "/metrics", "/v1/models", "/v1/models/m", "/v1/models/m:explain", "/v2", "/v2/health/live", "/v2/health/ready",
    "/v2/models", "/v2/models/m", "/v2/models/m/ready", "/v2/models/m/versions/1/ready", "/v2/models/m/generate",
    "/v2/models/%6d/infer/",
    "/v2/models/n/infer", "/v2/repository/index", "/v2/repository/models/n/load", "/v2/repository/models/n/unload", "*",
)  # fmt: skip
ASKING = (b"accept-encoding", b"grpc-timeout", b"x-envoy-expected-rq-timeout-ms", b"traceparent")
METHODS = ("POST", "GET", "HEAD", "PUT", "get")


def rest_calls(data: bytes) -> None:
    """One exchange, whatever its path, headers and body."""
    LOOP.run_until_complete(_exchange(Choices(data)))


async def _exchange(choices: Choices) -> None:
    path = choices.pick(PATHS)
    if choices.below(8) == 7:
        path = "/" + choices.take(choices.below(24)).decode("ascii", "ignore")
    headers = {}
    match choices.below(4):
        case 1:
            headers[b"inference-header-content-length"] = choices.take(choices.below(4))
        case 2:
            headers[b"content-encoding"] = choices.pick((b"identity", b"gzip", b"", b"\xff"))
        case 3:
            headers[choices.pick(ASKING)] = choices.take(choices.below(16))
    if choices.below(2):
        text, blobs = v2_object(choices)
        body = b"".join((text, *blobs))
        if blobs:
            headers[b"inference-header-content-length"] = b"%d" % len(text)
    else:
        body = choices.rest()
    exchange = Asked(Head(choices.pick(METHODS), path, headers, len(body), options=read_options(headers)))
    if APP.open(exchange):
        exchange.body = body
        APP.answer(exchange)
    await _settle()
    ((status, answer),) = exchange.answers
    assert status not in (500, 400) or answer.startswith(b'{"error":'), answer
    assert status != 500, answer


SERVICES = tuple(
    (f"/{service}/{method}", request)
    for service, method, request in (
        ("inference.GRPCInferenceService", "ModelInfer", "inference.ModelInferRequest"),
        ("inference.GRPCInferenceService", "ModelReady", "inference.ModelReadyRequest"),
        ("inference.GRPCInferenceService", "ModelMetadata", "inference.ModelMetadataRequest"),
        ("inference.GRPCInferenceService", "ServerReady", "inference.ServerReadyRequest"),
        ("inference.GRPCInferenceService", "RepositoryIndex", "inference.RepositoryIndexRequest"),
        ("inference.GRPCInferenceService", "RepositoryModelLoad", "inference.RepositoryModelLoadRequest"),
        ("grpc.health.v1.Health", "Check", "grpc.health.v1.HealthCheckRequest"),
        ("grpc.health.v1.Health", "Watch", "grpc.health.v1.HealthCheckRequest"),
        ("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo", "grpc.reflection.v1.ServerReflectionRequest"),
        ("grpc.health.v1.Health", "None", "grpc.health.v1.HealthCheckRequest"),
    )
)


def _message(choices: Choices, request_type: str) -> bytes:
    """A message in its frame, mostly right."""
    if choices.below(4) == 3:
        content = choices.take(choices.below(32))
    elif request_type == "inference.ModelInferRequest":
        content = infer_message(choices)
    else:
        request: Any = message(request_type)()
        texts = [field for field in request.DESCRIPTOR.fields if field.type == field.TYPE_STRING]
        if texts:
            text = choices.pick(
                ("", "m", "n", "inference.GRPCInferenceService", "health.proto", "grpc.health.v1.Health")
            )
            setattr(request, choices.pick(texts).name, text)
        content = request.SerializeToString()
    compressed, size = choices.pick((0, 0, 0, 0, 0, 0, 0, 1)), len(content) + choices.pick((0, 0, 0, 0, 0, 0, 1, 255))
    return bytes([compressed]) + size.to_bytes(4) + content


def _frame(kind: int, flags: int, payload: bytes) -> bytes:
    return struct.pack(">HBBBL", len(payload) >> 8, len(payload) & 255, kind, flags, 1) + payload


def grpc_calls(data: bytes) -> None:
    """One call on an HTTP/2 connection, its messages cut anywhere. A call that has ended has a status, but never INTERNAL."""
    LOOP.run_until_complete(_call(Choices(data)))


async def _call(choices: Choices) -> None:
    path, request_type = choices.pick(SERVICES)
    fields: list[Field] = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode())]
    fields.append((b"content-type", choices.pick((b"application/grpc", b"application/grpc+proto"))))
    if choices.below(8) != 7:
        fields.append((b"te", b"trailers"))
    if choices.below(8) == 7:
        printable = bytes(33 + byte % 94 for byte in choices.take(4))
        fields.append((b"grpc-timeout", choices.pick((b"1S", b"0n", b"1", b"99999999H", printable))))
    body = b"".join(_message(choices, request_type) for _ in range(choices.pick((1, 1, 1, 2, 0))))
    ends = choices.below(8) != 7
    transport, connection = Transport(), Http2(SERVER)
    connection.connection_made(transport)  # type: ignore[arg-type]
    connection.data_received(struct.pack(">HBBBL", 0, 0, 4, 0, 0) + _frame(1, 0x4, encode_fields(fields)))
    for piece in choices.pieces(body):
        connection.data_received(_frame(0, 0, piece))
        if choices.below(2):
            await _settle()
    if ends:
        connection.data_received(_frame(0, 1, b""))
    await _settle()
    transport.protocol = connection
    statuses = _statuses(transport.written)
    assert len(statuses) <= 1
    assert statuses or not ends or path.endswith("/Watch")
    assert b"13" not in statuses
    connection.connection_lost(None)
    await _settle()
    assert SERVER.in_flight == 0
    assert not SERVER.connections


def _statuses(written: bytes) -> list[bytes]:
    decoder, statuses = hpack.Decoder(), []
    while written:
        _, length, kind, _, _ = struct.unpack(">HBBBL", written[:9])
        length |= written[0] << 16 | written[1] << 8
        if kind == 1:
            for name, value in decoder.decode(written[9 : 9 + length], raw=True):
                if name == b"grpc-status":
                    assert re.fullmatch(rb"\d+", value)
                    statuses.append(value)
                assert not {*value} & {*b"\r\n\0"}
        written = written[9 + length :]
    return statuses
