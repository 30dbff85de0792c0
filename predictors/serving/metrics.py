"""What the server counts, and `/metrics` for Prometheus.

Counting is additions to plain numbers on the event loop; Prometheus's own types are made when somebody asks. Histograms
have KServe's name where KServe has one (`request_predict_seconds`); the others begin with `torpor_`. What Triton counts by a
name of its own (`nv_inference_…`) follows from these.
"""

import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..batching.policy import Batch, BatchingPolicy, State
from ..errors import TorporError
from ..signature import Bound
from .exposition import exposition

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Histogram:
    """Counts of observations by upper bound, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)

    def observe_sorted(self, values: Sequence[float]) -> None:
        """Observe ascending values; those of a batch mostly fall under one bound."""
        if not values:
            return
        at = bisect_left(self.bounds, values[0])
        if at == bisect_left(self.bounds, values[-1]):
            self.counts[at] += len(values)
            self.sum += sum(values)
        else:
            for value in values:
                self.observe(value)

    def cumulative(self) -> list[tuple[str, int]]:
        """(upper bound, observations up to it), as Prometheus has it."""
        total = 0
        buckets: list[tuple[str, int]] = []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, total))
        return buckets


class ModelMetrics:
    """One model's counts, and what its policy knows; the batcher's observer.

    memory_bytes: what is allocated on each device that has memory of its own. families: what the model counts itself, for
    labels, as Prometheus's metric families.
    """

    def __init__(
        self,
        model_name: str,
        model_version: str,
        policy: BatchingPolicy[Bound],
        memory_bytes: Callable[[], Mapping[str, int]] = dict,
        families: Callable[[Mapping[str, str]], Iterable[Any]] = lambda labels: (),
    ) -> None:
        self.labels = {"model_name": model_name, "model_version": model_version}
        self.policy = policy
        self.memory_bytes = memory_bytes
        self.families = families
        self.device_seconds = 0.0
        self.answered = 0
        self.predict_seconds = Histogram(_SECONDS)
        self.queue_seconds = Histogram(_SECONDS)
        self.request_seconds = Histogram(_SECONDS)
        self.batch_rows = Histogram(_ROWS)
        self.padded_cells = 0
        self.cells = 0
        self.out_of_memory = 0

    def ran_out_of_memory(self) -> None:
        self.out_of_memory += 1

    def batch_ran(self, batch: Batch[Bound], seconds: float) -> None:
        self.device_seconds += seconds
        self.batch_rows.observe(batch.rows)
        # Of the requests that ended with it: those that failed, and those whose callers left, are GONE.
        ended = [item for item, _, _ in batch.slices if item.answer is None]
        answered = [item.arrival_s for item in ended if item.state is State.TAKEN]
        self.predict_seconds.observe(seconds, len(ended))
        self.answered += len(answered)
        if batch.bucket.axes:
            longest = map(max, zip(*[piece.item.sizes for piece in batch.slices], strict=True))
            self.padded_cells += batch.rows * math.prod(longest)
            self.cells += sum((piece.stop - piece.start) * math.prod(piece.item.sizes) for piece in batch.slices)
        else:
            self.padded_cells += batch.rows
            self.cells += batch.rows
        taken_s = batch.taken_s
        self.queue_seconds.observe_sorted(
            sorted([taken_s - item.arrival_s for item, start, _ in batch.slices if not start])
        )
        ended_s = taken_s + seconds
        self.request_seconds.observe_sorted(sorted([ended_s - arrival_s for arrival_s in answered]))


class StepMetrics:
    """Times of a transformer's `preprocess` or `postprocess`.

    families: what the transformer counts itself, for labels, as Prometheus's metric families.
    """

    def __init__(
        self,
        model_name: str,
        model_version: str,
        method: str,
        families: Callable[[Mapping[str, str]], Iterable[Any]] = lambda labels: (),
    ) -> None:
        self.labels = {"model_name": model_name, "model_version": model_version}
        self.method = method
        self.families = families
        self.seconds = Histogram(_SECONDS)


class ServerMetrics:
    """All models' counts, requests by protocol and status, and the seconds that each phase of the start took.

    failures: requests by model, version, and the class of their error.
    """

    def __init__(self) -> None:
        self.models: list[ModelMetrics] = []
        self.steps: list[StepMetrics] = []
        self.requests: Counter[tuple[str, str]] = Counter()
        self.failures: Counter[tuple[str, str, str]] = Counter()
        self.start_phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase of the start, which several models share."""
        began_s = time.perf_counter()
        yield
        self.start_phases[name] = self.start_phases.get(name, 0.0) + time.perf_counter() - began_s

    def failed(self, model_name: str, model_version: str, error: Exception) -> None:
        """A request to a model had this instead of its answer. What is no TorporError is torpor's own fault."""
        name = type(error).__name__ if isinstance(error, TorporError) else "internal"
        self.failures[model_name, model_version, name] += 1

    def render(self) -> bytes:
        """The Prometheus text format."""
        from prometheus_client.process_collector import ProcessCollector

        return exposition(_Collector(self), ProcessCollector(registry=None))


