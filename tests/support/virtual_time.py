"""Time that is virtual, for tests of what waits."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Where a loop would wait for its next timer, the clock jumps to it."""

    def __init__(self) -> None:
        super().__init__(_JumpingSelector(self))
        self.now = 100.0

    def time(self) -> float:
        return self.now


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "the test waits for something that never comes"
            self._loop.now += timeout
        return ready


def run_virtually(scenario: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a loop whose time is virtual; it may not use sockets."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(scenario)
