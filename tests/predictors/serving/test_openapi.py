"""The OpenAPI document: valid, complete, and true of what the server takes and gives."""

import ast
import inspect
import itertools
import json
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from torpor.predictors.errors import MethodNotAllowed, NotFound, NotSupported
from torpor.predictors.serving import calls
from torpor.predictors.serving.content_coding import ContentCoder
from torpor.predictors.serving.data_plane import DataPlane, Served
from torpor.predictors.serving.exchange import Exchange, Head
from torpor.predictors.serving.openapi import document
from torpor.predictors.serving.repository import Repository
from torpor.predictors.serving.request_options import read_options
from torpor.predictors.serving.rest import Rest
from torpor.predictors.signature import Signature


class Model(Served):
    """Of either kind."""

    name, signature, measured = "m", Signature(), ()

    def __init__(self, version: str, takes_calls: bool) -> None:
        self.version, self.takes_calls = version, takes_calls

    def check_room(self) -> None:
        pass


class Nothing:
    """A catalog, and what answers events."""

    def names(self) -> list[str]:
        return []

    def model(self, name: str) -> Any:
        raise AssertionError

    def handler(self, model: Served | None, version: str = "") -> Any:
        return self.names


def words(pattern: ast.pattern) -> list[list[str]]:
    """What may stand in a path for a part of a `case`: for its variables the model `m`, version 1, and inferences on them."""
    match pattern:
        case ast.MatchValue(ast.Constant(str(word))):
            return [[word]]
        case ast.MatchOr(patterns):
            return [one for choice in patterns for one in words(choice)]
        case ast.MatchAs(ast.pattern() as inner, _):
            return words(inner)
        case ast.MatchAs(None, "version"):
            return [["1"]]
        case ast.MatchAs(None, "last"):
            return [["m:predict"], ["m:explain"], ["1:predict"], ["1:explain"]]
        case ast.MatchAs(None, "name" | None):
            return [["m"]]
        case ast.MatchStar():
            return [[], ["1"]]
    raise AssertionError(ast.dump(pattern))


def paths(function: Callable[..., object]) -> Iterator[tuple[str, ...]]:
    """Paths, in parts, of all kinds that the function's `match` tells apart."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for case in (node for node in ast.walk(tree) if isinstance(node, ast.match_case)):
        choices = case.pattern.patterns if isinstance(case.pattern, ast.MatchOr) else [case.pattern]
        for sequence in choices:
            assert isinstance(sequence, ast.MatchSequence)
            for choice in itertools.product(*map(words, sequence.patterns)):
                yield tuple(itertools.chain(*choice))


@pytest.mark.parametrize("takes_calls", [False, True], ids=["model", "archive"])
@pytest.mark.parametrize("may_change", [False, True], ids=["fixed", "explicit"])
@pytest.mark.parametrize("takes_events", [False, True], ids=["requests", "events"])
def test_the_document_has_every_route_and_no_other(takes_calls: bool, may_change: bool, takes_events: bool) -> None:
    """What is routed, by the routers' own patterns; `/ping` is one path by whatever method."""
    data_plane = DataPlane("0")
    data_plane.is_ready = True
    data_plane.publish("m", [Model("1", takes_calls)])
    repository = Repository(Nothing(), data_plane, may_change)
    receiver: Any = (lambda _: Nothing()) if takes_events else None
    rest = Rest(data_plane, repository, ContentCoder(1, 1), None, receiver)
    headers = {b"ce-id": b"1"}

    def is_served(method: str, path: str) -> bool:
        try:
            rest.route(Exchange(Head(method, path, headers, 0, options=read_options(headers))))
        except (NotFound, MethodNotAllowed, NotSupported):
            return False
        return may_change or not path.endswith("load")

    routed = {*paths(Rest._route), *(("", *path) for path in paths(calls.read_route))}
    for version in ((), ("versions", "1")):
        routed |= {("", "v2", "models", "m", *version, *path) for path in paths(Rest._route_model)}
    asked = itertools.product(("get", "post"), ("/".join(parts) or "/" for parts in routed))
    served = {(method, path) for method, path in asked if is_served(method.upper(), path)}
    said = document(data_plane, may_change, takes_events)["paths"]
    documented = {(method, path.replace("{model}", "m")) for path, operations in said.items() for method in operations}
    assert documented == served - {("post", "/ping")}


