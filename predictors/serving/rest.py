"""KServe v1 and Open Inference v2 over REST, health, metadata and `/metrics`, on HTTP/1.1 and HTTP/2 alike."""

import logging
import math
from collections.abc import Callable, Coroutine, Sequence
from functools import cached_property, partial
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote

import orjson

from ..errors import (
    InvalidInput,
    MethodNotAllowed,
    ModelFailed,
    NotFound,
    NotSupported,
    PathNotFound,
    TorporError,
    Unavailable,
)
from ..protocol import v1, v2_rest
from ..protocol.inference import NO_TERMS, InferRequest, InferResponse, Terms
from . import openapi
from .archive_errors import INFERENCES, archive_error_body, is_archive_path
from .batcher import Outputs
from .calls import Call, CallAnswer, Route, health_text, pass_on, read_route
from .content_coding import ContentCoder, Result, is_worth_compressing
from .data_plane import EXTENSIONS, DataPlane, Served
from .exchange import Exchange, Fields, Head
from .repository import Repository
from .request_options import NO_OPTIONS
from .tasks import Tasks
from .together import Together
from .worker import Colleagues

logger = logging.getLogger("torpor.rest")

JSON = ((b"content-type", b"application/json"),)
_OCTETS = (b"content-type", b"application/octet-stream")
VERSION = b"torpor-model-version"
"""In a request, of gRPC too, it pins the version; in an answer of v1 it says which it was (v2's body does), for those who
want to stay."""

_PROMETHEUS = ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),)
_JSON_LENGTH = b"inference-header-content-length"

MAX_ERROR_BYTES = 500
MAX_ERROR_BODY_BYTES = 690
"""Error texts are cut here: Knative's in-memory broker crashes on bodies of about 770 bytes."""

_BODILESS = (204, 205, 304)
"""Statuses whose answers have no body, whatever the model made of one."""

Handler = Callable[[Exchange], None]

Fail = Callable[[Exchange, Exception], None]
"""Answers an exchange with an error."""


class Receiver(Protocol):
    """What answers requests that are events: `transformers.events.receiver`."""

    def handler(self, model: Served | None, version: str = "") -> Handler:
        """model: that the path names, None for the path `/`. version: of the only model then, "" for any. Raises NotFound."""


Encode = Callable[[InferResponse, Terms], tuple[bytes, Fields]]


