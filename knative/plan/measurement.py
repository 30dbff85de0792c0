"""What was measured of a predictor, as a value that is saved and read again.

{"model": "mlp", "batches": [{"rows": 1, "cells": 1, "seconds": 0.00021}, ...], "request_s": 0.0001, ...}
"""

import json
import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torpor.predictors.settings import SettingError


@dataclass(frozen=True)
class BatchTime:
    """A batch of `rows` rows, padded to `cells` elements along their named axes (1 without any), took `seconds`."""

    rows: int
    cells: int
    seconds: float


@dataclass(frozen=True)
class Measurement:
    """One predictor in a process of its own. Times in seconds, sizes in bytes.

    batches: time of the model by rows and cells. request_s: of a core for each request beside the model: HTTP, decoding,
    encoding. around_s: what an answer to a lone caller takes beyond these two. cores: busy while full batches run.
    start: phases in order, from the process's start to its first answer. memory_bytes: the peak (VmHWM) after full batches;
    parameter_bytes: of the weights, 0 where they are not known.
    """

    model: str
    batches: tuple[BatchTime, ...]
    request_s: float
    around_s: float
    cores: float
    start: Mapping[str, float]
    memory_bytes: int
    parameter_bytes: int = 0
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def start_s(self) -> float:
        """From the process's start to its first answer."""
        return sum(self.start.values())

    @property
    def most_rows(self) -> int:
        return max(batch.rows for batch in self.batches)

    @property
    def cells(self) -> tuple[int, int]:
        """The smallest and the largest size of a row that was measured; (1, 1) for rows without named axes."""
        sizes = [batch.cells for batch in self.batches]
        return min(sizes), max(sizes)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Measurement":
        """Raises SettingError that names file, field, value and what it must be."""
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise SettingError(f"{path}: {error}") from None
        if not isinstance(content, dict):
            raise SettingError(f"{path}: must be a JSON object")
        return cls._of(str(path), content)

    @classmethod
    def _of(cls, where: str, content: dict[str, Any]) -> "Measurement":
        known = {item.name for item in fields(cls)}
        if unknown := sorted({*content} - known):
            raise SettingError(f"{where}: {unknown[0]} is unknown, must be one of {', '.join(sorted(known))}")
        for name in ("model", "batches", "request_s", "around_s", "cores", "start", "memory_bytes"):
            if name not in content:
                raise SettingError(f"{where}: {name} is missing")
        for name in ("request_s", "around_s", "cores", "memory_bytes", "parameter_bytes"):
            _number(where, name, content.get(name, 0))
        start = content["start"]
        if not isinstance(start, dict):
            raise SettingError(f"{where}: start = {start!r}, must be an object of phases and seconds")
        for phase, seconds in start.items():
            _number(where, f"start.{phase}", seconds)
        batches = content["batches"]
        if not isinstance(batches, list) or not batches:
            raise SettingError(f"{where}: batches = {batches!r}, must be a list of at least one")
        for number, batch in enumerate(batches):
            if not isinstance(batch, dict) or {*batch} != {"rows", "cells", "seconds"}:
                raise SettingError(f"{where}: batches[{number}] = {batch!r}, must have rows, cells and seconds")
            for name in ("rows", "cells"):
                if not isinstance(batch[name], int) or batch[name] < 1:
                    raise SettingError(
                        f"{where}: batches[{number}].{name} = {batch[name]!r}, must be an integer, at least 1"
                    )
            _number(where, f"batches[{number}].seconds", batch["seconds"])
        return cls(**{**content, "batches": tuple(BatchTime(**batch) for batch in batches)})


def _number(where: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise SettingError(f"{where}: {name} = {value!r}, must be a number, at least 0")


class BatchTimes:
    """Seconds of any batch, between and beyond the measured ones on straight lines: by rows, then by cells."""

    def __init__(self, batches: tuple[BatchTime, ...]) -> None:
        self._lines: dict[int, list[tuple[float, float]]] = {}
        for batch in sorted(batches, key=lambda batch: (batch.cells, batch.rows)):
            self._lines.setdefault(batch.cells, []).append((batch.rows, batch.seconds))
        self._known: dict[tuple[int, int], float] = {}

    def __call__(self, rows: int, cells: int) -> float:
        seconds = self._known.get((rows, cells))
        if seconds is None:
            by_cells = [(float(size), _on_line(points, rows)) for size, points in self._lines.items()]
            seconds = self._known[rows, cells] = _on_line(by_cells, cells)
        return seconds


def _on_line(points: list[tuple[float, float]], x: float) -> float:
    """Linear between ascending points and beyond the last one; before the first one its value, at least 1 µs."""
    if x <= points[0][0] or len(points) == 1:
        return points[0][1]
    at = min(max(1, bisect_left(points, (x, -math.inf))), len(points) - 1)
    (low, low_s), (high, high_s) = points[at - 1], points[at]
    return max(1e-6, low_s + max(0.0, high_s - low_s) * (x - low) / (high - low))
