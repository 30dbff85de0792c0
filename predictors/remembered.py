"""Memory for what is worked out again and again, where callers decide how many different things there are."""

from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Remembered(dict[Key, Value]):
    """A dict of at most `most` entries: `keep` drops the one that was kept first to make room."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def keep(self, key: Key, value: Value) -> None:
        if len(self) >= self._most:
            del self[next(iter(self))]
        self[key] = value
