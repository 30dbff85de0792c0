"""The thread that a model runs on: it takes one batch at a time and tells the event loop of its end."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Protocol, TypeVar

from ..errors import ModelFailed, TorporError
from ..protocol.datatypes import Array
from ..signature import Bound, Signature

logger = logging.getLogger("torpor.device")

T = TypeVar("T")

Result = dict[str, Array] | TorporError
"""One part's outputs by name, or its error."""

Done = Callable[[list[Result], float], None]
"""Called on the event loop with the results in the order of the parts, and the seconds that the device took."""


class Executor(Protocol):
    """What runs on the thread; `runtime.executor.Executor` is the real one."""

    @property
    def signature(self) -> Signature: ...
    def load(self) -> None: ...
    def warm_up(self, rows: int) -> Bound | None: ...
    def run(self, parts: Sequence[Bound]) -> list[Result]: ...


class DeviceThread:
    """Runs an executor's calls one after the other. A daemon: a model that hangs cannot keep the process alive."""

    def __init__(self, name: str, executor: Executor) -> None:
        self.executor = executor
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=f"torpor-device-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end after what it has been given."""
        self._jobs.put(None)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` on the thread; its result, or its error, comes with the future."""
        future: Future[T] = Future()

        def job() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # a `load` that calls sys.exit fails like any other
                future.set_exception(error)

        self._jobs.put(job)
        return future

    def submit(self, parts: Sequence[Bound], done: Done, loop: asyncio.AbstractEventLoop) -> None:
        """Run a batch; `done` is called on `loop` whatever happens to it."""

        def job() -> None:
            started_s = time.perf_counter()
            try:
                results = self.executor.run(parts)
            except BaseException as error:  # SystemExit from a model must not end the thread that others wait for
                logger.exception("the model ended its batch with %s", type(error).__name__)
                results = [ModelFailed(f"the model raised {type(error).__name__}")] * len(parts)
            loop.call_soon_threadsafe(done, results, time.perf_counter() - started_s)

        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
