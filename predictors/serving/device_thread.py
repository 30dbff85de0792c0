"""The thread that an instance of a model runs on: it takes batches one by one and tells the event loop of their ends.

On a device that takes several batches at once, a second thread does nothing but wait for the end of each, so that the
first is free to begin the next one meanwhile.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeVar

from ..errors import ModelFailed, TorporError
from ..protocol.datatypes import Array
from ..signature import Bound, Signature
from .tasks import settle

logger = logging.getLogger("torpor.device")

T = TypeVar("T")

Result = dict[str, Array] | TorporError
"""One part's outputs by name, or its error."""

Done = Callable[[list[Result], float], None]
"""Called on the event loop with the results in the order of the parts, and the seconds that the device took."""


class Executor(Protocol):
    """What runs on the thread; `runtime.executor.Executor` is the real one.

    in_flight: batches that it wants to be given at once, known when it is loaded. If more than 1, `begin` enqueues one,
    `wait` waits for its end, on any thread, and `run` then has the results. compiles: the first batch of a size may take
    minutes. halved_s: when the last run of a part of a batch that had failed began, on the clock of time.monotonic.
    memory_bytes: what is allocated of its device's own memory, by the device's name, or nothing; any thread may ask.
    """

    @property
    def signature(self) -> Signature: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def compiles(self) -> bool: ...
    @property
    def halved_s(self) -> float: ...
    @property
    def memory_bytes(self) -> Mapping[str, int]: ...
    def load(self) -> None: ...
    def unload(self) -> None: ...
    def warm_up(self, rows: int) -> Bound | None: ...
    def begin(self, parts: Sequence[Bound]) -> Any: ...
    def wait(self, begun: Any) -> None: ...
    def run(self, parts: Sequence[Bound], begun: Any = None) -> list[Result]: ...


class DeviceThread:
    """Runs an executor's calls one after the other. A daemon: a model that hangs cannot keep the process alive."""

    def __init__(self, name: str, executor: Executor) -> None:
        self.executor = executor
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._waits: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=_work, args=(self._jobs,), name=f"torpor-device-{name}", daemon=True)
        self._waiter = Thread(target=_work, args=(self._waits,), name=f"torpor-waiter-{name}", daemon=True)
        self._last_end_s = 0.0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let both threads end after the calls that they have been given; a batch in flight must have ended before."""
        self._jobs.put(None)
        self._waits.put(None)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` on the thread; its result, or its error, comes with the future."""
        future: Future[T] = Future()
        self._jobs.put(partial(settle, future, function))
        return future

    def submit(self, parts: Sequence[Bound], done: Done, loop: asyncio.AbstractEventLoop) -> None:
        """Run a batch; `done` is called on `loop` whatever happens to it."""
        executor = self.executor

        def begin() -> None:
            started_s = time.perf_counter()
            if executor.in_flight == 1:
                end(started_s, None)
                return
            if not self._waiter.is_alive():
                self._waiter.start()
            begun = executor.begin(parts)
            self._waits.put(lambda: wait(started_s, begun))

        def wait(started_s: float, begun: Any) -> None:
            with suppress(Exception):  # `run` meets it again, and answers for it
                executor.wait(begun)
            self._jobs.put(lambda: end(started_s, begun))

        def end(started_s: float, begun: Any) -> None:
            try:
                results = executor.run(parts, begun)
            except BaseException as error:  # SystemExit from a model must not end the thread that others wait for
                logger.exception("the model ended its batch with %s", type(error).__name__)
                results = [ModelFailed(f"the model raised {type(error).__name__}")] * len(parts)
            # A batch that was begun while another one ran has had the device since that one's end.
            ended_s = time.perf_counter()
            seconds = ended_s - max(started_s, self._last_end_s)
            self._last_end_s = ended_s
            loop.call_soon_threadsafe(done, results, seconds)

        self._jobs.put(begin)


def _work(jobs: "SimpleQueue[Callable[[], None] | None]") -> None:
    while (job := jobs.get()) is not None:
        job()
