"""TorchServe's management API over REST: https://docs.pytorch.org/serve/management_api.html.

On a port of its own (`ManagementApp`), or on the server's (`serving/rest.py`). Bodies and statuses are TorchServe's.
"""

import json
import logging
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, unquote

import orjson

from ..errors import InvalidInput, MethodNotAllowed, ModelFailed, PathNotFound, TorporError
from ..serving.archive_errors import archive_error_body
from ..serving.calls import Call, CallAnswer
from ..serving.exchange import Exchange, Fields, Head
from ..serving.rest import JSON, Handler, error_text
from ..serving.tasks import Tasks
from .description import describe
from .management import Management, Registration

logger = logging.getLogger("torpor.torchserve")

MOST_BODY_BYTES = 1 << 20
"""A registration has a dozen short values."""

_MOST_LISTED = 100
_MOST = 1 << 31
_MOST_WORKERS = 1024

_SETTINGS = {
    "batch_size": "batchSize", "max_batch_delay": "maxBatchDelay", "response_timeout": "responseTimeout",
    "startup_timeout": "startupTimeout",
}  # fmt: skip
"""What a registration may say, by the keys of a model's YAML."""

Answer = tuple[int, object]
"""A status, and what becomes JSON."""


class ManagementApi:
    """Routes of the management API, over what does it."""

    def __init__(self, management: Management) -> None:
        self._management = management
        self._tasks = Tasks()

    def takes(self, head: Head) -> bool:
        """Whether a request is one of the API's, where the port has others; `/models/M/invoke` is an inference."""
        is_inference = head.method == "POST" and head.path.endswith("/invoke")
        return (head.path == "/models" or head.path.startswith("/models/")) and not is_inference

    def route(self, exchange: Exchange) -> Handler:
        """Who answers it. Raises PathNotFound, MethodNotAllowed."""
        head = exchange.head
        query = _Query(head.query)
        match (head.method, *map(unquote, head.path.rstrip("/").split("/")[1:])):
            case ("GET", "models"):
                return partial(_respond, self._list(query))
            case ("POST", "models") if self._management.may_register:
                return partial(self._register, query)
            case ("GET", "models", name):
                return partial(self._describe, query, name, "")
            case ("GET", "models", name, version):
                return partial(self._describe, query, name, version)
            case ("PUT", "models", name):
                return partial(self._scale, query, name, "")
            case ("PUT", "models", name, version):
                return partial(self._scale, query, name, version)
            case ("PUT", "models", name, version, "set-default"):
                return self._doing(self._prefer, name, version)
            case ("DELETE", "models", name) if self._management.may_register:
                return self._doing(self._unregister, name, "")
            case ("DELETE", "models", name, version) if self._management.may_register:
                return self._doing(self._unregister, name, version)
            case (_, "models") | (_, "models", _) | (_, "models", _, _) | (_, "models", _, _, "set-default"):
                raise MethodNotAllowed(f"method {head.method} is not allowed")
        raise PathNotFound(f"path {head.path[:200]} is unknown")

    def fail(self, exchange: Exchange, error: Exception) -> None:
        """Answer with an error."""
        if not isinstance(error, TorporError):
            logger.error("%s failed", exchange.head, exc_info=error)
            error = ModelFailed("internal error; the server's log has the details")
        status = error.http_status
        exchange.respond(status, archive_error_body(status, error_text(str(error)), error), JSON)

    def _list(self, query: "_Query") -> Answer:
        names = self._management.names()
        limit = query.number("limit", _MOST_LISTED)
        first = query.number("next_page_token", 0)
        last = first + min(limit, _MOST_LISTED)
        page = [
            {"modelName": name, "modelUrl": self._management.served(name).origin.file} for name in names[first:last]
        ]
        # TorchServe has a token after the last page too, if that is full.
        return 200, {**({"nextPageToken": str(last)} if last <= len(names) else {}), "models": page}

    def _describe(self, query: "_Query", name: str, version: str, exchange: Exchange) -> None:
        if version == "all":
            _respond((200, [describe(served) for served in self._management.versions(name)]), exchange)
            return
        served = self._management.served(name, version)
        if not query.flag("customized", False):
            _respond((200, [describe(served)]), exchange)
            return

        def told(result: CallAnswer | TorporError) -> None:
            if isinstance(result, TorporError):
                self.fail(exchange, result)
            else:
                _respond((200, [describe(served) | _metadata(result.body)]), exchange)

        # The handler is asked as for a prediction, and told by this header what for.
        call = Call("predictions", {**exchange.head.text_headers(), "describe": "True"}, b"", fields={})
        exchange.on_leave = partial(served.cancel, served.call(call, None, told))

    def _register(self, query: "_Query", exchange: Exchange) -> None:
        said = query.joined_by(exchange)
        file = said.text("url")
        if not file:
            raise InvalidInput("parameter url is required")
        settings = {key: said.number(name, 0) for name, key in _SETTINGS.items() if name in said}
        workers = said.number("initial_workers", 0, _MOST_WORKERS) if "initial_workers" in said else None
        asked = Registration(file, said.text("model_name"), said.text("handler"), workers, settings)

        async def register() -> Answer:
            served = await self._management.register(asked, said.flag("synchronous", True))
            if served is None:
                return 202, _status("Processing worker updates...")
            begin = f'Model "{served.name}" Version: {served.version} registered with {served.least_workers} initial workers'
            end = "" if served.least_workers else ". Use scale workers API to add workers for the model."
            return 200, _status(begin + end)

        self._do(exchange, register())

    def _scale(self, query: "_Query", name: str, version: str, exchange: Exchange) -> None:
        least = query.number("min_worker", 1, _MOST_WORKERS)
        most = query.number("max_worker", least, _MOST_WORKERS)
        waits = query.flag("synchronous", False)

        async def scale() -> Answer:
            await self._management.scale(name, version, least, most, waits)
            if not waits:
                return 202, _status("Processing worker updates...")
            which = f", version: {version}" if version else ""
            return 200, _status(f"Workers scaled to {least} for model: {name}{which}")

        self._do(exchange, scale())

    async def _prefer(self, name: str, version: str) -> Answer:
        await self._management.prefer(name, version)
        return 200, _status(f'Default version successfully updated for model "{name}" to "{version}"')

    async def _unregister(self, name: str, version: str) -> Answer:
        await self._management.unregister(name, version)
        return 200, _status(f'Model "{name}" unregistered')

    def _doing(self, what: Callable[[str, str], Coroutine[Any, Any, Answer]], name: str, version: str) -> Handler:
        return lambda exchange: self._do(exchange, what(name, version))

    def _do(self, exchange: Exchange, work: Coroutine[Any, Any, Answer]) -> None:
        """Answer when it is done."""

        async def guarded() -> None:
            try:
                _respond(await work, exchange)
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


