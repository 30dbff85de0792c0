"""How long to wait before a request is sent again, and whether it may be.

Only what has not begun is sent again: the connection could not be made, or the predictor refused and said when to come again
(503 with Retry-After, UNAVAILABLE with grpc-retry-pushback-ms). That a kept connection was closed just as it was used again
is the pool's to mend (`pool.py`), at once.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from torpor.predictors.errors import TorporError, Unavailable


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential, with full jitter (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter).

    retries: most of one request; 0 for none. first_s, most_s: the first retry comes within first_s, each later one within
    twice the time of the one before, never more than most_s. What the predictor says is waited for in any case.
    random: gives numbers in [0, 1).
    """

    retries: int = 3
    first_s: float = 0.05
    most_s: float = 2.0
    random: Callable[[], float] = random.random

    def wait_s(self, error: TorporError, tried: int) -> float | None:
        """Seconds until the next try after `tried` tries, of which the last ended with `error`; None: it is the answer."""
        if tried > self.retries or not isinstance(error, Unavailable) or error.retry_after_s is None:
            return None
        return error.retry_after_s + self.random() * min(self.most_s, self.first_s * 2.0 ** (tried - 1))
