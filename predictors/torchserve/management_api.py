"""TorchServe's management API, over REST (https://docs.pytorch.org/serve/management_api.html) and over its gRPC service.

On a port of its own (`ManagementApp`), or on the server's (`serving/app.py`). Bodies and statuses are TorchServe's.
"""

import json
import logging
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, unquote

import orjson

from ..errors import InvalidInput, MethodNotAllowed, ModelFailed, NotSupported, PathNotFound, TorporError
from ..protocol.messages import message
from ..serving import grpc_wire
from ..serving.archive_errors import archive_error_body
from ..serving.exchange import Exchange, Fields, Head
from ..serving.rest import JSON, Handler, error_text
from ..serving.tasks import Tasks
from .management import Management
from .management_calls import Answer, ManagementCalls, Parameters

logger = logging.getLogger("torpor.torchserve")

MOST_BODY_BYTES = 1 << 20
"""A registration has a dozen short values."""

_PACKAGE = "org.pytorch.serve.grpc.management"
_SERVICE = f"/{_PACKAGE}.ManagementAPIsService/"


class ManagementApi:
    """Routes of the management API, over its calls."""

    def __init__(self, management: Management) -> None:
        self._may_register = management.may_register
        self._calls = ManagementCalls(management)
        self._tasks = Tasks()

    def takes(self, head: Head) -> bool:
        """Whether a request is one of the API's, where the port has others; `/models/M/invoke` is an inference."""
        if head.is_grpc:
            return head.path.startswith(_SERVICE)
        is_inference = head.method == "POST" and head.path.endswith("/invoke")
        return head.path.split("/")[1:2] in (["models"], ["workflows"]) and not is_inference

    def route(self, exchange: Exchange) -> Handler:
        """Who answers it. Raises PathNotFound, MethodNotAllowed, NotSupported."""
        if exchange.head.is_grpc:
            return self._route_grpc(exchange)
        head, calls = exchange.head, self._calls
        match (head.method, *map(unquote, head.path.rstrip("/").split("/")[1:])):
            case ("GET", "models"):
                return self._doing(calls.list)
            case ("POST", "models") if self._may_register:
                return self._doing(calls.register)
            case ("GET", "models", name):
                return self._doing(partial(calls.describe, exchange=exchange), name)
            case ("GET", "models", name, version):
                return self._doing(partial(calls.describe, exchange=exchange), name, version)
            case ("GET", "v1", "models", name):
                return self._doing(calls.state, name)
            case ("PUT", "models", name):
                return self._doing(calls.scale, name)
            case ("PUT", "models", name, version):
                return self._doing(calls.scale, name, version)
            case ("PUT", "models", name, version, "set-default"):
                return self._doing(calls.prefer, name, version)
            case ("DELETE", "models", name) if self._may_register:
                return self._doing(calls.unregister, name)
            case ("DELETE", "models", name, version) if self._may_register:
                return self._doing(calls.unregister, name, version)
            case (_, "models") | (_, "models", _) | (_, "models", _, _) | (_, "models", _, _, "set-default"):
                raise MethodNotAllowed(f"method {head.method} is not allowed")
            case (_, "workflows", *_):
                raise NotSupported("workflows are not supported: call the models one after the other, or a transformer")
        raise PathNotFound(f"path {head.path[:200]} is unknown")

    def fail(self, exchange: Exchange, error: Exception) -> None:
        """Answer with an error."""
        if exchange.head.is_grpc:
            grpc_wire.refuse(exchange, error)
            return
        if not isinstance(error, TorporError):
            logger.error("%s failed", exchange.head, exc_info=error)
            error = ModelFailed("internal error; the server's log has the details")
        status = error.http_status
        exchange.respond(status, archive_error_body(status, error_text(str(error)), error), JSON)

    def _doing(
        self, call: Callable[[Parameters], Coroutine[Any, Any, Answer]], name: str = "", version: str = ""
    ) -> Handler:
        """Answers with what the call gives for the query, the body where that is JSON, and what the path says."""

        def handler(exchange: Exchange) -> None:
            said = _said(exchange)
            if name:
                said |= {"model_name": name, "model_version": version}
            self._do(exchange, call(Parameters(said)), _respond)

        return handler

    def _route_grpc(self, exchange: Exchange) -> Handler:
        """Raises NotSupported."""
        path = exchange.head.path
        calls, name = self._calls, path.removeprefix(_SERVICE)
        call: Callable[[Parameters], Coroutine[Any, Any, Answer]]
        match name:
            case "DescribeModel":
                call = partial(calls.describe, exchange=exchange)
            case "ListModels":
                call = calls.list
            case "RegisterModel":
                call = calls.register
            case "ScaleWorker":
                call = calls.scale
            case "SetDefault":
                call = calls.prefer
            case "UnregisterModel":
                call = calls.unregister
            case _:
                raise NotSupported(f"method {path[:200]} is unknown")

        def handler(exchange: Exchange) -> None:
            request = grpc_wire.read(exchange, f"{_PACKAGE}.{name}Request")
            # A number that is 0, and a text that is empty, is one that was not given.
            said = {field.name: value for field, value in request.ListFields()}
            self._do(exchange, call(Parameters({"synchronous": False, **said})), _respond_grpc)

        return handler

    def _do(
        self, exchange: Exchange, work: Coroutine[Any, Any, Answer], respond: Callable[[Exchange, Answer], None]
    ) -> None:
        """Answer when it is done; a caller that leaves does not undo it."""

        async def guarded() -> None:
            try:
                respond(exchange, await work)
            except Exception as error:
                self.fail(exchange, error)

        self._tasks.start(guarded(), str(exchange.head))


class ManagementApp:
    """The application of a port that has nothing else."""

    def __init__(self, api: ManagementApi) -> None:
        self._api = api

    def open(self, exchange: Exchange) -> bool:
        try:
            exchange.handler = self._api.route(exchange)
        except Exception as error:
            self._api.fail(exchange, error)
            return False
        return True

    def answer(self, exchange: Exchange) -> None:
        assert exchange.handler is not None
        try:
            exchange.handler(exchange)
        except Exception as error:
            self._api.fail(exchange, error)

    def refuse(self, exchange: Exchange, error: TorporError) -> None:
        self._api.fail(exchange, error)

    def malformed(self, error: TorporError) -> tuple[bytes, Fields]:
        return archive_error_body(error.http_status, error_text(str(error)), error), JSON


def _said(exchange: Exchange) -> dict[str, Any]:
    """What the query says, of a parameter that is there twice the first, and the body before it. Raises InvalidInput."""
    head = exchange.head
    said: dict[str, Any] = dict(reversed(parse_qsl(head.query, keep_blank_values=True)))
    is_json = head.headers.get(b"content-type", b"").partition(b";")[0].strip().lower() == b"application/json"
    if head.method != "POST" or not is_json:
        return said
    try:
        content = orjson.loads(exchange.body or b"{}")
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InvalidInput(f"the body is a {type(content).__name__}, must be an object")
    return said | {name: value for name, value in content.items() if value is not None}


def _respond(exchange: Exchange, answer: Answer) -> None:
    status, content = answer
    exchange.respond(status, json.dumps(content, indent=2).encode() + b"\n", JSON)


def _respond_grpc(exchange: Exchange, answer: Answer) -> None:
    _, content = answer
    text = content["status"] if isinstance(content, Mapping) and "status" in content else json.dumps(content, indent=2)
    grpc_wire.respond(exchange, message(f"{_PACKAGE}.ManagementResponse")(msg=text))
