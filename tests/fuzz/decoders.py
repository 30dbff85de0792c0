"""Bodies and files: any bytes are a request or an error of the caller's, and a quick way reads what the general one reads."""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
from choices import Choices
from torpor.predictors.errors import InvalidInput, TorporError
from torpor.predictors.protocol import v1, v2_grpc, v2_rest
from torpor.predictors.protocol.datatypes import DTYPES, Array
from torpor.predictors.protocol.inference import InferRequest
from torpor.predictors.protocol.json_numbers import numbers
from torpor.predictors.protocol.json_tensor import array_from_json
from torpor.predictors.serving.content_coding import Inflation
from torpor.predictors.settings import ModelFile, SettingError, resolve

DATATYPES = (*DTYPES, "fp32", "")
SCALARS = (
    b"0", b"1", b"-1", b"-0", b"-0.0", b"1.5", b"1e2", b"1E400", b"-1e-400", b"3.5e38", b"255", b"256", b"65504", b"65520",
    b"2147483647", b"2147483648", b"-2147483649", b"9223372036854775807", b"9223372036854775808", b"-9223372036854775809",
    b"18446744073709551615", b"18446744073709551616", b"9007199254740993", b"0.1", b"01", b"1.", b".5", b"+1", b"NaN",
    b"Infinity", b"true", b"false", b"null", b'"a"', b'"data"', b'"\\ud800"', b'"\xff"', b'"\\u0000"', b'{"b64":"aQ=="}',
    b'{"b64":"?"}', b'{"b64":1}', b"{}", b"[]", b"",
)  # fmt: skip
SHAPES = (
    b"[1]",
    b"[2]",
    b"[1,2]",
    b"[2,1]",
    b"[3]",
    b"[0]",
    b"[]",
    b"[2,0,3]",
    b"[-1]",
    b"[1,1,1]",
    b"[4294967296,0]",
    b"[1.0]",
)
SPACES = (b"", b"", b"", b" ", b"\n\t", b"\r\n ")


def json_list(choices: Choices, depth: int = 0) -> bytes:
    """Numbers mostly, in lists mostly equal."""
    size = choices.below(5)
    if depth < 3 and choices.below(4) == 1:
        elements = [json_list(choices, depth + 1)] * size if choices.below(2) else [
            json_list(choices, depth + 1) for _ in range(size)
        ]  # fmt: skip
    elif choices.below(2):
        elements = [choices.pick(SCALARS[:22]) for _ in range(size)]
    else:
        elements = [json_value(choices, depth + 1) for _ in range(size)]
    return b"[" + (b"," + choices.pick(SPACES)).join(elements) + b"]" * (choices.below(32) != 31)


def json_value(choices: Choices, depth: int = 0) -> bytes:
    match choices.below(8):
        case 0 if depth < 4:
            return json_list(choices, depth + 1)
        case 1:
            return choices.take(choices.below(12))
        case 2 if depth < 4:
            return json_object(choices, [b"name", b"b64", b"data"], {}, depth + 1)
        case 3:
            return b"%s%d%s" % (
                choices.pick((b"", b"-")),
                int.from_bytes(choices.take(9)),
                choices.pick((b"", b".0", b"e1", b".25")),
            )
        case _:
            return choices.pick(SCALARS)


def json_object(
    choices: Choices, names: list[bytes], values: dict[bytes, Callable[[], bytes]], depth: int = 0
) -> bytes:
    """Mostly these fields in this order, each of its kind; some are left out, come twice, or hold anything."""
    pairs: list[bytes] = []
    for name in names:
        oddity = choices.below(16)
        if oddity == 15:
            continue
        if oddity == 14:
            name = choices.pick(names)
        value = values[name]() if name in values and oddity != 13 else json_value(choices, depth)
        pair = b'"%s":%s%s' % (name, choices.pick(SPACES), value)
        pairs += [pair] * (1 + (oddity == 12))
    if choices.below(4) == 1:
        pairs.reverse()
    return b"{" + (b"," + choices.pick(SPACES)).join(pairs) + b"}" + choices.pick(SPACES)


def outcome(decode: Callable[[], InferRequest | list[InferRequest]]) -> object:
    """What a decoder made of it, to be compared; nothing but InvalidInput may come out of one."""
    try:
        requests = decode()
    except InvalidInput as error:
        return str(error)
    return [_content(request) for request in (requests if isinstance(requests, list) else [requests])]


def _content(request: InferRequest) -> object:
    terms = request.terms
    parameters = dict(terms.parameters), {name: dict(said) for name, said in terms.tensor_parameters.items()}
    inputs = [(name, said(array)) for name, array in request.inputs.items()]
    return inputs, terms.outputs, terms.binary_outputs, terms.id, parameters, terms.timeout_s


def said(array: Array) -> object:
    assert array.dtype in DTYPES.values()
    return array.dtype.str, array.shape, array.ravel().tolist() if array.dtype == object else array.tobytes()