def test_the_document_names_what_a_version_is_pinned_by() -> None:
    """A path, or a header where the path names none; v1 says which version has answered."""
    data_plane = DataPlane("0")
    data_plane.publish("m", [Model(version, False) for version in ("2", "1")])
    said = document(data_plane, may_change=False, takes_events=True)["paths"]
    for path in ("/", "/v1/models/m:predict", "/v2/models/m/infer"):
        headers = {one["name"]: one["schema"] for one in said[path]["post"]["parameters"]}
        assert headers["torpor-model-version"] == {"enum": ["2", "1"]}
    assert "parameters" not in said["/v2/models/m/versions/1/infer"]["post"]
    answer = said["/v1/models/m:predict"]["post"]["responses"]["200"]
    assert [*answer["headers"]] == ["torpor-model-version"]


def test_events_at_the_root_are_for_the_only_model() -> None:
    """Of several models nobody would know which is meant."""
    data_plane = DataPlane("0")
    for name in ("a", "b"):
        data_plane.publish(name, [Model("1", False)])
    said = document(data_plane, may_change=False, takes_events=True)["paths"]
    assert [*said["/"]] == ["get"]
    assert "application/cloudevents+json" in said["/v1/models/a:predict"]["post"]["requestBody"]["content"]


@pytest.mark.parametrize("model", ["echo", "marked", "halves", "asks"])
def test_the_document_is_valid(connect, serve, echo, marked, model: str) -> None:
    """By the specification's own schema, for models with every kind of declaration and with none."""
    server = {"echo": echo, "marked": marked}.get(model) or serve(model)
    document = connect(server).request("GET", "/openapi.json").json()
    OpenAPIV31SpecValidator(document).validate()
    for path in (f"/v2/models/{model}", f"/v2/models/{model}/versions/1"):
        assert f"{path}/infer" in document["paths"]


EVENT = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": {"instances": [[1, 2]]}}


def fits(document: dict, path: str, which: str, value: object, media: str = "application/json") -> bool:
    place = "requestBody" if which == "request" else "responses/200"
    pointer = f"/paths/{path.replace('/', '~1')}/post/{place}/content/{media.replace('/', '~1')}/schema"
    registry = Registry().with_resource("urn:document", Resource(document, DRAFT202012))
    schema = {"$ref": f"urn:document#{pointer}"}
    return jsonschema.Draft202012Validator(schema, registry=registry).is_valid(value)


@pytest.mark.parametrize(
    ("path", "request_", "is_good"),
    [
        ("/v1/models/marked:predict", {"instances": [[1, 2]]}, True),
        ("/v1/models/marked:predict", {"instances": [[1, 2, 3]]}, False),
        ("/v1/models/marked:predict", {"instances": [["1", 2]]}, False),
        ("/v1/models/marked:predict", {"rows": [[1, 2]]}, False),
        ("/v2/repository/index", {}, True),
        ("/v2/repository/index", {"ready": True}, True),
        ("/v2/repository/index", {"ready": 1}, False),
        ("/v2/models/marked/infer", {}, True),
        ("/v2/models/marked/infer", {"name": "y"}, False),
        ("/v2/models/marked/infer", {"datatype": "FP64"}, False),
        ("/v2/models/marked/infer", {"shape": [1, 3], "data": [1, 2, 3]}, False),
        ("/v2/models/marked/infer", {"shape": [2], "data": [1, 2]}, False),
        ("/v2/models/marked/infer", {"parameters": {"a": []}}, False),
    ],
)
def test_the_document_says_what_the_server_takes(connect, marked, path: str, request_: dict, is_good: bool) -> None:
    """A request fits its schema if and only if the server answers it, and then the answer fits too."""
    connection = connect(marked)
    document = connection.request("GET", "/openapi.json").json()
    if path.startswith("/v2/models"):
        request_ = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]} | request_]}
    reply = connection.request("POST", path, json.dumps(request_).encode())
    assert (reply.status == 200, fits(document, path, "request", request_)) == (is_good, is_good), reply
    if is_good:
        assert fits(document, path, "response", reply.json())


@pytest.mark.parametrize("path", ["/", "/v1/models/marked:predict", "/v2/models/marked/infer"])
@pytest.mark.parametrize("missing", ["", "id", "source", "type", "specversion"])
def test_the_document_says_what_an_event_is(connect, marked, path: str, missing: str) -> None:
    """Structured or in a batch, in what is asked and in what is answered."""
    connection = connect(marked)
    document = connection.request("GET", "/openapi.json").json()
    event = {name: value for name, value in EVENT.items() if name != missing}
    for media, value in (("application/cloudevents+json", event), ("application/cloudevents-batch+json", [event])):
        reply = connection.request("POST", path, json.dumps(value).encode(), {"content-type": media})
        assert (reply.status == 200, fits(document, path, "request", value, media)) == (not missing, not missing)
        if not missing:
            assert fits(document, path, "response", json.loads(reply.body), media)
