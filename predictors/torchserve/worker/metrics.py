"""`context.metrics`: what handlers count and time, as debug lines of the log in TorchServe's own form."""

import logging
from collections.abc import Sequence
from typing import Any

logger = logging.getLogger("torpor.handler.metrics")


class Metric:
    """One of a name; dimensions are given by value, in the order of their names."""

    def __init__(self, name: str, unit: str, dimension_names: Sequence[str]) -> None:
        self.metric_name = name
        self.unit = unit
        self.dimension_names = list(dimension_names)

    def add_or_update(self, value: float, dimension_values: Sequence[str] = (), request_id: str = "", **_: Any) -> None:
        dimensions = ",".join(
            f"{name}:{said}" for name, said in zip(self.dimension_names, dimension_values, strict=False)
        )
        logger.debug("%s.%s:%s|#%s|requestID:%s", self.metric_name, self.unit, value, dimensions, request_id)

    update = add_or_update


class Metrics:
    """TorchServe's interface for a handler's own metrics."""

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self.request_ids: dict[int, str] | None = None
        self._metrics: dict[str, Metric] = {}

    def add_metric_to_cache(
        self, metric_name: str, unit: str, dimension_names: Sequence[str] = (), metric_type: Any = None
    ) -> Metric:
        metric = self._metrics[metric_name] = Metric(metric_name, unit, dimension_names)
        return metric

    def get_metric(self, metric_name: str, metric_type: Any = None) -> Metric:
        """Raises KeyError for one that was never added."""
        return self._metrics[metric_name]

    def add_metric(
        self,
        name: str,
        value: float,
        unit: str = "unit",
        idx: int | None = None,
        dimensions: Sequence[Any] = (),
        metric_type: Any = None,
    ) -> None:
        metric = self._metrics.get(name) or self.add_metric_to_cache(name, unit, [one.name for one in dimensions])
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
        metric_type: Any = None,
    ) -> None:
        if unit not in ("ms", "s"):
            raise ValueError(f"unit = {unit!r}, must be ms or s")
        self.add_metric(name, value, unit, idx, dimensions)

    def add_size(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "MB",
        dimensions: Sequence[Any] = (),
        metric_type: Any = None,
    ) -> None:
        if unit not in ("MB", "kB", "GB", "B"):
            raise ValueError(f"unit = {unit!r}, must be MB, kB, GB or B")
        self.add_metric(name, value, unit, idx, dimensions)

    def add_percent(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        dimensions: Sequence[Any] = (),
        metric_type: Any = None,
    ) -> None:
        self.add_metric(name, value, "percent", idx, dimensions)

    def add_error(self, name: str, value: float, dimensions: Sequence[Any] = ()) -> None:
        self.add_metric(name, value, "unit", None, dimensions)
