"""A request on its way through a simulated revision."""

from functools import lru_cache

from torpor.predictors.batching.bucket import Bucket, rounded
from torpor.predictors.batching.load import FAMILY
from torpor.predictors.batching.policy import Item


class Request(Item):
    """sent_s: when it came. patience_s: how long after that it is of use, or None."""

    answered_rows = 0

    def __init__(
        self, sent_s: float, rows: int = 1, sizes: tuple[int, ...] = (), patience_s: float | None = None
    ) -> None:
        self.rows = rows
        self.bucket = _bucket(sizes)
        self.sizes = sizes
        self.sent_s = sent_s
        if patience_s is not None:
            self.deadline_s = sent_s + patience_s


@lru_cache(4096)
def _bucket(sizes: tuple[int, ...]) -> Bucket:
    return Bucket(FAMILY, rounded(sizes))
