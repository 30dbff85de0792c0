"""Which rows may share a batch."""

import math
from collections.abc import Hashable, Iterable
from typing import NamedTuple

_AXIS_STEP = 8
"""Sizes of named axes are rounded up to this in a bucket's key, so that near lengths meet; a batch is padded only to
its own longest row. Eight tokens are a twentieth of MiniLM's median batch."""


class Bucket(NamedTuple):
    """Rows of one `family` can be put into one batch; those of equal `axes` without padding.

    family: everything that must be equal (input names, datatypes, fixed axes); opaque to the policy.
    axes: the sizes of the axes that the model lets torpor pad, in a fixed order; () for a model without any.
    alone: a batch holds the rows of one item only; then nothing is worth waiting for.
    """

    family: Hashable
    axes: tuple[int, ...] = ()
    alone: bool = False

    def joined(self, other: "Bucket") -> "Bucket":
        """The smallest bucket that holds the rows of both, which must be of one family."""
        return Bucket(self.family, tuple(map(max, self.axes, other.axes)))

    @property
    def cells(self) -> int:
        """The padded size of one row, the measure of its cost: the product of its axes, 1 without any."""
        return math.prod(self.axes)


def rounded(sizes: Iterable[int]) -> tuple[int, ...]:
    """The axes of the bucket that rows of these sizes belong to."""
    return tuple(-(-size // _AXIS_STEP) * _AXIS_STEP for size in sizes)
