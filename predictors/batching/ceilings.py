"""How many rows a device has memory for, learned from the batches that it had none for.

A batch that runs out of memory says that its rows are too many for rows of its size and for larger ones; half as many
may do. Of one family this is a staircase: the larger a row, the fewer of them.

What took the memory may be gone one day: another process on the device, a fragmented pool. So after `_TRIAL_BATCHES`
batches below a ceiling it is doubled. Is it right after all, then this costs one batch that is run again in
halves, and halving leads back to where it was: a thousandth of the device's time at most.
"""

from collections.abc import Hashable
from dataclasses import dataclass

from ..remembered import Remembered
from .bucket import Bucket
from .run_times import MAX_ENTRIES

_TRIAL_BATCHES = 1000
"""Batches after which a ceiling is doubled."""


@dataclass(slots=True)
class _Step:
    """At most `rows` rows of `cells` cells and more; `batches` of them have run since."""

    cells: int
    rows: int
    batches: int = 0


class Ceilings:
    """The ceilings of one model on one kind of device."""

    def __init__(self) -> None:
        self.steps: Remembered[Hashable, list[_Step]] = Remembered(MAX_ENTRIES)
        """By family, cells ascending and rows descending; empty while nothing was learned."""

    def rows(self, bucket: Bucket, most: int) -> int:
        """Most rows that a batch of the bucket may have; `most` where no lower ceiling was learned."""
        step = self._step(bucket)
        return most if step is None else min(most, step.rows)

    def lowest(self) -> int | None:
        """The ceiling of the largest rows; None while none was learned."""
        return min((steps[-1].rows for steps in self.steps.values()), default=None)

    def ran_out(self, bucket: Bucket, rows: int) -> None:
        """There was no memory for `rows` rows of the bucket, of which there are at least 2."""
        ceiling, cells = rows // 2, bucket.cells
        smaller = [step for step in self.steps.pop(bucket.family, []) if step.cells < cells or step.rows < ceiling]
        if not any(step.cells <= cells and step.rows <= ceiling for step in smaller):
            smaller.append(_Step(cells, ceiling))
        self.steps.keep(bucket.family, sorted(smaller, key=lambda step: step.cells))

    def ran(self, bucket: Bucket, most: int) -> None:
        """A batch of the bucket ran; a ceiling that reaches `most`, or the one of smaller rows, is forgotten."""
        step = self._step(bucket)
        if step is None:
            return
        step.batches += 1
        if step.batches < _TRIAL_BATCHES:
            return
        step.batches, step.rows = 0, step.rows * 2
        steps = self.steps[bucket.family]
        at = steps.index(step)
        if step.rows >= (steps[at - 1].rows if at else most):
            del steps[at]
            if not steps:
                del self.steps[bucket.family]

    def _step(self, bucket: Bucket) -> _Step | None:
        found = None
        for step in self.steps.get(bucket.family, ()):
            if step.cells > bucket.cells:
                break
            found = step
        return found
