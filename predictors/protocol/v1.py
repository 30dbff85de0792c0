"""KServe's v1 protocol: `{"instances": [...]}` to `{"predictions": [...]}`.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol. Instances are the rows of the
model's only input, or objects with a value for each input by name. The datatypes come from the model's declaration;
without one they are what the JSON elements are. Predictions are rows too, or objects by name with several outputs.
"""

import orjson

from ..errors import InvalidInput
from .datatypes import Array
from .inference import InferRequest, InferResponse
from .json_numbers import numbers
from .json_tensor import array_from_json, array_of_unknown, json_from_array
from .v2_rest import parse_object

_BEGINNING = b'{"instances":'

Datatypes = dict[str, str]
"""The declared datatypes by input name, in the model's order."""


def decode(body: bytes, names: tuple[str, ...], datatypes: Datatypes) -> InferRequest:
    """A v1 body; `names` are the model's inputs, () where it takes any. Raises InvalidInput."""
    if len(names) == 1 and body.startswith(_BEGINNING) and body.endswith(b"}"):
        array = numbers(body[len(_BEGINNING) : -1], datatypes.get(names[0]))
        if array is not None:  # a list between them makes the whole a JSON object
            return InferRequest({names[0]: array})
    instances = parse_object(body).get("instances")
    if not isinstance(instances, list) or not instances:
        raise InvalidInput("instances must be a non-empty list of rows")
    first = instances[0]
    by_name = isinstance(first, dict) and set(first) != {"b64"}
    if not by_name:
        if len(names) > 1:
            raise InvalidInput(f"instances[0] must be an object with the inputs {', '.join(names)}")
        columns: dict[str, list[object]] = {names[0] if names else "instances": instances}
    else:
        columns = {name: [] for name in first}
        for position, instance in enumerate(instances):
            if not isinstance(instance, dict) or instance.keys() != columns.keys():
                raise InvalidInput(f"instances[{position}] must be an object with the inputs {', '.join(columns)}")
            for name, value in instance.items():
                columns[name].append(value)
    return InferRequest({name: _column(name, column, datatypes.get(name)) for name, column in columns.items()})


def encode(response: InferResponse) -> bytes:
    """The predictions. Raises ModelFailed for what JSON cannot hold."""
    columns = {name: json_from_array(name, array) for name, array in response.outputs.items()}
    if len(columns) == 1:
        predictions = next(iter(columns.values()))
    else:
        predictions = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return orjson.dumps({"predictions": predictions}, option=orjson.OPT_SERIALIZE_NUMPY)


def _column(name: str, values: list[object], datatype: str | None) -> Array:
    if datatype is None:
        return array_of_unknown(name, values)
    return array_from_json(name, values, datatype, None)