class _Collector:
    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        names = ("model_name", "model_version")
        histograms: tuple[tuple[str, str, str], ...] = (
            ("request_predict_seconds", "Time that the model took for a request's batch.", "predict_seconds"),
            ("torpor_queue_seconds", "Time that a request waited for its batch.", "queue_seconds"),
            (
                "torpor_request_seconds",
                "Time from a request's arrival to the end of its last batch.",
                "request_seconds",
            ),
            ("torpor_batch_rows", "Rows that the model got at once.", "batch_rows"),
        )
        for name, text, attribute in histograms:
            family = HistogramMetricFamily(name, text, labels=names)
            for model in self._metrics.models:
                histogram: Histogram = getattr(model, attribute)
                family.add_metric([*model.labels.values()], histogram.cumulative(), histogram.sum)
            yield family
        for method in ("preprocess", "postprocess"):
            family = HistogramMetricFamily(f"request_{method}_seconds", f"Time that {method} took.", labels=names)
            for step in self._metrics.steps:
                if step.method == method:
                    family.add_metric([*step.labels.values()], step.seconds.cumulative(), step.seconds.sum)
            yield family
        cells = CounterMetricFamily("torpor_cells", "Elements along padded axes, as sent.", labels=names)
        padded = CounterMetricFamily("torpor_padded_cells", "Elements along padded axes, as run.", labels=names)
        busy = CounterMetricFamily("torpor_device_seconds", "Time that batches had their device.", labels=names)
        short = CounterMetricFamily("torpor_out_of_memory", "Batches run again in smaller ones.", labels=names)
        for model in self._metrics.models:
            labels = [*model.labels.values()]
            cells.add_metric(labels, model.cells)
            padded.add_metric(labels, model.padded_cells)
            busy.add_metric(labels, model.device_seconds)
            short.add_metric(labels, model.out_of_memory)
        requests = CounterMetricFamily("torpor_requests", "Inference requests.", labels=("protocol", "status"))
        for (protocol, status), count in self._metrics.requests.items():
            requests.add_metric([protocol, status], count)
        failures = CounterMetricFamily("torpor_failures", "Failed requests to a model.", labels=(*names, "error"))
        for key, count in self._metrics.failures.items():
            failures.add_metric(key, count)
        memory = GaugeMetricFamily(
            "torpor_device_memory_bytes", "What is allocated of a device's own memory.", labels=("device",)
        )
        for device, size in {d: size for m in self._metrics.models for d, size in m.memory_bytes().items()}.items():
            memory.add_metric([device], size)
        phases = GaugeMetricFamily("torpor_start_seconds", "Time that a phase of the start took.", labels=("phase",))
        for phase, seconds in self._metrics.start_phases.items():
            phases.add_metric([phase], seconds)
        yield from (cells, padded, busy, short, requests, failures, memory, phases)
        yield from self._tritons(CounterMetricFamily)
        yield from self._families()
        yield from self._policies(GaugeMetricFamily, names)

    def _tritons(self, counter: Callable[..., Any]) -> Iterable[Any]:
        """What Triton has, by its names and labels. Durations are sums over requests, in microseconds; what decoding and
        encoding take is not in them.
        """
        failed: Counter[tuple[str, str]] = Counter()
        for (name, version, _), count in self._metrics.failures.items():
            failed[name, version] += count
        counts: tuple[tuple[str, str, Callable[[ModelMetrics], float]], ...] = (
            ("request_success", "Requests that the model answered.", lambda m: m.answered),
            ("request_failure", "Failed requests.", lambda m: failed[m.labels["model_name"], m.labels["model_version"]]),
            ("count", "Rows that ran.", lambda m: m.batch_rows.sum),
            ("exec_count", "Batches that ran.", lambda m: m.batch_rows.count),
            ("request_duration_us", "Time in the queue and the batch.",
             lambda m: (m.queue_seconds.sum + m.predict_seconds.sum) * 1e6),
            ("queue_duration_us", "Time in the queue.", lambda m: m.queue_seconds.sum * 1e6),
            ("compute_infer_duration_us", "Time in the batch.", lambda m: m.predict_seconds.sum * 1e6),
        )  # fmt: skip
        for name, text, value in counts:
            family = counter(f"nv_inference_{name}", text, labels=("model", "version"))
            for model in self._metrics.models:
                family.add_metric([*model.labels.values()], value(model))
            yield family

    def _families(self) -> Iterable[Any]:
        """What transformers and handlers count themselves, each family once for all of them."""
        families: dict[str, Any] = {}
        counting: tuple[StepMetrics | ModelMetrics, ...] = (*self._metrics.steps, *self._metrics.models)
        for one in counting:
            for family in one.families(one.labels):
                families.setdefault(family.name, family)
                if families[family.name] is not family:
                    families[family.name].samples += family.samples
        return families.values()

    def _policies(self, gauge: Callable[..., Any], names: tuple[str, ...]) -> Iterable[Any]:
        """What the policies know. Of a model with several families of inputs the times of the one that runs most."""
        queued = gauge("torpor_queued_rows", "Rows that wait.", labels=names)
        expected = gauge("torpor_expected_rows", "Peak of rows that wait or run, of late.", labels=names)
        ceiling = gauge("torpor_ceiling_rows", "Most rows that the largest ones have memory for.", labels=names)
        overhead = gauge("torpor_batch_overhead_seconds", "Learned time of a batch without its rows.", labels=names)
        cell = gauge("torpor_cell_seconds", "Learned time of one cell of a row.", labels=names)
        batch = gauge("torpor_batch_seconds", "Learned time of a batch of usual rows.", labels=(*names, "rows"))
        for model in self._metrics.models:
            labels, policy = [*model.labels.values()], model.policy
            queued.add_metric(labels, policy.queued_rows)
            expected.add_metric(labels, policy.expected_rows)
            if (lowest := policy.ceilings.lowest()) is not None:
                ceiling.add_metric(labels, lowest)
            times = policy.run_times
            usual = times.usual()
            if usual is None:
                continue
            overhead_s, cell_s = times.coefficients(usual.family)
            overhead.add_metric(labels, overhead_s)
            cell.add_metric(labels, cell_s)
            most = policy.settings.max_batch_size
            for rows in (*(bound for bound in _ROWS if bound < most), most):
                batch.add_metric([*labels, str(rows)], times.estimate_s(rows, usual))
        yield from (queued, expected, ceiling, overhead, cell, batch)