def v1_body(choices: Choices, field: bytes) -> bytes:
    """A request or an answer with rows in this field, or any bytes."""
    form = choices.below(3)
    if form == 0:
        return choices.rest()
    if form == 1:
        return b'{"%s":%s}' % (field, json_list(choices))
    rows = [json_object(choices, [b"x", b"y"], {}) for _ in range(choices.below(4))]
    return json_object(choices, [field], {field: lambda: b"[" + b",".join(rows) + b"]"})


def v1_json(data: bytes) -> None:
    choices = Choices(data)
    names = choices.pick(((), ("x",), ("x", "y")))
    datatypes = {name: choices.pick(DATATYPES[:13]) for name in names if choices.below(3)}
    body = v1_body(choices, b"instances")
    quick = outcome(lambda: v1.decode(body, names, datatypes))
    general = outcome(lambda: v1.decode(b" " + body, names, datatypes))  # the quick way knows no space there
    assert quick == general or (isinstance(quick, str) and isinstance(general, str)), body  # positions move by one


def v2_object(choices: Choices, tensors: str = "inputs") -> tuple[bytes, list[bytes]]:
    """A request's JSON object, and the binary data that it speaks of; an answer's, if its tensors are "outputs"."""
    blobs: list[bytes] = []

    def datatype() -> bytes:
        return b'"%s"' % choices.pick(DATATYPES).encode()

    def binary() -> bytes:
        blobs.append(choices.take(choices.below(24)))
        return b'{"binary_data_size":%d}' % len(blobs[-1])

    def flags() -> bytes:
        names = [b"binary_data_output", b"timeout", b"priority"]
        return json_object(choices, names, {names[0]: lambda: choices.pick((b"true", b"false", b"1"))})

    def tensor() -> bytes:
        is_binary = bool(choices.below(2))
        names = [b"name", b"shape", b"datatype", b"parameters" if is_binary else b"data"]
        kinds = {
            b"name": lambda: choices.pick((b'"x"', b'"y"', b'"data"')), b"shape": lambda: choices.pick(SHAPES),
            b"datatype": datatype, b"parameters": binary, b"data": lambda: json_list(choices),
        }  # fmt: skip
        return json_object(choices, names, kinds)

    def several(make: Callable[[], bytes]) -> bytes:
        return b"[" + b",".join([make() for _ in range(choices.pick((1, 1, 2, 0, 3)))]) + b"]"

    def output() -> bytes:
        kinds = {b"parameters": lambda: choices.pick((b'{"binary_data":true}', b'{"binary_data":1}', b"{}"))}
        return json_object(choices, [b"name", b"parameters"], kinds)

    more = (b"id", b"parameters", b"outputs") if tensors == "inputs" else (b"id", b"model_name", b"model_version")
    names = [tensors.encode(), *more[: choices.below(4)]]
    kinds = {
        b"id": lambda: choices.pick((b'"7"', b"7", b'""')), b"parameters": flags, b"outputs": lambda: several(output),
        tensors.encode(): lambda: several(tensor),
    }  # fmt: skip
    return json_object(choices, names, kinds), blobs


def v2_json(data: bytes) -> None:
    choices = Choices(data)
    body = choices.rest() if choices.below(2) else v2_object(choices)[0]
    quick = outcome(lambda: v2_rest.decode(body, None))
    assert quick == outcome(lambda: v2_rest.decode(body, None))  # by the layout that is kept now
    assert quick == outcome(lambda: v2_rest.decode(body, len(body)))  # never the quick way


def v2_binary(data: bytes) -> None:
    choices = Choices(data)
    if choices.below(2):
        length = choices.below(256)
        body = choices.rest()
    else:
        text, blobs = v2_object(choices)
        length = max(0, len(text) + choices.pick((0, 0, 0, 0, 0, 1, -1)))
        body = b"".join((text, *blobs, choices.pick((b"", b"", b"", b"\0"))))
    v2_rest._LAYOUTS.clear()
    first = outcome(lambda: v2_rest.decode(body, length))
    assert first == outcome(lambda: v2_rest.decode(body, length))


CONTENTS = (
    "bool_contents", "int_contents", "int64_contents", "uint_contents", "uint64_contents", "fp32_contents", "fp64_contents",
    "bytes_contents",
)  # fmt: skip
INTEGERS = (0, 1, -1, 127, 128, 255, 256, -129, 32768, 65536, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))


def infer_message(choices: Choices) -> bytes:
    """A ModelInferRequest, mostly a good one."""
    request = v2_grpc.ModelInferRequest(model_name=choices.pick(("m", "n", "")))
    request.id = choices.pick(("", "7"))
    for _ in range(choices.pick((1, 1, 1, 2, 0))):
        add_tensor(choices, request.inputs, request.raw_input_contents)
    if choices.below(4) == 1:
        request.outputs.add(name=choices.pick(("y", "")))
    if choices.below(4) == 1:
        value = request.parameters[choices.pick(("timeout", "a"))]
        value.int64_param = choices.pick(INTEGERS)
        if choices.below(2):
            value.ClearField("int64_param")
    return bytes(request.SerializeToString())


