"""The calls of TorchServe's management API, however they come: parameters in, a status and what becomes JSON out."""

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson

from ..errors import Forbidden, InvalidInput
from ..serving.calls import Call, CallAnswer, in_one_piece
from ..serving.exchange import Exchange
from ..serving.settling import settling
from .description import describe
from .management import Management, Registration

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


class Parameters:
    """What is said, by name: texts, or values as JSON and protobuf have them. Raises InvalidInput for a value that is none."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self._said = said

    def __contains__(self, name: str) -> bool:
        return name in self._said

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


class ManagementCalls:
    """Each raises what is wrong with it, a TorporError."""

    def __init__(self, management: Management) -> None:
        self._management = management

    async def list(self, said: Parameters) -> Answer:
        names = self._management.names()
        limit = said.number("limit", _MOST_LISTED)
        first = said.number("next_page_token", 0)
        last = first + min(limit, _MOST_LISTED)
        page = [
            {"modelName": name, "modelUrl": self._management.served(name).origin.file} for name in names[first:last]
        ]
        # TorchServe has a token after the last page too, if that is full.
        return 200, {**({"nextPageToken": str(last)} if last <= len(names) else {}), "models": page}

    async def describe(self, said: Parameters, exchange: Exchange) -> Answer:
        """exchange: the caller's, of whose headers the handler may be told; one that leaves is not described to."""
        name, version = said.text("model_name"), said.text("model_version")
        if version == "all":
            return 200, [describe(served) for served in self._management.versions(name)]
        served = self._management.served(name, version)
        if not said.flag("customized", False):
            return 200, [describe(served)]
        # The handler is asked as for a prediction, and told by this header what for.
        call = Call("predictions", {**exchange.head.text_headers(), "describe": "True"}, b"", fields={})
        told: asyncio.Future[CallAnswer] = asyncio.get_running_loop().create_future()
        started = served.call(call, None, in_one_piece(settling(told)))

        def leave() -> None:
            served.cancel(started)
            told.cancel()

        exchange.on_leave = leave
        return 200, [describe(served) | _metadata((await told).body)]

    async def state(self, said: Parameters) -> Answer:
        """KServe's v1 has the same on the port of inferences."""
        name = said.text("model_name")
        return 200, {"name": name, "ready": self._management.served(name).is_ready}

    async def register(self, said: Parameters) -> Answer:
        self._check_may_register()
        file = said.text("url")
        if not file:
            raise InvalidInput("parameter url is required")
        settings = {key: said.number(name, 0) for name, key in _SETTINGS.items() if name in said}
        workers = said.number("initial_workers", 0, _MOST_WORKERS) if "initial_workers" in said else None
        asked = Registration(file, said.text("model_name"), said.text("handler"), workers, settings)
        served = await self._management.register(asked, said.flag("synchronous", True))
        if served is None:
            return 202, _status("Processing worker updates...")
        begin = (
            f'Model "{served.name}" Version: {served.version} registered with {served.least_workers} initial workers'
        )
        end = "" if served.least_workers else ". Use scale workers API to add workers for the model."
        return 200, _status(begin + end)

    async def scale(self, said: Parameters) -> Answer:
        name, version = said.text("model_name"), said.text("model_version")
        least = said.number("min_worker", 1, _MOST_WORKERS)
        most = said.number("max_worker", least, _MOST_WORKERS)
        waits = said.flag("synchronous", False)
        await self._management.scale(name, version, least, most, waits)
        if not waits:
            return 202, _status("Processing worker updates...")
        which = f", version: {version}" if version else ""
        return 200, _status(f"Workers scaled to {least} for model: {name}{which}")

    async def prefer(self, said: Parameters) -> Answer:
        name, version = said.text("model_name"), said.text("model_version")
        await self._management.prefer(name, version)
        return 200, _status(f'Default version successfully updated for model "{name}" to "{version}"')

    async def unregister(self, said: Parameters) -> Answer:
        self._check_may_register()
        name = said.text("model_name")
        await self._management.unregister(name, said.text("model_version"))
        return 200, _status(f'Model "{name}" unregistered')

    def _check_may_register(self) -> None:
        if not self._management.may_register:
            raise Forbidden("enable_model_api = false: models are not registered, nor unregistered")


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
