"""Warm-up: batches of zeros, so that no caller is a model's first and the policy knows what a batch takes.

The first, of one row, runs before the model is there for anybody. It allocates, and so it says nothing of the batches after
it. What is left are lessons: the policy learns from them what a batch takes. They run behind the requests
(`Batcher.teach`), since for a server that wakes because of a request they are only in its way.
"""

import asyncio
import logging
from collections.abc import Sequence

from ..errors import InvalidInput, ModelFailed, OutOfMemory, TorporError
from ..signature import Bound
from .device_pool import DevicePool

logger = logging.getLogger("torpor.model")

_ROWS = (1, 4)
"""Two sizes make a line."""


async def warm_up(devices: DevicePool, max_batch_size: int) -> Sequence[Bound]:
    """Run the first batch on every device; the lessons. Raises the model's error.

    Text and bytes have no zero, and most that parse them raise for an empty one: that is no error here, nor is InvalidInput.
    A class that is compiled runs each of the lessons here too: a new number of rows would keep a caller waiting for minutes.
    """
    executor = devices.executor
    lessons = [bound for rows in _ROWS if (bound := executor.warm_up(min(rows, max_batch_size))) is not None]
    takes_bytes = any(spec.datatype == "BYTES" for spec in executor.signature.inputs.values())
    for bound in lessons if executor.compiles else lessons[:1]:
        runs = devices.call(lambda executor, parts=(bound,): executor.run(parts))  # type: ignore[misc]
        for (result,) in await asyncio.gather(*map(asyncio.wrap_future, runs)):
            if isinstance(result, InvalidInput) or (isinstance(result, ModelFailed) and takes_bytes):
                logger.warning("not warmed up, its first caller will do that: %s", result)
                return ()
            if isinstance(result, OutOfMemory) and bound.rows > 1:
                continue  # the lesson meets it again, and the policy learns it
            if isinstance(result, TorporError):
                raise result
    return lessons
