"""Spans as an OTLP collector gets them."""

import http.server
import json
import queue
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from torpor.predictors.protocol.messages import message
from torpor.predictors.serving.request_options import read_options
from torpor.predictors.serving.tracing import Tracing, tracing_from

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes spans by POST /v1/traces and hands them on."""

    spans: "queue.SimpleQueue"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.put((service, span))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[str, "queue.SimpleQueue"]]:
    """The collector's URL, and what it gets."""
    handler = type("Handler", (Collector,), {"spans": queue.SimpleQueue()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler.spans
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def traced(serve, collector, gate_path):
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector[0], "OTEL_BSP_SCHEDULE_DELAY": "50"}
    return serve("marked", "--max-batch-size", "2", **environment, GATE=str(gate_path))


def ask(rows: list[list[float]]) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(rows), 2], "data": rows}
    return json.dumps({"inputs": [tensor]}).encode()


PATH = "/v2/models/marked/infer"
SAMPLED = {"traceparent": f"00-{TRACE}-{SPAN}-01"}


def spans(collector, count: int) -> list:
    """The next spans, which all belong to the one sampled trace."""
    got = [collector[1].get(timeout=20) for _ in range(count)]
    assert {service for service, _ in got} == {"torpor"}
    assert {span.trace_id.hex() for _, span in got} == {TRACE}
    return [span for _, span in got]


def test_a_sampled_request_gives_its_phases(connect, traced, collector) -> None:
    """Under the caller's span; requests without a trace, or whose caller does not record it, give nothing."""
    connection = connect(traced)
    assert connection.request("POST", PATH, ask([[1, 2]])).status == 200
    unsampled = {"traceparent": f"00-{TRACE}-{SPAN}-00"}
    assert connection.request("POST", PATH, ask([[1, 2]]), unsampled).status == 200
    before_ns = time.time_ns()
    assert connection.request("POST", PATH, ask([[1, 2]]), SAMPLED).status == 200
    by_name = {span.name: span for span in spans(collector, 3)}
    after_ns = time.time_ns()  # the caller has its answer before the request's span ends
    request, waiting, device = by_name["inference marked"], by_name["queue"], by_name["device"]
    assert request.parent_span_id.hex() == SPAN
    assert waiting.parent_span_id == device.parent_span_id == request.span_id
    assert before_ns < request.start_time_unix_nano < request.end_time_unix_nano < after_ns
    assert waiting.end_time_unix_nano == device.start_time_unix_nano < device.end_time_unix_nano
    assert {a.key: a.value.int_value for a in device.attributes} == {"torpor.rows": 1, "torpor.batch.rows": 1}
    assert collector[1].empty()


def test_rows_of_several_batches_give_several_phases(connect, traced, collector) -> None:
    """Three rows in batches of two."""
    assert connect(traced).request("POST", PATH, ask([[1, 2]] * 3), SAMPLED).status == 200
    names = sorted(span.name for span in spans(collector, 5))
    assert names == ["device", "device", "inference marked", "queue", "queue"]


def test_errors_are_told(connect, traced, collector) -> None:
    """The span of a request that failed says how."""
    assert connect(traced).request("POST", PATH, ask([[1000, 2]]), SAMPLED).status == 500
    (request,) = [span for span in spans(collector, 3) if span.name == "inference marked"]
    assert request.status.code == 2
    assert "the model raised RuntimeError" in request.status.message
    assert {a.key: a.value.string_value for a in request.attributes}["error.type"] == "ModelFailed"


def test_grpc_is_traced(grpc_infer, traced, collector) -> None:
    """By metadata."""
    asked = message("inference.ModelInferRequest")(model_name="marked")
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1, 2])
    grpc_infer(traced)(asked, metadata=list(SAMPLED.items()))
    assert sorted(span.name for span in spans(collector, 3)) == ["device", "inference marked", "queue"]


def test_rows_that_differ_in_length_are_one_request(connect, serve, collector) -> None:
    """Each of them waits and runs by itself, under the request, whose span says how it failed."""
    server = serve("padded", OTEL_EXPORTER_OTLP_ENDPOINT=collector[0], OTEL_BSP_SCHEDULE_DELAY="50")

    def ask_for(*rows: list[int]) -> tuple[int, dict[str, list]]:
        body = json.dumps({"instances": [{"ids": row, "mask": [1] * len(row)} for row in rows]}).encode()
        reply = connect(server).request("POST", "/v1/models/padded:predict", body, SAMPLED)
        by_name: dict[str, list] = {}
        for span in spans(collector, 1 + 2 * len(rows)):
            by_name.setdefault(span.name, []).append(span)
        (request,) = by_name["inference padded"]
        assert {span.parent_span_id for span in by_name["queue"] + by_name["device"]} == {request.span_id}
        return reply.status, by_name

    status, by_name = ask_for([1, 2, 3], [4], [5, 6])
    (request,) = by_name["inference padded"]
    assert (status, len(by_name["queue"]), len(by_name["device"])) == (200, 3, 3)
    assert (request.parent_span_id.hex(), request.status.code) == (SPAN, 0)
    assert {a.key: a.value.int_value for a in request.attributes}["torpor.rows"] == 3
    status, by_name = ask_for([1], [999, 2])
    (request,) = by_name["inference padded"]
    assert (status, request.status.code) == (400, 2)
    assert {a.key: a.value.string_value for a in request.attributes}["error.type"] == "InvalidInput"


