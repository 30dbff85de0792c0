"""Requests that a model reads itself: an HTTP request's headers and body as they came, and the HTTP answer it gives.

For models whose handlers have a protocol of their own; `Served.call` is their way over REST.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote

from .exchange import Fields


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


@dataclass(frozen=True, slots=True)
class CallAnswer:
    """The answer, as the model wants it."""

    status: int
    body: bytes
    fields: Fields = field(default_factory=tuple)


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
