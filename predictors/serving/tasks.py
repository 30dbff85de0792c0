"""Work beside the requests: kept until it ends (the event loop itself does not), named, and its failure logged."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar

logger = logging.getLogger("torpor")

T = TypeVar("T")


async def in_daemon(function: Callable[[], T]) -> T:
    """Run what may take as long as it likes on a thread that nobody waits for at the process's end, as asyncio's own are."""
    future: Future[T] = Future()
    Thread(target=settle, args=(future, function), name="torpor-beside", daemon=True).start()
    return await asyncio.wrap_future(future)


def settle(future: Future[T], function: Callable[[], T]) -> None:
    """Run the function on this thread, and give the future its result, or whatever it raises, sys.exit included.

    Not if nobody waits any more; who is cancelled while it runs does not get to know.
    """
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except StopIteration as error:  # no coroutine can be given one (PEP 479)
        failure = RuntimeError("StopIteration was raised")
        failure.__cause__ = error
        future.set_exception(failure)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def has_succeeded(future: Future[T]) -> bool:
    """Of one that is done: whether it has a result."""
    return not future.cancelled() and future.exception() is None


class Tasks:
    """The tasks that one owner has started."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def cancel(self) -> None:
        """Cancel all of them, and wait until none runs any more."""
        for task in self._running:
            task.cancel()
        await self.ended()

    async def ended(self) -> None:
        """Wait until none runs any more."""
        while self._running:
            await asyncio.wait(self._running)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed", task.get_name(), exc_info=error)
