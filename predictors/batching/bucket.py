"""Which rows may share a batch."""

import math
from collections.abc import Hashable
from typing import NamedTuple


class Bucket(NamedTuple):
    """Rows of one `family` can be put into one batch; those of equal `axes` without padding.

    family: everything that must be equal (input names, datatypes, fixed axes); opaque to the policy.
    axes: the sizes of the axes that the model lets torpor pad, in a fixed order; () for a model without any.
    """

    family: Hashable
    axes: tuple[int, ...] = ()

    def joined(self, other: "Bucket") -> "Bucket":
        """The smallest bucket that holds the rows of both, which must be of one family."""
        return Bucket(self.family, tuple(map(max, self.axes, other.axes)))

    @property
    def cells(self) -> int:
        """The padded size of one row, the measure of its cost: the product of its axes, 1 without any."""
        return math.prod(self.axes)
