"""Lines of several components in one terminal, each with its name in front; in colour where somebody looks."""

import os
import sys
import time
from collections import deque
from typing import TextIO

_COLOURS = (36, 33, 35, 32, 34, 31)
_OWN = "up"
_SAID = 200


class Terminal:
    """names: of the components, in the order of their colours. stream: standard error by default."""

    def __init__(self, names: list[str], stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._width = max(map(len, [*names, _OWN]))
        self._is_coloured = self._stream.isatty() and not os.environ.get("NO_COLOR")
        self.said: deque[str] = deque(maxlen=_SAID)
        """The last lines of `torpor up` itself."""
        self._colours = {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(names)}

    def line(self, name: str, text: str) -> None:
        """A line of a component's own."""
        prefix = f"{name:<{self._width}} |"
        if self._is_coloured:
            prefix = f"\x1b[{self._colours.get(name, 1)}m{prefix}\x1b[0m"
        self._stream.write(f"{prefix} {text}\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        """A line of `torpor up` itself."""
        text = f"{time.strftime('%H:%M:%S')} {text}"
        self.said.append(text)
        self.line(_OWN, text)