def add_tensor(choices: Choices, tensors: Any, raw: Any) -> Any:
    """Add one to a message's `tensors`, and return it; its elements are in itself, in `raw`, or nowhere."""
    tensor = tensors.add(name=choices.pick(("x", "y", "")), datatype=choices.pick(DATATYPES))
    tensor.shape.extend(choices.pick(INTEGERS[:3]) for _ in range(choices.below(4)))
    match choices.below(3):
        case 1:
            raw.append(choices.take(choices.below(24)))
        case 2:
            _fill(getattr(tensor.contents, choices.pick(CONTENTS)), choices)
    return tensor


def _fill(field: Any, choices: Choices) -> None:
    for _ in range(choices.below(4)):
        for value in (choices.pick(INTEGERS), choices.take(3)):
            try:
                field.append(value)
                break
            except (TypeError, ValueError):  # not of this field's type or range
                continue


def v2_grpc_message(data: bytes) -> None:
    choices = Choices(data)
    message = choices.rest() if choices.below(2) else infer_message(choices) + choices.take(choices.pick((0, 0, 0, 4)))

    def decoded(data: bytes, start: int = 0) -> object:
        name = ""

        def request() -> InferRequest:
            nonlocal name
            call = v2_grpc.decode(data, start)
            name = f"{call.model_name}/{call.model_version}"
            return call.request

        return outcome(request), name

    v2_grpc._LAYOUTS.clear()
    first = decoded(message)
    assert first == decoded(message)  # by the layout that is kept now
    assert first == decoded(b"\0\0\0\0\0" + message, 5)
    unknown_field = b"\x78\x00"
    if first[0] != "the message is not a valid inference.ModelInferRequest":
        assert first == decoded(message + unknown_field)  # by protobuf, which ignores that field


def json_numbers(data: bytes) -> None:
    choices = Choices(data)
    datatype = choices.pick(("FP32", "FP64", "INT64", "INT32", "UINT8", None))
    text = choices.rest() if choices.below(2) else json_list(choices)
    quick = numbers(text, datatype)
    if quick is not None:
        assert datatype is not None
        assert said(quick) == said(array_from_json("x", orjson.loads(text), datatype, None))


def content_coding(data: bytes) -> None:
    """In steps or at once, the content is what zlib makes of it, and never more than the limit."""
    choices = Choices(data)
    coding = choices.pick((b"gzip", b"deflate", b"br", b""))
    limit, step, form = choices.below(256), 1 + choices.below(64), choices.below(3)
    body = choices.rest()
    if form:
        compressor = zlib.compressobj(wbits=31 if coding == b"gzip" else 15)
        body = compressor.compress(body * form) + compressor.flush()

    def inflate(step: int | None) -> object:
        try:
            inflation = Inflation(body, coding, limit)
            content = inflation.run_to_end() if step is None else None
            while content is None:
                assert step is not None
                content = inflation.run(step)
        except TorporError as error:
            return type(error)
        assert len(content) <= limit
        return content

    whole = inflate(None)
    assert whole == inflate(step)
    if isinstance(whole, bytes):
        assert whole == zlib.decompress(body, 31 if coding == b"gzip" else 15)


class _Text:
    """A file as `ModelFile.read` sees it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_text(self) -> str:
        return self._data.decode()

    def __str__(self) -> str:
        return "model.toml"


TOML_VALUES = (
    b"1", b"0", b"-1", b"1.5", b"nan", b"inf", b"true", b'"cpu"', b'"1"', b'"m:C"', b"[1]", b"{a=1}", b"9" * 400, b"1e400",
    b"0x10", b"1979-05-27", b'"x:y:z"', b'""',
)  # fmt: skip
TOML_KEYS = (
    b"class", b"name", b"max_batch_size", b"batch_timeout_micros", b"max_queue_rows", b"request_timeout_s", b"device",
    b"threads", b"port", b"a.b", b'"\\u0000"',
)  # fmt: skip


def model_file(data: bytes) -> None:
    choices = Choices(data)
    if choices.below(2):
        text = choices.rest()
    else:
        lines = [b'class = "m:C"'][: 1 - (choices.below(16) == 15)]
        while choices:
            if choices.below(4) == 1:
                lines.append(b"[%s]" % choices.pick((b"batching", b"device", b"parameters", b"other", b"[batching]")))
            value = choices.take(choices.below(16)) if choices.below(4) == 1 else choices.pick(TOML_VALUES)
            lines.append(b"%s = %s" % (choices.pick(TOML_KEYS), value))
        text = b"\n".join(lines)
    try:
        file = ModelFile.read(_Text(text))  # type: ignore[arg-type]
    except SettingError:
        return
    assert file.class_path.count(":") == 1
    values = resolve({}, {}, file.settings)
    assert 1 <= values["max_batch_size"] <= 65536
    assert np.isfinite(values["request_timeout_s"])
