"""Requests that a model reads itself: an HTTP request's headers and body as they came, and the HTTP answer it gives.

For models whose handlers have a protocol of their own; `Served.call` is their way over REST. An answer may come in pieces.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol
from urllib.parse import unquote

from ..errors import TorporError
from .exchange import Exchange, Fields


@dataclass(frozen=True, slots=True)
class Call:
    """A request. protocol: of its path: "predictions", "v1" or "v2". path: what follows the model's name and version in it.

    query: of the path, where its parameters are fields of the request. fields: all that it has, by name, instead of a body.
    """

    protocol: str
    headers: Mapping[str, str]
    body: bytes
    is_explained: bool = False
    path: str = ""
    query: str = ""
    fields: Mapping[str, bytes] | None = None


class Flow(Protocol):
    """Where the pieces of answers come from."""

    def hold(self, by: object) -> None:
        """Let none come until `by` lets go."""

    def let_go(self, by: object) -> None: ...


@dataclass(frozen=True, slots=True)
class CallAnswer:
    """The answer, as the model wants it; or a piece of it, of which the first one's status and fields are the answer's.

    flow: where a piece comes from, after which others come, or an error; None for the whole answer, or its last piece.
    """

    status: int
    body: bytes
    fields: Fields = field(default_factory=tuple)
    flow: Flow | None = None


Answered = Callable[[CallAnswer | TorporError], None]
"""Gets an answer: pieces, if it comes in pieces, and at last the rest of it, or an error."""


def in_one_piece(answer: Answered) -> Answered:
    """For who wants the answer when it is whole: pieces are its beginning."""
    pieces: list[bytes] = []

    def take(result: CallAnswer | TorporError) -> None:
        if isinstance(result, TorporError) or not (result.flow or pieces):
            answer(result)
        elif result.flow is not None:
            pieces.append(result.body)
        else:
            answer(replace(result, body=b"".join([*pieces, result.body])))

    return take


def pass_on(exchange: Exchange, flow: Flow, data: bytes) -> None:
    """Send a piece of an answer; who is behind holds up where it comes from."""
    if not exchange.send(data):
        flow.hold(exchange)
        exchange.on_ready = lambda: flow.let_go(exchange)


class Route(NamedTuple):
    """What an inference's path says. version: "" for the default. rest: what follows, "" in most protocols.

    has_query: parameters are fields of the request. Then the name may be "": one of them says it, or there is one model.
    """

    protocol: str
    name: str
    version: str = ""
    is_explained: bool = False
    rest: str = ""
    has_query: bool = False


_V1_VERBS = ("predict", "explain")


def read_route(path: str) -> Route | None:
    """The inference that a path names, None for another path.

    TorchServe's own are https://docs.pytorch.org/serve/inference_api.html, and at the end its older ones.
    """
    match [unquote(part) for part in path.rstrip("/").split("/")[1:]]:
        case [("predictions" | "explanations") as verb, name, *more]:
            return Route("predictions", name, more[0] if more else "", verb == "explanations", "/".join(more[1:]))
        case ["v1", "models", last]:
            name, _, word = last.rpartition(":")
            return Route("v1", name, "", word == "explain") if name and word in _V1_VERBS else None
        case ["v1", "models", name, "versions", last]:
            version, _, word = last.rpartition(":")
            return Route("v1", name, version, word == "explain") if version and word in _V1_VERBS else None
        case ["v2", "models", name, ("infer" | "explain") as verb]:
            return Route("v2", name, "", verb == "explain")
        case ["v2", "models", name, "versions", version, ("infer" | "explain") as verb]:
            return Route("v2", name, version, verb == "explain")
        case ["invocations"]:
            return Route("predictions", "", has_query=True)
        case ["models", name, "invoke"] | [name, "predict"]:
            return Route("predictions", name, has_query=True)
        case [name, version, "predict"]:
            return Route("predictions", name, version, has_query=True)
    return None


def health_text(is_healthy: bool) -> str:
    """What TorchServe answers a ping with, over gRPC as over HTTP."""
    return f'{{\n  "status": "{"Healthy" if is_healthy else "Unhealthy"}"\n}}'