class _Query:
    """Parameters by name; of one that is there twice the first. Raises InvalidInput for a value that is none."""

    def __init__(self, query: str) -> None:
        self._said: dict[str, Any] = dict(reversed(parse_qsl(query, keep_blank_values=True)))

    def __contains__(self, name: str) -> bool:
        return name in self._said

    def joined_by(self, exchange: Exchange) -> "_Query":
        """With what the body says, where it is JSON."""
        if exchange.head.headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            return self
        try:
            content = orjson.loads(exchange.body or b"{}")
        except orjson.JSONDecodeError as error:
            raise InvalidInput(f"the body is not valid JSON: {error}") from None
        if not isinstance(content, dict):
            raise InvalidInput(f"the body is a {type(content).__name__}, must be an object")
        self._said |= {name: value for name, value in content.items() if value is not None}
        return self

    def text(self, name: str) -> str:
        value = self._said.get(name, "")
        if not isinstance(value, str):
            raise InvalidInput(f"{name} is a {type(value).__name__}, must be a text")
        return value

    def number(self, name: str, default: int, most: int = _MOST) -> int:
        value = self._said.get(name, default)
        if isinstance(value, str) and value.isdecimal() and len(value) < 20:
            value = int(value)
        if type(value) is not int or not 0 <= value <= most:
            raise InvalidInput(f"{name} = {str(value)[:40]!r}, must be an integer in [0, {most}]")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self._said.get(name, default)
        if value in ("true", "True", True):
            return True
        if value in ("false", "False", False):
            return False
        raise InvalidInput(f"{name} = {str(value)[:40]!r}, must be true or false")


def _respond(answer: Answer, exchange: Exchange) -> None:
    status, content = answer
    exchange.respond(status, json.dumps(content, indent=2).encode() + b"\n", JSON)


def _status(text: str) -> Mapping[str, str]:
    return {"status": text}


def _metadata(body: bytes) -> dict[str, Any]:
    """The handler's own words on its model, if they are an object."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {"customizedMetadata": {}}
    if content is None:
        return {}
    return {"customizedMetadata": content if isinstance(content, dict) else {}}
