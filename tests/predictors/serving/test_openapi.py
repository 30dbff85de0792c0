"""The OpenAPI document: valid, and true of what the server takes and gives."""

import json

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012


@pytest.mark.parametrize("model", ["echo", "marked", "halves", "asks"])
def test_the_document_is_valid(connect, serve, echo, marked, model: str) -> None:
    """By the specification's own schema, for models with every kind of declaration and with none."""
    server = {"echo": echo, "marked": marked}.get(model) or serve(model)
    document = connect(server).request("GET", "/openapi.json").json()
    OpenAPIV31SpecValidator(document).validate()
    for path in (f"/v2/models/{model}", f"/v2/models/{model}/versions/1"):
        assert f"{path}/infer" in document["paths"]


def fits(document: dict, path: str, which: str, value: object) -> bool:
    place = "requestBody" if which == "request" else "responses/200"
    pointer = f"/paths/{path.replace('/', '~1')}/post/{place}/content/application~1json/schema"
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
    if path.startswith("/v2"):
        request_ = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]} | request_]}
    reply = connection.request("POST", path, json.dumps(request_).encode())
    assert (reply.status == 200, fits(document, path, "request", request_)) == (is_good, is_good), reply
    if is_good:
        assert fits(document, path, "response", reply.json())
