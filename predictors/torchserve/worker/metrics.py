"""`context.metrics`: what handlers count and time. It goes to the server with the next answer, which has it in /metrics.

Each value is a debug line of the log too, in TorchServe's own form.
"""

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

logger = logging.getLogger("torpor.handler.metrics")

_KINDS = ("counter", "gauge", "histogram")
_MOST_WAITING = 4096
"""Values that wait for an answer to go with; a handler's own threads may go on without one."""

Key = tuple[str, str, tuple[tuple[str, str], ...]]
"""Name, kind, labels."""


class _Dimension(NamedTuple):
    """What TorchServe's own is, for the two that it adds."""

    name: str
    value: str


class Metric:
    """One of a name; dimensions are given by value, in the order of their names."""

    def __init__(
        self, name: str, unit: str, dimension_names: Sequence[str], kind: str, note: Callable[[Key, float], None]
    ) -> None:
        self.metric_name = name
        self.unit = unit
        self.dimension_names = list(dimension_names)
        self.kind = kind
        self._note = note

    def add_or_update(self, value: float, dimension_values: Sequence[str] = (), request_id: str = "", **_: Any) -> None:
        labels = tuple(zip(self.dimension_names, map(str, dimension_values), strict=False))
        dimensions = ",".join(f"{name}:{said}" for name, said in labels)
        logger.debug("%s.%s:%s|#%s|requestID:%s", self.metric_name, self.unit, value, dimensions, request_id)
        with contextlib.suppress(TypeError, ValueError):  # it counts nothing, and costs no answer
            number = float(value)
            if math.isfinite(number):
                self._note((self.metric_name, self.kind, labels), number)

    update = add_or_update


class Noted:
    """What a handler's metrics have got, from whatever thread."""

    def __init__(self) -> None:
        self.metrics: dict[str, Metric] = {}
        self._waiting: dict[Key, list[float]] = {}
        self._lock = threading.Lock()

    def take(self) -> list[tuple[str, str, list[tuple[str, str]], list[float]]]:
        """What was added since the last call: name, kind, labels, values."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        return [(name, kind, list(labels), values) for (name, kind, labels), values in waiting.items()]

    def note(self, key: Key, value: float) -> None:
        with self._lock:
            waiting = self._waiting.get(key)
            if waiting is None:
                if len(self._waiting) < _MOST_WAITING:
                    self._waiting[key] = [value]
            elif key[1] == "counter":
                waiting[0] += value
            elif key[1] == "gauge":
                waiting[0] = value
            elif len(waiting) < _MOST_WAITING:
                waiting.append(value)


class Metrics:
    """TorchServe's interface for a handler's own metrics. noted: where they go; several batches at a time share it."""

    def __init__(self, model_name: str, noted: Noted) -> None:
        self.model_name = model_name
        self.request_ids: dict[int, str] | None = None
        self.noted = noted

    def add_metric_to_cache(
        self, metric_name: str, unit: str, dimension_names: Sequence[str] = (), metric_type: Any = "counter"
    ) -> Metric:
        kind = str(getattr(metric_type, "value", metric_type)).lower()
        kind = kind if kind in _KINDS else "counter"
        metric = self.noted.metrics[metric_name] = Metric(metric_name, unit, dimension_names, kind, self.noted.note)
        return metric

    def get_metric(self, metric_name: str, metric_type: Any = None) -> Metric:
        """Raises KeyError for one that was never added."""
        return self.noted.metrics[metric_name]

    def add_metric(
        self,
        name: str,
        value: float,
        unit: str = "unit",
        idx: int | None = None,
        dimensions: Sequence[Any] = (),
        metric_type: Any = "counter",
    ) -> None:
        dimensions = self._with_defaults(idx, dimensions)
        metric = self.noted.metrics.get(name)
        if metric is None:
            metric = self.add_metric_to_cache(name, unit, [one.name for one in dimensions], metric_type)
        request_id = "" if idx is None or self.request_ids is None else self.request_ids.get(idx, "")
        metric.add_or_update(value, [one.value for one in dimensions], request_id)

    def add_counter(self, name: str, value: float, idx: int | None = None, dimensions: Sequence[Any] = ()) -> None:
        self.add_metric(name, value, "Count", idx, dimensions)

    def add_time(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "ms",
        dimensions: Sequence[Any] = (),
        metric_type: Any = "gauge",
    ) -> None:
        if unit not in ("ms", "s"):
            raise ValueError(f"unit = {unit!r}, must be ms or s")
        self.add_metric(name, value, unit, idx, dimensions, metric_type)

    def add_size(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "MB",
        dimensions: Sequence[Any] = (),
        metric_type: Any = "gauge",
    ) -> None:
        if unit not in ("MB", "kB", "GB", "B"):
            raise ValueError(f"unit = {unit!r}, must be MB, kB, GB or B")
        self.add_metric(name, value, unit, idx, dimensions, metric_type)

    def add_percent(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        dimensions: Sequence[Any] = (),
        metric_type: Any = "gauge",
    ) -> None:
        self.add_metric(name, value, "percent", idx, dimensions, metric_type)

    def add_error(self, name: str, value: float, dimensions: Sequence[Any] = ()) -> None:
        self.add_metric(name, value, "unit", None, dimensions)

    def _with_defaults(self, idx: int | None, dimensions: Sequence[Any] | None) -> list[Any]:
        """With those that TorchServe adds where they are not given: of a request's its model, and whether it is an error."""
        all_dimensions = [*(dimensions or ())]
        added = [_Dimension("Level", "Error")]
        if idx is not None:
            added = [_Dimension("ModelName", self.model_name), _Dimension("Level", "Model")]
        given = {one.name for one in all_dimensions}
        return all_dimensions + [one for one in added if one.name not in given]
