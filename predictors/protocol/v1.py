"""KServe's v1 protocol: `{"instances": [...]}` to `{"predictions": [...]}`.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol. Instances are the rows of the
model's only input, or objects with a value for each input by name. The datatypes come from the model's declaration;
without one they are what the JSON elements are. Predictions are rows too, or objects by name with several outputs.
Rows of different lengths make no array: each becomes a request of its own, which the batcher pads as any other.
What is declared as `json` stands in the rows as it is, and is BYTES of its text to the model.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import orjson

from ..errors import InvalidInput, ModelFailed
from .datatypes import JSON, Array, element_bytes, object_array
from .inference import InferRequest, InferResponse
from .json_numbers import numbers
from .json_tensor import array_from_json, array_of_unknown, json_from_array
from .v2_rest import parse_object

_BEGINNING = b'{"instances":'

_MOST_UNEQUAL_ROWS = 1024
"""Each of them costs about ten microseconds to read."""

Datatypes = dict[str, str]
"""The declared datatypes by input name, in the model's order."""


def decode(body: bytes, names: tuple[str, ...], datatypes: Datatypes) -> list[InferRequest]:
    """A v1 body; `names` are the model's inputs, () where it takes any. Raises InvalidInput.

    One request with all rows, or if they differ in shape one for each.
    """
    is_json = len(names) == 1 and datatypes.get(names[0]) == JSON
    if len(names) == 1 and not is_json and body.startswith(_BEGINNING) and body.endswith(b"}"):
        array = numbers(body[len(_BEGINNING) : -1], datatypes.get(names[0]))
        if array is not None:  # a list between them makes the whole a JSON object
            return [InferRequest({names[0]: array})]
    instances = parse_object(body).get("instances")
    if not isinstance(instances, list) or not instances:
        raise InvalidInput("instances must be a non-empty list of rows")
    columns = {names[0]: instances} if is_json else read_columns(instances, "instances", names)
    try:
        return [_request(columns, datatypes)]
    except InvalidInput:
        if not columns.keys() <= datatypes.keys():  # an undeclared datatype is that of all rows
            raise
    if len(instances) > _MOST_UNEQUAL_ROWS:
        raise InvalidInput(
            f"instances = {len(instances)} rows that are no tensor together, must be at most {_MOST_UNEQUAL_ROWS}"
        )
    requests: list[InferRequest] = []
    for position in range(len(instances)):
        row = {name: column[position : position + 1] for name, column in columns.items()}
        try:
            requests.append(_request(row, datatypes))
        except InvalidInput as error:
            raise InvalidInput(f"instances[{position}]: {error}") from None
    return requests


def read_columns(rows: list[Any], field: str, names: tuple[str, ...]) -> dict[str, list[object]]:
    """The values by name of rows that are objects, or are themselves the values of the only one of `names`.

    field: whose rows they are, and the name where there is none. Raises InvalidInput.
    """
    first = rows[0]
    if not isinstance(first, dict) or set(first) == {"b64"}:
        if len(names) > 1:
            raise InvalidInput(f"{field}[0] must be an object with the inputs {', '.join(names)}")
        return {names[0] if names else field: rows}
    columns: dict[str, list[object]] = {name: [] for name in first}
    for position, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != columns.keys():
            raise InvalidInput(f"{field}[{position}] must be an object with the inputs {', '.join(columns)}")
        for name, value in row.items():
            columns[name].append(value)
    return columns


def write_columns(columns: dict[str, Any]) -> Any:
    """Rows of what orjson can write: the values of the only column, or objects by name."""
    if len(columns) == 1:
        return next(iter(columns.values()))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def encode(responses: Sequence[InferResponse]) -> bytes:
    """The predictions, of the rows of all responses. Raises ModelFailed for what JSON cannot hold."""
    predictions = _predictions(responses[0])
    if len(responses) > 1:
        predictions = list(chain.from_iterable(map(_predictions, responses)))
    return orjson.dumps({"predictions": predictions}, option=orjson.OPT_SERIALIZE_NUMPY)


def _predictions(response: InferResponse) -> Any:
    """What orjson can write, one element a row."""
    return write_columns(
        {
            name: _values(name, array) if name in response.json_outputs else json_from_array(name, array)
            for name, array in response.outputs.items()
        }
    )


def _values(name: str, texts: Array) -> list[orjson.Fragment]:
    """What stands in the answer for JSON texts: they themselves. Raises ModelFailed for one that is none."""
    values: list[orjson.Fragment] = []
    for text in map(element_bytes, texts):
        try:
            orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise ModelFailed(f"output '{name}' is declared json and is none: {error}") from None
        values.append(orjson.Fragment(text))
    return values


def _request(columns: dict[str, list[object]], datatypes: Datatypes) -> InferRequest:
    return InferRequest({name: _column(name, column, datatypes.get(name)) for name, column in columns.items()})


def _column(name: str, values: list[object], datatype: str | None) -> Array:
    if datatype is None:
        return array_of_unknown(name, values)
    if datatype == JSON:
        try:
            return object_array([orjson.dumps(value) for value in values], [len(values)])
        except TypeError as error:  # orjson reads deeper than it writes
            raise InvalidInput(f"input '{name}': {error}") from None
    return array_from_json(name, values, datatype, None)
