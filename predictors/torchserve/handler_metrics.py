"""What the handlers of an archive count and time themselves (`context.metrics`), for Prometheus.

Workers send what came since their last message (`worker/metrics.py`): counts are added up over all of them, of gauges the last
value stands. A handler may make a label of whatever its callers send, so there is a limit.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..serving.metrics import Histogram

logger = logging.getLogger("torpor.torchserve")

_MOST_SERIES = 1000
_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""prometheus_client's, which TorchServe's histograms have."""

_OURS = ("torpor_", "nv_", "process_", "request_")
_OUR_LABELS = ("model_name", "model_version", "le")

Update = tuple[str, str, Sequence[tuple[str, str]], Sequence[float]]
"""Name, kind, labels, and the values: of a counter what is to be added, of a gauge the last."""

_Key = tuple[str, tuple[tuple[str, str], ...]]


class HandlerMetrics:
    """Of one version, all of its workers together."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._kinds: dict[str, str] = {}
        self._numbers: dict[_Key, float] = {}
        self._histograms: dict[_Key, Histogram] = {}
        self._is_full = False

    def take(self, updates: Sequence[Update]) -> None:
        """What a worker has sent."""
        for said, kind, labels, values in updates:
            name = _name(said)
            key = name, tuple((_label(label), value) for label, value in labels)
            if not self._has_room(key) or self._kinds.setdefault(name, kind) != kind:
                continue
            if kind == "histogram":
                histogram = self._histograms.setdefault(key, Histogram(_BOUNDS))
                for value in values:
                    histogram.observe(value)
            elif kind == "counter":
                self._numbers[key] = self._numbers.get(key, 0.0) + max(0.0, sum(values))
            else:
                self._numbers[key] = values[-1]

    def families(self, labels: Mapping[str, str]) -> Iterable[Any]:
        """A family of Prometheus's for each series, with these labels as well."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
        for key in (*self._numbers, *self._histograms):
            name, own = key
            all_labels = {**labels, **dict(own)}
            family = kinds[self._kinds[name]](name, "A handler's own.", labels=[*all_labels])
            if key in self._histograms:
                histogram = self._histograms[key]
                family.add_metric([*all_labels.values()], histogram.cumulative(), histogram.sum)
            else:
                family.add_metric([*all_labels.values()], self._numbers[key])
            yield family

    def _has_room(self, key: _Key) -> bool:
        if key in self._numbers or key in self._histograms:
            return True
        if len(self._numbers) + len(self._histograms) < _MOST_SERIES:
            return True
        if not self._is_full:
            self._is_full = True
            logger.warning("%s: metrics of its handler beyond %d are dropped", self._name, _MOST_SERIES)
        return False


def _name(said: str) -> str:
    """As Prometheus can have it, and as none of torpor's own."""
    name = re.sub(r"\W", "_", said, flags=re.ASCII)
    return f"handler_{name}" if name.startswith(_OURS) or not name[:1].isalpha() else name


def _label(said: str) -> str:
    label = re.sub(r"\W", "_", said, flags=re.ASCII)
    return f"handler_{label}" if label in _OUR_LABELS or not label[:1].isalpha() else label
