"""The targets by name: each takes any bytes, and raises when something does not hold."""

from collections.abc import Callable

from answers import grpc_answer, v1_answer, v2_answer
from calls import grpc_calls, rest_calls
from connections import http1_connection, http2_connection
from decoders import content_coding, json_numbers, model_file, v1_json, v2_binary, v2_grpc_message, v2_json
from events import event_messages
from heads import http1_chunks, http1_head, http2_fields
from traces import trace_file

TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        http1_head, http1_chunks, http1_connection, http2_fields, http2_connection, v1_json, v2_json, v2_binary,
        v2_grpc_message, grpc_calls, rest_calls, json_numbers, content_coding, model_file, event_messages,
        v1_answer, v2_answer, grpc_answer, trace_file,
    )
}  # fmt: skip
