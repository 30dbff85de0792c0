"""KServe v1 and Open Inference v2 over REST, health, metadata and `/metrics`, on HTTP/1.1 and HTTP/2 alike."""

import logging
import math
from collections.abc import Awaitable, Callable
from functools import partial
from urllib.parse import unquote

import orjson

from ..errors import (
    InvalidInput,
    MethodNotAllowed,
    NotFound,
    NotSupported,
    QueueFull,
    TorporError,
    UnsupportedMedia,
)
from ..protocol import v1, v2_rest
from .data_plane import EXTENSIONS, DataPlane, ServedModel
from .exchange import CallerLeft, Exchange

logger = logging.getLogger("torpor.rest")

_JSON = ((b"content-type", b"application/json"),)
_OCTETS = (b"content-type", b"application/octet-stream")
_JSON_LENGTH = b"inference-header-content-length"

MAX_ERROR_BYTES = 500
MAX_ERROR_BODY_BYTES = 690
"""Error texts are cut here: Knative's in-memory broker crashes on bodies of about 770 bytes."""

Handler = Callable[[Exchange], Awaitable[None]]


class Rest:
    """Routes of the REST protocols."""

    def __init__(self, data_plane: DataPlane) -> None:
        self._data_plane = data_plane
        self._requests = data_plane.metrics.requests
        self._inferences: dict[str, Handler] = {}

    async def answer(self, exchange: Exchange) -> None:
        """Answer the exchange; every error becomes a response, and only the caller's own."""
        try:
            handler = self._inferences.get(exchange.path) if exchange.method == "POST" else None
            if handler is None:
                handler = self._route(exchange.method, exchange.path)
            await handler(exchange)
        except CallerLeft:
            return
        except TorporError as error:
            await self._refuse(exchange, error)
        except Exception:
            logger.exception("%s %s failed", exchange.method, exchange.path)
            await exchange.respond(500, _error_body("internal error; the server's log has the details"), _JSON)

    async def _refuse(self, exchange: Exchange, error: TorporError) -> None:
        headers: list[tuple[bytes, bytes]] = [*_JSON]
        if isinstance(error, QueueFull):
            headers.append((b"retry-after", b"%d" % math.ceil(error.retry_after_s)))
        elif error.retryable:
            headers.append((b"retry-after", b"1"))
        if exchange.method == "POST":
            self._requests["rest", str(error.http_status)] += 1
        await exchange.respond(error.http_status, _error_body(str(error)), headers)

    def _route(self, method: str, path: str) -> Handler:
        """The handler of a path. Raises NotFound, MethodNotAllowed, NotSupported."""
        match [unquote(part) for part in path.rstrip("/").split("/")[1:]]:
            case []:
                return self._reading(method, lambda: (200, {"status": "alive"}))
            case ["metrics"]:
                _allow(method, "GET")
                return self._metrics
            case ["v1", "models"]:
                return self._reading(method, lambda: (200, {"models": [*self._data_plane.models]}))
            case ["v1", "models", name] if name.endswith(":predict"):
                _allow(method, "POST")
                return self._keep(
                    path, partial(self._predict_v1, self._data_plane.model(name.removesuffix(":predict")))
                )
            case ["v1", "models", name] if name.endswith(":explain"):
                raise NotSupported("explain is not supported")
            case ["v1", "models", name]:
                return self._reading(method, partial(self._model_ready, name, ""))
            case ["v2"]:
                return self._reading(method, self._server_metadata)
            case ["v2", "health", "live"]:
                return self._reading(method, lambda: (200, {"live": True}))
            case ["v2", "health", "ready"]:
                return self._reading(method, self._server_ready)
            case ["v2", "models"]:
                return self._reading(method, lambda: (200, {"models": [*self._data_plane.models]}))
            case ["v2", "models", name, *rest]:
                return self._route_model(method, path, name, rest)
        raise NotFound(f"path {path[:200]} is unknown")

    def _route_model(self, method: str, path: str, name: str, rest: list[str]) -> Handler:
        version = ""
        if rest[:1] == ["versions"] and len(rest) > 1:
            version, rest = rest[1], rest[2:]
        match rest:
            case []:
                return self._reading(method, lambda: (200, self._data_plane.model(name, version).metadata()))
            case ["ready"]:
                return self._reading(method, partial(self._model_ready, name, version))
            case ["infer"]:
                _allow(method, "POST")
                return self._keep(path, partial(self._infer_v2, self._data_plane.model(name, version)))
            case ["infer_stream" | "generate" | "generate_stream"]:
                raise NotSupported(f"{rest[0]} is not supported")
        raise NotFound(f"path {path[:200]} is unknown")

    def _keep(self, path: str, handler: Handler) -> Handler:
        """Remember the handler of a model's path: there are as many as models, spelt as callers spell them."""
        if len(self._inferences) < 1024:
            self._inferences[path] = handler
        return handler

    def _reading(self, method: str, content: Callable[[], tuple[int, dict[str, object]]]) -> Handler:
        if method != "HEAD":
            _allow(method, "GET")

        async def handler(exchange: Exchange) -> None:
            status, value = content()
            await exchange.respond(status, orjson.dumps(value), _JSON)

        return handler

    def _server_metadata(self) -> tuple[int, dict[str, object]]:
        return 200, {"name": "torpor", "version": self._data_plane.version, "extensions": list(EXTENSIONS)}

    def _server_ready(self) -> tuple[int, dict[str, object]]:
        ready = self._data_plane.is_ready
        return 200 if ready else 503, {"ready": ready}

    def _model_ready(self, name: str, version: str) -> tuple[int, dict[str, object]]:
        model = self._data_plane.model(name, version)
        ready = self._data_plane.is_ready
        return 200 if ready else 503, {"name": model.name, "ready": ready}

    async def _metrics(self, exchange: Exchange) -> None:
        body = self._data_plane.metrics.render()
        await exchange.respond(200, body, ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),))

    async def _predict_v1(self, model: ServedModel, exchange: Exchange) -> None:
        self._data_plane.check_accepting(model)
        _check_encoding(exchange)
        datatypes = {spec.name: spec.datatype for spec in model.signature.inputs.values()}
        request = v1.decode(await exchange.body(), model.signature.names, datatypes)
        response = await model.infer(request, exchange.text_headers() if model.signature.wants else None)
        await exchange.respond(200, v1.encode(response), _JSON)
        self._requests["rest", "200"] += 1

    async def _infer_v2(self, model: ServedModel, exchange: Exchange) -> None:
        self._data_plane.check_accepting(model)
        _check_encoding(exchange)
        length = exchange.headers.get(_JSON_LENGTH)
        if length is not None and not (length.isdigit() and len(length) < 20):
            raise InvalidInput(
                f"Inference-Header-Content-Length = {length.decode('latin-1')[:40]!r}, must be an integer"
            )
        body = await exchange.body()
        request = v2_rest.decode(body, None if length is None else int(length))
        response = await model.infer(request, exchange.text_headers() if model.signature.wants else None)
        content, json_length = v2_rest.encode(response, request.binary_outputs)
        if json_length is None:
            await exchange.respond(200, content, _JSON)
        else:
            await exchange.respond(200, content, (_OCTETS, (_JSON_LENGTH, b"%d" % json_length)))
        self._requests["rest", "200"] += 1


def _check_encoding(exchange: Exchange) -> None:
    encoding = exchange.headers.get(b"content-encoding", b"identity")
    if encoding != b"identity":
        raise UnsupportedMedia(f"Content-Encoding = {encoding.decode('latin-1')[:40]}, must be identity")


def _allow(method: str, allowed: str) -> None:
    if method != allowed:
        raise MethodNotAllowed(f"method {method} is not allowed, must be {allowed}")


def error_text(message: str) -> str:
    """An error's text, cut so that it stays short in any encoding, without characters that nobody can read."""
    text = message.encode("utf-8", "replace")[:MAX_ERROR_BYTES].decode("utf-8", "ignore")
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _error_body(message: str) -> bytes:
    text = error_text(message)
    while len(body := orjson.dumps({"error": text})) > MAX_ERROR_BODY_BYTES:  # it has many quotes
        text = text[: len(text) * 3 // 4]
    return body
