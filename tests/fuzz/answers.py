"""What a transformer's client reads: any bytes are an answer or the predictor's failure, and an answer can be sent on."""

from collections.abc import Callable
from typing import Any

from choices import Choices
from decoders import INTEGERS, add_tensor, said, v1_body, v2_object
from torpor.predictors.errors import ModelFailed, PredictorFailed
from torpor.predictors.protocol import v1, v2_grpc, v2_rest
from torpor.predictors.protocol.inference import InferRequest, InferResponse, Terms
from torpor.transformers.client import v2_grpc as client_grpc
from torpor.transformers.client import v2_rest as client_rest
from torpor.transformers.client.message import Reply
from torpor.transformers.client.v1 import V1
from torpor.transformers.client.v2_rest import V2Rest

ASKED = ((), ("y",), ("x", "y"))
OF_V1 = V1("m", "", "h")
OF_V2 = V2Rest("m", "", "h", binary=True)
REQUEST = InferRequest({})


def outcome(decode: Callable[[], InferResponse]) -> object:
    """What a decoder made of it, to be compared; nothing but PredictorFailed may come out of one."""
    try:
        response = decode()
    except PredictorFailed as error:
        return str(error)
    outputs = [(name, said(array)) for name, array in response.outputs.items()]
    return outputs, response.model_name, response.model_version, response.id


def v1_answer(data: bytes) -> None:
    choices = Choices(data)
    request = InferRequest({}, Terms(choices.pick(ASKED)))
    body = v1_body(choices, b"predictions")
    headers = {b"torpor-model-version": choices.take(2)} if choices.below(2) else {}
    try:
        response = OF_V1.decode(Reply(200, headers, body), request)
    except PredictorFailed:
        return
    try:
        again = v1.encode([response])
    except ModelFailed:
        return
    names = tuple(response.outputs)
    sent_on = OF_V1.decode(Reply(200, headers, again), InferRequest({}, Terms(names)))
    assert outcome(lambda: sent_on) == outcome(lambda: response)


def v2_answer(data: bytes) -> None:
    choices = Choices(data)
    headers: dict[bytes, bytes] = {}
    if choices.below(2):
        headers[b"inference-header-content-length"] = choices.take(choices.below(4))
        body = choices.rest()
    else:
        text, blobs = v2_object(choices, "outputs")
        body = b"".join((text, *blobs))
        if blobs:
            headers[b"inference-header-content-length"] = b"%d" % max(0, len(text) + choices.pick((0, 0, 0, 0, 1, -1)))
    reply = Reply(200, headers, body)
    client_rest._LAYOUTS.clear()
    first = outcome(lambda: OF_V2.decode(reply, REQUEST))
    assert first == outcome(lambda: OF_V2.decode(reply, REQUEST))  # by the layout that is kept now
    if isinstance(first, str):
        return
    response = OF_V2.decode(reply, REQUEST)
    content, length = v2_rest.encode(response, None)
    sent_on = {} if length is None else {b"inference-header-content-length": b"%d" % length}
    assert outcome(lambda: OF_V2.decode(Reply(200, sent_on, content), REQUEST)) == first


def grpc_answer(data: bytes) -> None:
    choices = Choices(data)
    message = choices.rest() if choices.below(2) else _infer_response(choices) + choices.take(choices.pick((0, 0, 4)))
    first = outcome(lambda: client_grpc.decode(message))
    if isinstance(first, str):
        return
    response = client_grpc.decode(message)
    assert outcome(lambda: client_grpc.decode(v2_grpc.encode(response, raw=True))) == first
    assert outcome(lambda: client_grpc.decode(v2_grpc.encode(response, raw=False))) == first


def _infer_response(choices: Choices) -> bytes:
    """A ModelInferResponse, mostly a good one."""
    response: Any = v2_grpc.ModelInferResponse(model_name=choices.pick(("m", "")), id=choices.pick(("", "7")))
    for _ in range(choices.pick((1, 1, 1, 2, 0))):
        tensor = add_tensor(choices, response.outputs, response.raw_output_contents)
        if choices.below(4) == 1:
            tensor.parameters[choices.pick(("classification", "a"))].int64_param = choices.pick(INTEGERS)
    return bytes(response.SerializeToString())
