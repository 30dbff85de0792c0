"""The devices of one model, each with a thread and an instance of its own, as the batcher sees them: as one."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from ..signature import Bound
from .device_thread import DeviceThread, Done, Executor, Result

T = TypeVar("T")


class DevicePool:
    """Runs each batch on the device that has the fewest."""

    overlaps = True

    def __init__(self, name: str, executors: Sequence[Executor]) -> None:
        self._threads = [DeviceThread(f"{name}-{number}", executor) for number, executor in enumerate(executors)]
        self._batches = [0] * len(executors)

    @property
    def executor(self) -> Executor:
        """One of them, for what all have in common."""
        return self._threads[0].executor

    @property
    def devices(self) -> int:
        """Batches that can run at the same time."""
        return len(self._threads)

    @property
    def in_flight(self) -> int:
        """Batches that the devices want to be given at once, some of them while others run; known when they are loaded."""
        return sum(thread.executor.in_flight for thread in self._threads)

    @property
    def halved_s(self) -> float:
        """When the last run of a part of a batch that had failed began, on the clock of time.monotonic."""
        return max(thread.executor.halved_s for thread in self._threads)

    def memory_bytes(self) -> dict[str, int]:
        """What is allocated on each device that has memory of its own."""
        return {name: size for thread in self._threads for name, size in thread.executor.memory_bytes.items()}

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def load(self) -> list[Future[None]]:
        """Load the instances on their threads, one after the other; none after one that fails.

        What a `load` sets for its time is the process's: torch's random numbers, its default dtype.
        """
        loading: list[Future[None]] = []
        for thread in self._threads:
            before = loading[-1] if loading else None
            loading.append(thread.call(partial(_load_after, before, thread.executor)))
        return loading

    def stop(self) -> None:
        """Unload the model, and let the threads end, after what they have been given."""
        for thread in self._threads:
            thread.call(thread.executor.unload)
            thread.stop()

    def call(self, function: Callable[[Executor], T]) -> list[Future[T]]:
        """Run `function` on each device's thread, with its executor."""
        return [thread.call(partial(function, thread.executor)) for thread in self._threads]

    def submit(self, parts: Sequence[Bound], done: Done, loop: asyncio.AbstractEventLoop) -> None:
        """Run a batch; `done` is called on `loop` whatever happens to it."""
        if len(self._threads) == 1:
            self._threads[0].submit(parts, done, loop)
            return
        number = min(range(len(self._threads)), key=self._batches.__getitem__)
        self._batches[number] += 1

        def ended(results: list[Result], seconds: float) -> None:
            self._batches[number] -= 1
            done(results, seconds)

        self._threads[number].submit(parts, ended, loop)


def _load_after(before: Future[None] | None, executor: Executor) -> None:
    if before is not None:
        before.result()
    executor.load()
