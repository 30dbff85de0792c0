"""What a batch will cost, learned from the batches that ran.

Two estimates of the seconds that a batch takes:

- per (rows, bucket): an exponentially weighted mean of what such batches took, for deadlines;
- per family: the line `seconds = overhead + slope * rows * cells` by weighted least squares, for batches not seen yet
  and for the question that padding asks: is the overhead that rows share worth the padding that it costs?

Warm-up gives both their prior: its batches are observed like any other.
"""

from collections.abc import Hashable
from dataclasses import dataclass

from ..remembered import Remembered
from .bucket import Bucket

MAX_ENTRIES = 1024
"""Most families and most (rows, bucket) pairs that are remembered: shapes come from callers, memory does not."""

WARM_UP_SIZE = 16
"""Size of a named axis in warm-up: small, so that a start stays short; the slope is learned from traffic."""

_WEIGHT = 0.2
"""Weight of the newest batch in a mean: five batches replace what was learned before."""

_FORGET = 0.98
"""What an observation still counts for in the line after each later one: about fifty batches of memory."""


@dataclass(slots=True)
class Line:
    """`seconds = overhead_s + slope_s * work`, fitted with weights; work = rows * cells.

    Disturbances only ever add: a batch in less than half of the expected time shows that what is known was learned from
    them, and takes its weight by the square of the ratio. Else a start that was held up looks like overhead, all lengths
    share batches, and a line through large batches only is slow to learn better.
    """

    batches: int = 0
    weight: float = 0.0
    rows: float = 0.0
    work: float = 0.0
    seconds: float = 0.0
    work_work: float = 0.0
    work_seconds: float = 0.0
    overhead_s: float = 0.0
    slope_s: float = 0.0

    def observe(self, rows: int, cells: int, seconds: float) -> None:
        work = rows * cells
        expected_s = self.overhead_s + self.slope_s * work
        keep = _FORGET
        if seconds < 0.5 * expected_s:
            keep *= (seconds / expected_s) ** 2
        self.batches += 1
        self.weight = self.weight * keep + 1.0
        self.rows = self.rows * keep + rows
        self.work = self.work * keep + work
        self.seconds = self.seconds * keep + seconds
        self.work_work = self.work_work * keep + work * work
        self.work_seconds = self.work_seconds * keep + work * seconds
        self.overhead_s, self.slope_s = self._fit()

    def _fit(self) -> tuple[float, float]:
        """(overhead_s, slope_s), neither negative."""
        mean_work, mean_s = self.work / self.weight, self.seconds / self.weight
        spread = self.work_work / self.weight - mean_work * mean_work
        if spread <= 1e-9 * (mean_work * mean_work + 1.0):  # one size seen: all of it may be overhead
            return mean_s, 0.0
        slope_s = max(0.0, (self.work_seconds / self.weight - mean_work * mean_s) / spread)
        overhead_s = mean_s - slope_s * mean_work
        return (overhead_s, slope_s) if overhead_s >= 0.0 else (0.0, mean_s / mean_work)


class RunTimes:
    """Learned run times of one model on one kind of device; seconds throughout."""

    def __init__(self) -> None:
        self._lines: Remembered[Hashable, Line] = Remembered(MAX_ENTRIES)
        self._means: Remembered[tuple[int, Bucket], float] = Remembered(MAX_ENTRIES)

    def observe(self, rows: int, bucket: Bucket, seconds: float) -> None:
        """A batch of `rows` rows padded to `bucket` took `seconds`."""
        line = self._lines.get(bucket.family)
        if line is None:
            line = Line()
            self._lines.keep(bucket.family, line)
        line.observe(rows, bucket.cells, seconds)
        key = (rows, bucket)
        mean = self._means.get(key)
        if mean is None:
            self._means.keep(key, seconds)
        else:
            self._means[key] = mean + _WEIGHT * (seconds - mean)

    def estimate_s(self, rows: int, bucket: Bucket) -> float:
        """Seconds that `rows` rows padded to `bucket` will take; 0.0 while nothing of their family has run."""
        mean = self._means.get((rows, bucket))
        if mean is not None:
            return mean
        line = self._lines.get(bucket.family)
        if line is None:
            return 0.0
        return line.overhead_s + line.slope_s * rows * bucket.cells

    def coefficients(self, family: Hashable) -> tuple[float, float]:
        """(overhead_s, slope_s per row and cell) of a family; zeros while nothing of it has run."""
        line = self._lines.get(family)
        return (line.overhead_s, line.slope_s) if line is not None else (0.0, 0.0)

    def usual(self) -> Bucket | None:
        """The family that ran most batches, with rows of its mean size of late; None while nothing has run."""
        if not self._lines:
            return None
        family, line = max(self._lines.items(), key=lambda entry: entry[1].batches)
        cells = round(line.work / line.rows)
        return Bucket(family, (cells,) if cells > 1 else ())
