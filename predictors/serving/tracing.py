"""Spans of requests whose caller records its trace, exported by the OpenTelemetry SDK (the extra `torpor[otel]`).

Where OTEL_EXPORTER_OTLP_ENDPOINT (or …_TRACES_ENDPOINT) is set, such a request gives a span of its own and one for each time
that rows of it waited and ran:

    inference mlp       from decoding to the answer
    ├── queue           until its batch was taken
    └── device          while the batch ran

A v1 request whose rows differ in length is one request with these for each row, and each event of a batch a request.
What the model calls by its request's headers belongs under `inference`: there `traceparent` names that span.
Other requests, those without `traceparent` included, cost a comparison: an ingress or mesh is what begins traces. All
else (service name, headers, protocol) is set by OpenTelemetry's own variables:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..batching.policy import Batch
from ..errors import TorporError
from ..signature import Bound
from .batcher import Observer
from .request_options import Trace

logger = logging.getLogger("torpor.tracing")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def tracing_from(environment: Mapping[str, str]) -> "Tracing | None":
    """What exports spans to where the environment says; None if it does not, or the SDK is not installed."""
    endpoint = next((name for name in _ENDPOINTS if environment.get(name)), None)
    if endpoint is None or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logger.warning("%s is set, but no spans are exported, install torpor[otel]: %s", endpoint, error)
        return None
    service = {} if environment.get("OTEL_SERVICE_NAME") else {"service.name": "torpor"}
    provider = TracerProvider(resource=Resource.create(service))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider.get_tracer("torpor"))


class Tracing:
    """Makes the spans; the provider's own thread exports them."""

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer
        self._spans: dict[Any, Any] = {}
        """Of requests, or their parts, that run or wait."""

    def begin(self, trace: Trace, model_name: str, model_version: str) -> Any:
        """The span of a request that is about to start. One that is not followed then is never exported."""
        from opentelemetry import trace as api

        context = api.SpanContext(
            int(trace.trace_id, 16), int(trace.parent_id, 16), is_remote=True, trace_flags=api.TraceFlags(1)
        )
        return self._tracer.start_span(
            f"inference {model_name}",
            api.set_span_in_context(api.NonRecordingSpan(context)),
            api.SpanKind.SERVER,
            {"torpor.model.name": model_name, "torpor.model.version": model_version},
        )

    def follow(self, started: Any, span: Any, parts: Sequence[Any]) -> Callable[[], None]:
        """End the span of a request that has just been started with its answer; what to call if its caller leaves before.

        started: what `Served.start` gave, or requests that are answered together: with its `rows`, and the `answer` that
        will be called. parts: what batches have of it.
        """
        from opentelemetry import trace as api

        span.set_attribute("torpor.rows", started.rows)
        answer: Callable[[Any], None] | None = started.answer
        if answer is None:  # it has failed at once
            span.set_attribute("error.type", "_OTHER")  # OpenTelemetry's word for one that is not known
            span.set_status(api.StatusCode.ERROR)
            span.end()
            return _nothing
        for part in parts:
            self._spans[part] = span

        def forget() -> None:
            for part in parts:
                self._spans.pop(part, None)

        def traced(result: Any) -> None:
            if isinstance(result, TorporError):
                span.set_attribute("error.type", type(result).__name__)
                span.set_status(api.StatusCode.ERROR, str(result))
            answer(result)
            span.end()
            # The batch is told of after its answers.
            asyncio.get_running_loop().call_soon(forget)

        def left() -> None:
            forget()
            if span.is_recording():
                span.set_attribute("error.type", "cancelled")
                span.end()

        started.answer = traced
        return left

    def batch_ran(self, batch: Batch[Bound], seconds: float) -> None:
        """Give the requests of the batch that are followed their children."""
        if not self._spans:
            return
        from opentelemetry import trace as api

        zero_ns = time.time_ns() - int(asyncio.get_running_loop().time() * 1e9)
        for item, start, stop in batch.slices:
            span = self._spans.get(item)
            if span is None:
                continue
            context = api.set_span_in_context(span)
            began_ns = zero_ns + int(batch.taken_s * 1e9)
            rows = {"torpor.rows": stop - start}
            queue = self._tracer.start_span(
                "queue", context, attributes=rows, start_time=zero_ns + int(item.arrival_s * 1e9)
            )
            queue.end(began_ns)
            device = self._tracer.start_span(
                "device", context, attributes=rows | {"torpor.batch.rows": batch.rows}, start_time=began_ns
            )
            device.end(began_ns + int(seconds * 1e9))

    def ran_out_of_memory(self) -> None:
        """Nothing to do: a request whose batch ran again has a device span for each."""


def under(span: Any, headers: Mapping[str, str]) -> Mapping[str, str]:
    """The headers of a request as its model gets them: with its span, if it has one, for the caller's."""
    if span is None:
        return headers
    context = span.get_span_context()
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return {**headers, "traceparent": parent}


def _nothing() -> None:
    """What there is to do when the caller of a request leaves that has been answered."""


class Observers:
    """Both are told of each batch."""

    def __init__(self, first: Observer, second: Observer) -> None:
        self._both = first, second

    def batch_ran(self, batch: Batch[Bound], seconds: float) -> None:
        for observer in self._both:
            observer.batch_ran(batch, seconds)

    def ran_out_of_memory(self) -> None:
        for observer in self._both:
            observer.ran_out_of_memory()
