"""How Knative scales a revision: what its annotations say, and config-autoscaler's defaults where they say nothing.

Names, limits and defaults are those of Knative Serving's pkg/apis/autoscaling (register.go, annotation_validation.go) and of
its config map config-autoscaler; `kpa.py` acts by them. Most names of several words have an older spelling too (`minScale`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .durations import seconds

PREFIX = "autoscaling.knative.dev/"


class AnnotationError(ValueError):
    """name: the annotation's, with its prefix. value: as it stands there. allowed: what it must be."""

    def __init__(self, name: str, value: object, allowed: str) -> None:
        super().__init__(f"{name} = {value!r}, must be {allowed}")
        self.name = name
        self.value = value
        self.allowed = allowed


@dataclass(frozen=True)
class Autoscaling:
    """One revision's scaling. Counts are of pods, times in seconds.

    container_concurrency: requests that a pod gets at once; 0: no limit. metric: concurrency or rps. target: of the metric
    a pod, before utilisation; 0: the metric's default. max_scale: 0: no limit. target_burst_capacity: -1: the activator
    stays in the path; 0: only while there is no pod. retention_s: how long the last pod stays beyond the window. grace_s,
    tick_s and the rates are the cluster's, not the revision's.
    """

    container_concurrency: int = 0
    metric: str = "concurrency"
    target: float = 0.0
    target_utilization_percentage: float = 70.0
    min_scale: int = 0
    max_scale: int = 0
    initial_scale: int = 1
    activation_scale: int = 1
    scale_down_delay_s: float = 0.0
    window_s: float = 60.0
    panic_window_percentage: float = 10.0
    panic_threshold_percentage: float = 200.0
    target_burst_capacity: float = 211.0
    retention_s: float = 0.0
    grace_s: float = 30.0
    tick_s: float = 2.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0

    @property
    def pod_target(self) -> float:
        """What the autoscaler aims at for a pod: the target, at most what a pod takes, times the utilisation."""
        target = self.target or (200.0 if self.metric == "rps" else self.container_concurrency or 100.0)
        if self.metric == "concurrency" and self.container_concurrency:
            target = min(target, self.container_concurrency)
        return target * self.target_utilization_percentage / 100

    @property
    def panic_window_s(self) -> float:
        return self.window_s * self.panic_window_percentage / 100

    @classmethod
    def of(cls, annotations: Mapping[str, Any], container_concurrency: int = 0) -> "Autoscaling":
        """Of a revision's annotations and its containerConcurrency. Raises AnnotationError."""
        read: dict[str, Any] = {"container_concurrency": container_concurrency}
        written: dict[str, str] = {}
        for short, annotation in ANNOTATIONS.items():
            for name in spellings(short):
                value = annotations.get(name)
                if value is not None:
                    read[annotation.field] = annotation.read(name, value)
                    written[short] = name
                    break
        scaling = cls(**read)
        if scaling.max_scale and scaling.min_scale > scaling.max_scale:
            raise AnnotationError(
                written["min-scale"], str(scaling.min_scale), f"at most max-scale, {scaling.max_scale}"
            )
        return scaling


@dataclass(frozen=True)
class Annotation:
    """field: of `Autoscaling`. kind: int, float, duration or word. low, high: the range; words: those of a word."""

    field: str
    kind: str
    low: float = 0.0
    high: float = float("inf")
    words: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        if self.kind == "word":
            return f"one of {', '.join(self.words)}"
        what = {"int": "a whole number", "float": "a number", "duration": "whole seconds, like 60s,"}[self.kind]
        if self.high == float("inf"):
            return f"{what} of at least {self.low:g}"
        return f"{what} in [{self.low:g}, {self.high:g}]"

    def read(self, name: str, value: Any) -> Any:
        """Raises AnnotationError."""
        try:
            if not isinstance(value, str):  # the API server refuses it before anybody reads it
                raise ValueError
            if self.kind == "word":
                if value not in self.words:
                    raise ValueError
                return value
            number = seconds(value) if self.kind == "duration" else int(value) if self.kind == "int" else float(value)
            if not self.low <= number <= self.high or (self.kind == "duration" and number != int(number)):
                raise ValueError
        except ValueError:
            allowed = self.allowed if isinstance(value, str) else f"a string, {self.allowed}"
            raise AnnotationError(name, value, allowed) from None
        return number


ANNOTATIONS = {
    "metric": Annotation("metric", "word", words=("concurrency", "rps")),
    "target": Annotation("target", "float", 0.01),
    "target-utilization-percentage": Annotation("target_utilization_percentage", "float", 1, 100),
    "min-scale": Annotation("min_scale", "int"),
    "max-scale": Annotation("max_scale", "int"),
    "initial-scale": Annotation("initial_scale", "int"),
    "activation-scale": Annotation("activation_scale", "int", 2),
    "scale-down-delay": Annotation("scale_down_delay_s", "duration", 0, 3600),
    "window": Annotation("window_s", "duration", 6, 3600),
    "panic-window-percentage": Annotation("panic_window_percentage", "float", 1, 100),
    "panic-threshold-percentage": Annotation("panic_threshold_percentage", "float", 110, 1000),
    "target-burst-capacity": Annotation("target_burst_capacity", "float", -1),
    "scale-to-zero-pod-retention-period": Annotation("retention_s", "duration", 0, 3600),
}
"""By name without the prefix: what a revision of the KPA may say."""

_ONE_SPELLING = ("activation-scale",)
"""Younger than the older spelling."""


def spellings(short: str) -> tuple[str, ...]:
    """The names with the prefix that Knative takes for an annotation; of several that are given the first counts."""
    first, *rest = short.split("-")
    older = first + "".join(word.capitalize() for word in rest)
    return (PREFIX + short,) if older == short or short in _ONE_SPELLING else (PREFIX + short, PREFIX + older)
