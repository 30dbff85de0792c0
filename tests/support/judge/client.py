"""Sends a case's calls to a server and keeps what came."""

import base64
import http.client
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import json_format
from torpor.predictors.protocol.messages import message

from judge import messages
from judge.scenes import Call, Case, GrpcCall

TIMEOUT_S = 60


@dataclass(frozen=True)
class Answer:
    status: int | str
    headers: Mapping[str, str]
    body: bytes
    pieces: tuple[bytes, ...] = ()
    """Chunks, or messages of a stream; of an answer at once none."""

    def __str__(self) -> str:
        return f"{self.status} {dict(self.headers)} {self.body[:300]!r}"


@dataclass(frozen=True)
class Addresses:
    """host:port each; all the same where a server has one port."""

    inference: str
    management: str
    grpc: str
    grpc_management: str
    open_inference: str = messages.OPEN
    """The package of its Open Inference service."""


def ask(server: Addresses, case: Case) -> list[Answer]:
    if case.together:
        with ThreadPoolExecutor(len(case.calls)) as threads:
            return list(threads.map(lambda call: one(server, call), case.calls))
    return [one(server, call) for call in case.calls]


def one(server: Addresses, call: Call | GrpcCall) -> Answer:
    return by_grpc(server, call) if isinstance(call, GrpcCall) else by_http(server, call)


def by_http(server: Addresses, call: Call) -> Answer:
    address = server.management if call.is_management else server.inference
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    try:
        # Refused before the body was sent: the answer may be here.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.request(call.method, call.path, call.body, dict(call.headers))
        response = connection.getresponse()
        pieces = tuple(_chunks(response)) if response.chunked else ()
        body = b"".join(pieces) or response.read()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body, pieces)
    except (OSError, http.client.HTTPException) as error:
        return Answer(type(error).__name__, {}, b"")
    finally:
        connection.close()


def by_grpc(server: Addresses, call: GrpcCall) -> Answer:
    address = server.grpc_management if call.is_management else server.grpc
    method, request, answer = _typed(server, call.method)
    sent = json_format.ParseDict(_jsonable(call.message), request())
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        kind = channel.unary_stream if call.streams else channel.unary_unary
        kind = channel.stream_stream if call.sends_stream else kind
        invoke = kind(f"/{method}", lambda message: message.SerializeToString(), answer.FromString)
        pieces: list[bytes] = []
        try:
            got = invoke(iter([sent]) if call.sends_stream else sent, timeout=TIMEOUT_S)
            for one in got if call.streams else [got]:
                pieces.append(_body(one))  # noqa: PERF401 (those before an error stay)
        except grpc.RpcError as error:
            return Answer(error.code().name, {}, (error.details() or "").encode(), tuple(pieces))
    return Answer("OK", {}, b"".join(pieces), tuple(pieces) if call.streams else ())


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Each is read on its own."""
    while piece := response.read1():
        yield piece


def _typed(server: Addresses, method: str) -> tuple[str, Any, Any]:
    if method in messages.METHODS:
        return (method, *messages.of(method))
    name = method.removeprefix("GRPCInferenceService/")
    types = [message(f"inference.{name}{end}") for end in ("Request", "Response")]
    return f"{server.open_inference}.GRPCInferenceService/{name}", types[0], types[1]


def _jsonable(value: Any) -> Any:
    """protobuf's JSON has bytes as base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {key: _jsonable(one) for key, one in value.items()}
    return [_jsonable(one) for one in value] if isinstance(value, list) else value


def _body(answer: Any) -> bytes:
    for field in ("prediction", "msg", "health"):
        if field in answer.DESCRIPTOR.fields_by_name:
            value = getattr(answer, field)
            return value.encode() if isinstance(value, str) else value
    return json_format.MessageToJson(answer, sort_keys=True).encode()
