"""Warm-up: batches of zeros, so that no caller is a model's first and the policy knows what a batch takes.

The first, of one row, runs before the model is there for anybody. It allocates, and so it says nothing of the batches after
it. What is left are lessons: the policy learns from them what a batch takes. They run behind the requests
(`Batcher.teach`), since for a server that wakes because of a request they are only in its way.
"""

import asyncio
from collections.abc import Sequence

from ..errors import InvalidInput, OutOfMemory, TorporError
from ..signature import Bound
from .device_pool import DevicePool

_ROWS = (1, 4)
"""Two sizes make a line."""


async def warm_up(devices: DevicePool, max_batch_size: int) -> Sequence[Bound]:
    """Run the first batch on every device; the lessons. Raises the model's error.

    A class that is compiled runs each of the lessons here too: a new number of rows would keep a caller waiting for minutes.
    """
    executor = devices.executor
    lessons = [bound for rows in _ROWS if (bound := executor.warm_up(min(rows, max_batch_size))) is not None]
    for bound in lessons if executor.compiles else lessons[:1]:
        runs = devices.call(lambda executor, parts=(bound,): executor.run(parts))  # type: ignore[misc]
        for (result,) in await asyncio.gather(*map(asyncio.wrap_future, runs)):
            if isinstance(result, InvalidInput):  # zeros are not what it takes: then its first caller warms it up
                return ()
            if isinstance(result, OutOfMemory) and bound.rows > 1:
                continue  # the lesson meets it again, and the policy learns it
            if isinstance(result, TorporError):
                raise result
    return lessons
