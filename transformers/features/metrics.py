"""What a cache of features counts; made into Prometheus's own types when somebody asks."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torpor.predictors.serving.metrics import Histogram

from .circuit import Circuit
from .store import FeatureStore

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class FeatureMetrics:
    """Of one cache.

    keys: looked up, by what came of it: hit, missing (it is known that there is none), miss, joined (somebody else's look-up
    was on its way), bypassed (Redis was not asked). failures: of Redis by what and kind, `read timeout`. dropped: rows that
    were loaded and not written.
    """

    def __init__(self, circuit: Circuit, store: FeatureStore) -> None:
        self._circuit = circuit
        self._store = store
        self.keys: Counter[str] = Counter()
        self.failures: Counter[tuple[str, str]] = Counter()
        self.read_seconds = Histogram(_SECONDS)
        self.load_seconds = Histogram(_SECONDS)
        self.load_failures = 0
        self.dropped = 0

    def families(self, labels: Mapping[str, str]) -> Iterable[Any]:
        """Prometheus's families, each sample with these labels."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        names, values = tuple(labels), tuple(labels.values())
        keys = CounterMetricFamily("torpor_feature_keys", "Keys looked up.", labels=(*names, "result"))
        for result, count in self.keys.items():
            keys.add_metric([*values, result], count)
        failures = CounterMetricFamily(
            "torpor_feature_store_failures", "What Redis did not do.", labels=(*names, "operation", "kind")
        )
        for (operation, kind), count in self.failures.items():
            failures.add_metric([*values, operation, kind], count)
        yield from (keys, failures)
        for name, text, number in (
            ("load_failures", "Calls of the loader that failed.", self.load_failures),
            ("rows_dropped", "Rows that were loaded and not written.", self.dropped),
            ("values_foreign", "Values in Redis that were none of the table's.", self._store.foreign),
        ):
            family = CounterMetricFamily(f"torpor_feature_{name}", text, labels=names)
            family.add_metric(values, number)
            yield family
        degraded = GaugeMetricFamily("torpor_feature_degraded", "1 while Redis is not asked.", labels=names)
        degraded.add_metric(values, float(not self._circuit.is_closed))
        yield degraded
        for name, text, histogram in (
            ("read", "Time of a read from Redis.", self.read_seconds),
            ("load", "Time of a call of the loader.", self.load_seconds),
        ):
            times = HistogramMetricFamily(f"torpor_feature_{name}_seconds", text, labels=names)
            times.add_metric(values, histogram.cumulative(), histogram.sum)
            yield times
