"""SIGTERM and SIGINT for a loop that must not be cut anywhere: at once while it only waits, else when it next would."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .agent import Stopped


class Interruption:
    """`heeded` around the loop, `interruptible` around its waits. Either raises Stopped."""

    def __init__(self) -> None:
        self._is_asked = False
        self._may_raise = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """In the main thread."""
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        if self._is_asked:
            raise Stopped
        self._may_raise = True
        try:
            yield
        finally:
            self._may_raise = False

    def wait(self, seconds: float) -> None:
        with self.interruptible():
            time.sleep(seconds)

    def _ask(self, number: int, frame: object) -> None:
        self._is_asked = True
        if self._may_raise:
            self._may_raise = False
            raise Stopped
