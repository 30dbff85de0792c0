"""Does what the body's first word says: every kind of answer and every way to fail."""

import json
import os
import sys
import time

import numpy as np
import torch
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.utils.util import PredictionException


def handle(data, context):
    if data is None:
        return None
    value = data[0].get("body", b"")
    text = value.decode() if isinstance(value, (bytes, bytearray)) else str(value)
    mode, _, argument = text.partition(" ")
    return globals()["do_" + mode](argument, data, context)


def answer(value):
    return lambda argument, data, context: [value] * len(data)


do_bytes = answer(b"\x00\xff raw")
do_bytearray = answer(bytearray(b"bytes"))
do_text = answer("gr\u00fc\u00df")
do_object = answer({"name": "gr\u00fc\u00df", "nested": {"list": [1, 2.5, None, True]}})
do_list = answer([[1, 2], [3]])
do_integer = answer(3)
do_none = answer(None)
do_nan = answer({"x": float("nan"), "y": float("inf")})
do_empty = answer("")
do_tensor = answer(torch.arange(3.0))
do_numpy = answer(np.arange(3.0))
do_numpy_scalar = answer(np.float32(1.5))
do_set = answer({1})


def do_tuple(argument, data, context):
    return tuple(data)


def do_nothing(argument, data, context):
    return None


def do_many(argument, data, context):
    return ["one"] * (len(data) + 1)


def do_few(argument, data, context):
    return []


def do_mapping(argument, data, context):
    return {"not": "a list"}


def do_raise(argument, data, context):
    raise ValueError(argument)


def do_memory(argument, data, context):
    raise MemoryError(argument)


def do_prediction(argument, data, context):
    raise PredictionException(argument)


def do_prediction_code(argument, data, context):
    raise PredictionException("not today", int(argument))


def do_status(argument, data, context):
    context.set_response_status(int(argument), "As told")
    return ["told"] * len(data)


def do_all_status(argument, data, context):
    context.set_all_response_status(int(argument), "As told")
    return ["told"] * len(data)


def do_content_type(argument, data, context):
    context.set_response_content_type(0, argument)
    return ["typed"] * len(data)


def do_header(argument, data, context):
    context.set_response_header(0, "x-own", argument)
    return ["headed"] * len(data)


def send(context, piece):
    send_intermediate_predict_response([piece], context.request_ids, "Intermediate", 200, context)


def do_chunks(argument, data, context):
    for number in range(int(argument)):
        send(context, f"{number} ")
    return ["end"]


def do_chunks_of_types(argument, data, context):
    for piece in (b"\xff", "gr\u00fc\u00df", {"a": [1]}, 3):
        send(context, piece)
    return [{"the": "end"}]


def do_chunks_with_empty(argument, data, context):
    for piece in ("", "one", ""):
        send(context, piece)
    return [""]


def do_chunks_large(argument, data, context):
    send(context, b"x" * int(argument))
    return ["end"]


def do_chunks_headed(argument, data, context):
    context.set_response_status(202, "As told")
    context.set_response_content_type(0, "text/event-stream")
    context.set_response_header(0, "x-own", argument)
    return do_chunks("2", data, context)


def do_chunks_late(argument, data, context):
    send(context, "first ")
    context.set_response_status(202, "As told")
    context.set_response_header(0, "x-own", argument)
    return ["end"]


def do_chunks_then(argument, data, context):
    send(context, "first ")
    mode, _, argument = argument.partition(" ")
    return globals()["do_" + mode](argument, data, context)


def do_exit(argument, data, context):
    sys.exit(3)


def do_die(argument, data, context):
    os._exit(3)


def do_sleep(argument, data, context):
    time.sleep(float(argument))
    return ["slept"] * len(data)


def do_print(argument, data, context):
    print(json.dumps(argument), flush=True)
    return ["printed"] * len(data)