class Rest:
    """Routes of the REST protocols."""

    def __init__(
        self,
        data_plane: DataPlane,
        repository: Repository,
        coder: ContentCoder,
        colleagues: Colleagues | None,
        open_receiver: Callable[[Fail], Receiver] | None,
    ) -> None:
        self._data_plane = data_plane
        self._repository = repository
        self._coder = coder
        self._colleagues = colleagues
        self._open_receiver = open_receiver
        self._requests = data_plane.metrics.requests
        self._inferences: dict[str, tuple[Served, Handler]] = {}
        data_plane.on_change.append(self._inferences.clear)
        self._tasks = Tasks()

    def route(self, exchange: Exchange) -> Handler:
        """Who answers the exchange. Refuses before a body is read what can be refused: raises a TorporError."""
        head = exchange.head
        if _may_infer(head):
            inference, options = self._target(head), head.options
            if inference is not None:
                model, handler = inference
                self._data_plane.check_accepting(model)
                return handler if options is NO_OPTIONS else self._with_options(head, inference)
            if options.is_event and head.path == "/" and self._open_receiver is not None:
                return self._with_options(head, None)
        return self._route(head.method, head.path)

    def _with_options(self, head: Head, inference: tuple[Served, Handler] | None) -> Handler:
        """The handler of a request that asks for something beside its body. inference: None for an event to `/`."""
        options = head.options
        if options.refusal is not None:
            raise options.refusal()
        model, handler = inference or (None, None)
        if options.is_event and self._open_receiver is not None:
            handler = self._receiver.handler(model, head.headers.get(VERSION, b"").decode("latin-1"))
        assert handler is not None
        return partial(self._inflate, handler) if options.coding else handler

    def fail(self, exchange: Exchange, error: Exception) -> None:
        """Answer with an error."""
        self._count(exchange.head, error)
        if not isinstance(error, TorporError):
            logger.error("%s failed", exchange.head, exc_info=error)
            exchange.respond(500, error_body("internal error; the server's log has the details"), JSON)
            return
        if isinstance(error, ModelFailed):
            logger.warning("%s: %s", exchange.head, error)
        fields: list[tuple[bytes, bytes]] = [*JSON]
        if isinstance(error, Unavailable) and error.retry_after_s is not None:
            fields.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
        body = error_body(str(error))
        if is_archive_path(exchange.head.path):
            body = archive_error_body(error.http_status, error_text(str(error)), error)
        exchange.respond(error.http_status, body, fields)

    def _count(self, head: Head, error: Exception) -> None:
        """A failure, if it is an inference's: by its status, and by the model where there is one."""
        model: Served | None = None
        try:
            target = self._target(head) if _may_infer(head) else None
            if target is not None:
                model, _ = target
            elif head.method == "POST" and head.path == "/" and head.options.is_event:
                names = self._data_plane.names()
                model = self._data_plane.model(names[0]) if len(names) == 1 else None
            else:
                return
        except TorporError:
            pass  # there is no such model
        status = error.http_status if isinstance(error, TorporError) else 500
        self._requests["rest", str(status)] += 1
        if model is not None:
            self._data_plane.metrics.failed(model.name, model.version, error)

    @cached_property
    def _receiver(self) -> Receiver:
        """Made when the first event comes: a server that gets none need not import what reads them."""
        assert self._open_receiver is not None
        return self._open_receiver(self.fail)

    def _target(self, head: Head) -> tuple[Served, Handler] | None:
        """The model and handler of an inference as the models are now, None for another request. Raises NotFound."""
        if VERSION in head.headers:
            return self._pinned(head)
        return self._inferences.get(head.path) or self._inference(head)

    def _again(self, exchange: Exchange) -> None:
        """The model was replaced or unloaded after the head had come: what its path leads to now answers."""
        target = self._target(exchange.head)
        assert target is not None
        target[1](exchange)

    def _pinned(self, head: Head) -> tuple[Served, Handler] | None:
        """The inference on the version that the header names. Raises NotFound; InvalidInput if the path names another."""
        version = head.headers[VERSION].decode("latin-1")
        route = read_route(head.path)
        if route is None:
            return None
        name = self._name(route, head)
        model = self._data_plane.model(name, route.version)
        if route.version and model.version != version:
            raise InvalidInput(f"torpor-model-version = {version[:40]}, must be {model.version} as in the path")
        model = self._data_plane.model(name, version)
        return model, self._handler(route, model)

    def _inference(self, head: Head) -> tuple[Served, Handler] | None:
        """The model and handler of an inference's path, None for another path. Raises NotFound for an unknown model."""
        route = read_route(head.path)
        if route is None:
            return None
        model = self._data_plane.model(self._name(route, head), route.version)
        inference = model, self._handler(route, model)
        if route.name and len(self._inferences) < 1024:  # there are as many as models, spelt as callers spell them
            self._inferences[head.path] = inference
        return inference

    def _name(self, route: Route, head: Head) -> str:
        """The model's, which the query says where the path does not. Raises InvalidInput."""
        if route.name or not route.has_query:
            return route.name
        name = dict(parse_qsl(head.query)).get("model_name", "")
        names = self._data_plane.names()
        if not name and len(names) != 1:
            raise InvalidInput(f"parameter model_name is required, must be one of {', '.join(names)}")
        return name or names[0]

    def _handler(self, route: Route, model: Served) -> Handler:
        """Who answers the inference. Raises NotFound, NotSupported where the model has no such path."""
        if model.takes_calls:
            return partial(self._forward, route, model)
        if route.protocol == "predictions":
            raise NotFound(f"model '{model.name}' is none of TorchServe's, must be asked by /v1, /v2 or gRPC")
        if route.is_explained:
            raise NotSupported("explain is not supported: this server has no explainers")
        return partial(self._predict_v1 if route.protocol == "v1" else self._infer_v2, model)

    def _route(self, method: str, path: str) -> Handler:
        """The handler of a path. Raises NotFound, MethodNotAllowed, NotSupported."""
        match [unquote(part) for part in path.rstrip("/").split("/")]:
            case [""]:
                return self._reading(method, lambda: (200, {"status": "alive"}))
            case ["", "ping"]:
                return self._ping
            case ["", "metrics"]:
                if method not in ("GET", "HEAD"):
                    raise _not_allowed(method, "GET")
                return self._metrics
            case ["", "openapi.json"]:
                return self._reading(method, self._openapi)
            case ["", "wfpredict", *_]:
                raise NotSupported("workflows are not supported: call the models one after the other, or a transformer")
            case ["", "v1", "models"]:
                return self._reading(method, lambda: (200, {"models": self._data_plane.names()}))
            case ["", "v1", "models", name] if name.endswith(":predict"):
                raise _not_allowed(method, "POST")
            case ["", "v1", "models", _, "versions", version] if version.endswith(":predict"):
                raise _not_allowed(method, "POST")
            case ["", "v1", "models", *_, last] if last.endswith(":explain"):
                raise NotSupported("explain is not supported: this server has no explainers")
            case ["", "v1", "models", name]:
                return self._reading(method, partial(self._model_ready, name, ""))
            case ["", "v2"]:
                return self._reading(method, self._server_metadata)
            case ["", "v2", "health", "live"]:
                return self._reading(method, lambda: (200, {"live": True}))
            case ["", "v2", "health", "ready"]:
                return self._reading(method, self._server_ready)
            case ["", "v2", "models"]:
                return self._reading(method, lambda: (200, {"models": self._data_plane.names()}))
            case ["", "v2", "models", name, *rest]:
                return self._route_model(method, path, name, rest)
            case ["", "v2", "repository", "index"]:
                return self._asking(method, self._index)
            case ["", "v2", "repository", "models", name, "load"]:
                return self._asking(method, partial(self._load, name))
            case ["", "v2", "repository", "models", name, "unload"]:
                return self._asking(method, partial(self._unload, name))
        raise PathNotFound(f"path {path[:200]} is unknown")

    def _route_model(self, method: str, path: str, name: str, rest: list[str]) -> Handler:
        version = ""
        if rest[:1] == ["versions"] and len(rest) > 1:
            version, rest = rest[1], rest[2:]
        match rest:
            case []:
                return self._reading(method, lambda: (200, self._data_plane.metadata(name, version)))
            case ["ready"]:
                return self._reading(method, partial(self._model_ready, name, version))
            case ["infer"]:
                raise _not_allowed(method, "POST")
            case ["infer_stream" | "generate" | "generate_stream"]:
                raise NotSupported(f"{rest[0]} is not supported: this server does not stream, infer answers")
        raise PathNotFound(f"path {path[:200]} is unknown")

    def _reading(self, method: str, content: Callable[[], tuple[int, dict[str, object]]]) -> Handler:
        if method not in ("GET", "HEAD"):
            raise _not_allowed(method, "GET")

        def handler(exchange: Exchange) -> None:
            status, value = content()
            exchange.respond(status, orjson.dumps(value), JSON)

        return handler

    def _asking(self, method: str, answer: Callable[[Exchange], None]) -> Handler:
        if method != "POST":
            raise _not_allowed(method, "POST")
        return answer

    def _index(self, exchange: Exchange) -> None:
        only_ready = _object(exchange.body).get("ready", False)
        if not isinstance(only_ready, bool):
            raise InvalidInput(f"ready = {str(only_ready)[:40]!r}, must be true or false")
        exchange.respond(200, orjson.dumps(self._repository.index(only_ready)), JSON)

    def _load(self, name: str, exchange: Exchange) -> None:
        parameters = _object(exchange.body).get("parameters")
        self._change(exchange, name, "load", self._repository.load(name, parameters))

    def _unload(self, name: str, exchange: Exchange) -> None:
        self._change(exchange, name, "unload", self._repository.unload(name))

    def _change(self, exchange: Exchange, name: str, word: str, change: Coroutine[Any, Any, None]) -> None:
        async def answer() -> None:
            await change
            exchange.respond(200, orjson.dumps({"name": name, word: True}), JSON)

        self._do(exchange, answer())

    def _openapi(self) -> tuple[int, dict[str, object]]:
        takes_events = self._open_receiver is not None
        return 200, openapi.document(self._data_plane, self._repository.may_change, takes_events)

    def _server_metadata(self) -> tuple[int, dict[str, object]]:
        return 200, {"name": "torpor", "version": self._data_plane.version, "extensions": list(EXTENSIONS)}

    def _server_ready(self) -> tuple[int, dict[str, object]]:
        ready = self._data_plane.is_ready
        return 200 if ready else 503, {"ready": ready}

    def _model_ready(self, name: str, version: str) -> tuple[int, dict[str, object]]:
        model = self._data_plane.model(name, version)
        ready = self._data_plane.is_ready and model.is_ready
        return 200 if ready else 503, {"name": model.name, "ready": ready}

    def _ping(self, exchange: Exchange) -> None:
        """TorchServe's word for it; by any method."""
        is_healthy = self._data_plane.is_healthy
        exchange.respond(200 if is_healthy else 500, health_text(is_healthy).encode() + b"\n", JSON)

    def _metrics(self, exchange: Exchange) -> None:
        if self._colleagues is None:
            exchange.respond(200, self._data_plane.metrics.render(), _PROMETHEUS)
            return

        async def gather(colleagues: Colleagues) -> None:
            exchange.respond(200, await colleagues.metrics(), _PROMETHEUS)

        self._do(exchange, gather(self._colleagues))

    def _do(self, exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
        """Run what answers the exchange later; inferences have no task."""

        async def guarded() -> None:
            try:
                await work
            except Exception as error:
                self.fail(exchange, error)

        self._tasks.start(guarded(), exchange.head.path)

    def _inflate(self, handler: Handler, exchange: Exchange) -> None:
        """Call the handler when the body has been inflated."""

        def inflated(content: Result) -> None:
            try:
                exchange.body = content()
                handler(exchange)
            except Exception as error:
                self.fail(exchange, error)

        self._coder.inflate(exchange, exchange.body, exchange.head.options.coding, inflated)

    def _predict_v1(self, model: Served, exchange: Exchange) -> None:
        if model.is_retired:
            self._again(exchange)
            return
        requests = v1.decode(exchange.body, model.signature.names, model.signature.v1_datatypes)
        if len(requests) == 1:
            self._infer(model, exchange, requests[0], lambda response, terms: _encode_v1([response]))
            return

        def answer(results: list[Outputs] | TorporError) -> None:
            if isinstance(results, TorporError):
                self.fail(exchange, results)
                return
            try:
                body, fields = _encode_v1([model.response(NO_TERMS, outputs) for outputs in results])
            except Exception as error:
                self.fail(exchange, error)
                return
            self._requests["rest", "200"] += 1
            self._compress(exchange, body, fields)

        headers, span = self._data_plane.begin(model, exchange.head)
        together = Together(model, answer)
        together.start(requests, headers, exchange.timeout_s)
        exchange.on_leave = self._data_plane.leaving(together.cancel, together, span, together.parts)

    def _infer_v2(self, model: Served, exchange: Exchange) -> None:
        if model.is_retired:
            self._again(exchange)
            return
        length = exchange.head.headers.get(_JSON_LENGTH)
        if length is not None and not (length.isdigit() and len(length) < 20):
            raise InvalidInput(
                f"Inference-Header-Content-Length = {length.decode('latin-1')[:40]!r}, must be an integer"
            )
        request = v2_rest.decode(exchange.body, None if length is None else int(length))
        self._infer(model, exchange, request, _encode_v2)

    def _forward(self, route: Route, model: Served, exchange: Exchange) -> None:
        """Let a model that reads its requests itself have this one; tensors in binary are tensors by any protocol."""
        if model.is_retired:
            self._again(exchange)
            return
        head = exchange.head
        if route.protocol == "v2" and _JSON_LENGTH in head.headers and not route.is_explained:
            self._infer_v2(model, exchange)
            return
        headers, span = self._data_plane.begin(model, head)
        query = head.query if route.has_query else ""
        call = Call(route.protocol, headers or {}, exchange.body, route.is_explained, route.rest, query)
        started = model.call(call, exchange.timeout_s, partial(self._forwarded, exchange, route, model))
        exchange.on_leave = self._data_plane.leaving(partial(model.cancel, started), started, span)

    def _forwarded(self, exchange: Exchange, route: Route, model: Served, result: CallAnswer | TorporError) -> None:
        if isinstance(result, TorporError):
            self.fail(exchange, result)
            return
        fields = result.fields
        if route.protocol == "v1":
            fields = (*fields, (VERSION, model.version.encode()))
        if result.flow is not None:
            if not exchange.has_begun:
                if result.status in _BODILESS or exchange.head.method == "HEAD":
                    return
                exchange.begin(result.status, fields)
            pass_on(exchange, result.flow, result.body)
            return
        self._requests["rest", str(result.status)] += 1
        if exchange.has_begun:
            exchange.send(result.body)
            exchange.end()
        elif result.status == 200:
            self._compress(exchange, result.body, fields)
        else:
            exchange.respond(result.status, b"" if result.status in _BODILESS else result.body, fields)

    def _infer(self, model: Served, exchange: Exchange, request: InferRequest, encode: Encode) -> None:
        """Run the request; the answer comes when its batch has run."""
        answer = partial(self._answer, exchange, model, request.terms, encode)
        headers, span = self._data_plane.begin(model, exchange.head)
        started = model.start(request, headers, exchange.timeout_s, answer)
        exchange.on_leave = self._data_plane.leaving(partial(model.cancel, started), started, span)

    def _answer(
        self, exchange: Exchange, model: Served, terms: Terms, encode: Encode, result: Outputs | TorporError
    ) -> None:
        if isinstance(result, TorporError):
            self.fail(exchange, result)
            return
        try:
            body, fields = encode(model.response(terms, result), terms)
        except Exception as error:
            self.fail(exchange, error)
            return
        self._requests["rest", "200"] += 1
        if exchange.head.options.accepts:
            self._compress(exchange, body, fields)
        else:
            exchange.respond(200, body, fields)

    def _compress(self, exchange: Exchange, body: bytes, fields: Fields) -> None:
        """Answer in the coding that the caller accepts, if there is one and it is worth it."""
        coding = exchange.head.options.accepts
        if not coding or any(name == b"content-encoding" for name, _ in fields) or not is_worth_compressing(body):
            exchange.respond(200, body, fields)
            return
        fields = (*fields, (b"content-encoding", coding))
        self._coder.compress(exchange, body, coding, lambda content: exchange.respond(200, content(), fields))


def _may_infer(head: Head) -> bool:
    return head.method == "POST" or head.path.startswith(INFERENCES)


def _encode_v1(responses: Sequence[InferResponse]) -> tuple[bytes, Fields]:
    return v1.encode(responses), (*JSON, (VERSION, responses[0].model_version.encode()))


def _encode_v2(response: InferResponse, terms: Terms) -> tuple[bytes, Fields]:
    content, json_length = v2_rest.encode(response, terms.binary_outputs)
    return content, JSON if json_length is None else (_OCTETS, (_JSON_LENGTH, b"%d" % json_length))


def _object(body: bytes) -> dict[str, Any]:
    """A body that may be empty, or must be a JSON object."""
    try:
        value = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"the body is a {type(value).__name__}, must be an object")
    return value


def _not_allowed(method: str, allowed: str) -> MethodNotAllowed:
    return MethodNotAllowed(f"method {method} is not allowed, must be {allowed}")


def error_text(message: str) -> str:
    """An error's text, cut so that it stays short in any encoding, without characters that nobody can read."""
    text = message.encode("utf-8", "replace")[:MAX_ERROR_BYTES].decode("utf-8", "ignore")
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def error_body(message: str) -> bytes:
    """A REST error: its text as JSON."""
    text = error_text(message)
    while len(body := orjson.dumps({"error": text})) > MAX_ERROR_BODY_BYTES:  # it has many quotes
        text = text[: len(text) * 3 // 4]
    return body
