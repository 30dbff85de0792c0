"""Requests over HTTP, and which protocol a predictor speaks."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from torpor.predictors.errors import InvalidInput, NotFound, TorporError, Unavailable
from torpor.predictors.protocol.inference import InferRequest, InferResponse
from torpor.predictors.protocol.v2_rest import parse_object

from .answers import error_of_http, malformed
from .connection import Exchange
from .message import Encoded, Reply, head
from .passing_on import fields
from .pool import Pool
from .v1 import V1
from .v2_rest import V2Rest

Answer = Callable[[InferResponse | TorporError], None]

_BINARY_EXTENSION = "binary_tensor_data"


class Wire(Protocol):
    """A protocol's form of one model's requests and answers."""

    name: str
    model_path: str
    ready_path: str

    def encode(self, request: InferRequest) -> Encoded: ...
    def decode(self, reply: Reply, request: InferRequest) -> InferResponse: ...


class Rest:
    """A model at the end of a pool, asked in one protocol."""

    def __init__(self, pool: Pool, wire: Wire) -> None:
        self._pool = pool
        self.wire = wire
        self.protocol = wire.name

    def start(
        self, request: InferRequest, kept: Mapping[str, str], timeout_s: float | None, answer: Answer
    ) -> Exchange:
        """kept: the fields that go on. Raises InvalidInput, QueueFull, Unavailable, and then does not call `answer`."""
        start, body = self.wire.encode(request)
        return self._pool.send([start, fields(kept, timeout_s), *body], partial(self._answered, request, answer))

    async def metadata(self, kept: Mapping[str, str]) -> dict[str, Any]:
        """What the predictor says of the model. Raises a TorporError."""
        reply = await get(self._pool, self.wire.model_path, kept)
        if reply.status != 200:
            raise error_of_http(reply.status, reply.headers, reply.body, 0)
        said = _object(reply)
        if said is None:
            raise malformed("the metadata are no JSON object")
        return said

    async def is_ready(self, kept: Mapping[str, str]) -> bool:
        """Raises NotFound for a model that the predictor does not have."""
        reply = await get(self._pool, self.wire.ready_path, kept)
        if reply.status == 404:
            raise error_of_http(reply.status, reply.headers, reply.body, 0)
        said = _object(reply) or {}  # v2 may answer with an empty body; v1, and KServe's v2, say it
        return reply.status == 200 and said.get("ready", True) in (True, "True", "true")

    async def close(self) -> None:
        await self._pool.close()

    def _answered(self, request: InferRequest, answer: Answer, reply: Reply | TorporError) -> None:
        result: InferResponse | TorporError
        if isinstance(reply, TorporError):
            result = reply
        elif reply.status == 200:
            try:
                result = self.wire.decode(reply, request)
            except TorporError as error:
                result = error
        else:
            rows = max((len(array) for array in request.inputs.values() if array.ndim), default=0)
            result = error_of_http(reply.status, reply.headers, reply.body, rows)
        answer(result)


def rest(pool: Pool, model_name: str, protocol: str) -> Rest:
    """The model in one of v1, v2-json, v2-binary."""
    prefix, authority = pool.address.prefix, pool.address.authority
    if protocol == "v1":
        return Rest(pool, V1(model_name, prefix, authority))
    return Rest(pool, V2Rest(model_name, prefix, authority, binary=protocol == "v2-binary"))


async def discover(pool: Pool, model_name: str, kept: Mapping[str, str], *, may_be_v1: bool) -> Rest:
    """The model in the best protocol that its predictor says it has: binary v2, JSON v2, v1. Raises a TorporError."""
    candidates = [rest(pool, model_name, "v2-json"), *([rest(pool, model_name, "v1")] if may_be_v1 else [])]
    tried: list[str] = []
    for candidate in candidates:
        path = candidate.wire.model_path
        reply = await get(pool, path, kept)
        if reply.status == 200 and _object(reply) is not None:
            if candidate.protocol == "v2-json" and await _has_binary(pool, kept):
                return rest(pool, model_name, "v2-binary")
            return candidate
        error = error_of_http(reply.status, reply.headers, reply.body, 0)
        if isinstance(error, Unavailable) or reply.status in (401, 403):
            raise error
        tried.append(f"{path} answered {reply.status}")
    raise NotFound(f"the predictor at {pool.address} has no model '{model_name}': {', '.join(tried)}")


async def _has_binary(pool: Pool, kept: Mapping[str, str]) -> bool:
    """Whether the server's metadata name the extension; a server without metadata has none."""
    reply = await get(pool, f"{pool.address.prefix}/v2", kept)
    extensions = (_object(reply) or {}).get("extensions") if reply.status == 200 else None
    return isinstance(extensions, list) and _BINARY_EXTENSION in extensions


async def get(pool: Pool, path: str, kept: Mapping[str, str]) -> Reply:
    """Raises Unavailable, PredictorFailed."""
    return await pool.ask([head(path, pool.address.authority, None), fields(kept, None)])


def _object(reply: Reply) -> dict[str, Any] | None:
    try:
        return parse_object(reply.body)
    except InvalidInput:
        return None