def test_events_are_traced(connect, traced, collector) -> None:
    """Each of a batch is a request of its own."""
    event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": {"instances": [[1, 2]]}}
    for media, body, count in (("", event, 1), ("-batch", [event, event | {"id": "2"}], 2)):
        headers = SAMPLED | {"content-type": f"application/cloudevents{media}+json"}
        assert connect(traced).request("POST", "/", json.dumps(body).encode(), headers).status == 200
        names = sorted(span.name for span in spans(collector, 3 * count))
        assert names == ["device"] * count + ["inference marked"] * count + ["queue"] * count


@pytest.fixture
def tracing() -> tuple[Tracing, InMemorySpanExporter]:
    """What makes spans, and those that have ended."""
    ended, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ended))
    return Tracing(provider.get_tracer("test")), ended


def started_span(tracing: Tracing) -> Any:
    trace = read_options({b"traceparent": SAMPLED["traceparent"].encode()}).trace
    assert trace is not None
    return tracing.begin(trace, "m", "1")


def test_who_leaves_a_request_of_several_parts_ends_one_span(tracing, caplog) -> None:
    """And nothing is kept of its parts; what has ended is not touched again, which OpenTelemetry would log."""
    makes, ended = tracing
    request, parts = SimpleNamespace(rows=2, answer=print), ["one", "other"]
    left = makes.follow(request, started_span(makes), parts)
    assert makes._spans.keys() == {*parts}
    left()
    left()
    (span,) = ended.get_finished_spans()
    assert dict(span.attributes) | {"error.type": "cancelled", "torpor.rows": 2} == dict(span.attributes)
    assert not makes._spans
    assert not caplog.records


def test_a_request_that_fails_while_it_is_started_ends_its_span(tracing) -> None:
    """Its answer has been called already, so that nothing else would end it."""
    makes, ended = tracing
    left = makes.follow(SimpleNamespace(rows=1, answer=None), started_span(makes), ["part"])
    left()
    (span,) = ended.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert not makes._spans


def test_what_the_model_calls_is_traced_under_its_own_request(connect, grpc_infer, serve, collector) -> None:
    """Its request's `traceparent` names the span that is exported; without one that of the caller stays."""
    server = serve("asks", OTEL_EXPORTER_OTLP_ENDPOINT=collector[0], OTEL_BSP_SCHEDULE_DELAY="50")
    row = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
    connection = connect(server)

    def told(headers: dict[str, str]) -> str:
        reply = connection.request("POST", "/v2/models/asks/infer", json.dumps({"inputs": [row]}).encode(), headers)
        outputs = {output["name"]: output["data"] for output in reply.json()["outputs"]}
        return json.loads(outputs["said"][0])["traceparent"]

    unsampled = {"traceparent": f"00-{TRACE}-{SPAN}-00"}
    assert told(unsampled) == unsampled["traceparent"]
    parent = told(SAMPLED)
    (request,) = [span for span in spans(collector, 3) if span.name == "inference asks"]
    assert parent == f"00-{TRACE}-{request.span_id.hex()}-01"
    asked = message("inference.ModelInferRequest")(model_name="asks")
    asked.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(1)
    answered = grpc_infer(server)(asked, metadata=list(SAMPLED.items()))
    (request,) = [span for span in spans(collector, 3) if span.name == "inference asks"]
    said = {output.name: output.contents.bytes_contents for output in answered.outputs}["said"][0]
    assert json.loads(said)["traceparent"] == f"00-{TRACE}-{request.span_id.hex()}-01"


THROUGH = """
from typing import Annotated
import numpy as np


class Through:
    def preprocess(self, x: Annotated[np.ndarray, "float32[rows]"]):
        return {"x": x}
"""


def test_a_transformers_predictor_is_traced_under_it(connect_http1, serve, start, collector, tmp_path) -> None:
    """What its client sends names the transformer's own span."""
    (tmp_path / "model.py").write_text(THROUGH)
    (tmp_path / "model.toml").write_text('class = "model:Through"')
    traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector[0], "OTEL_BSP_SCHEDULE_DELAY": "50"}
    options = ("--model-name", "asks", "--predictor", serve("asks").address)
    row = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
    connection = connect_http1(start(tmp_path, *options, **traced))
    reply = connection.request("POST", "/v2/models/asks/infer", json.dumps({"inputs": [row]}).encode(), SAMPLED)
    assert reply.status == 200, reply
    outputs = {output["name"]: output["data"] for output in reply.json()["outputs"]}
    (request,) = spans(collector, 1)
    assert json.loads(outputs["said"][0])["traceparent"] == f"00-{TRACE}-{request.span_id.hex()}-01"


def test_a_caller_that_leaves_ends_its_span(connect_http2, traced, collector, gated) -> None:
    """What waited for it is cancelled."""
    with gated(traced) as gate:
        connection = connect_http2(traced)
        stream = connection.send("POST", PATH, ask([[1, 2]]), SAMPLED)
        gate.wait_for_rows(1)
        connection.cancel(stream)
        (request,) = spans(collector, 1)
    assert {a.key: a.value.string_value for a in request.attributes}["error.type"] == "cancelled"


@pytest.mark.parametrize("environment", [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}])
def test_nobody_is_traced_without_an_endpoint(environment: dict[str, str]) -> None:
    """Nor where the SDK is disabled."""
    assert tracing_from(environment) is None
    assert tracing_from({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_SDK_DISABLED": "true"}) is None


def test_an_endpoint_without_the_sdk_is_a_warning(monkeypatch, caplog) -> None:
    """Clusters set the variable for every pod: it must not end a server that lacks the extra."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert tracing_from({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}) is None
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is set, but no spans are exported, install torpor[otel]" in caplog.text
