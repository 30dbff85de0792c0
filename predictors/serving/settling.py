"""From answers that are called with a result to coroutines that await one."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from ..errors import TorporError

T = TypeVar("T")


def settling(future: "asyncio.Future[T]") -> Callable[[T | TorporError], None]:
    """What gives the future its result, or raises its error there; nothing if whoever awaits it is being cancelled."""

    def answer(result: T | TorporError) -> None:
        if future.done():
            return
        if isinstance(result, TorporError):
            future.set_exception(result)
        else:
            future.set_result(result)

    return answer
