"""A fuzzer's bytes as decisions, so that a target can build what plain bytes would hardly ever spell."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Decisions in order; when the bytes run out, each is the first of its options."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def below(self, limit: int) -> int:
        """A number in [0, limit), of at most 256."""
        self._at += 1
        return self._data[self._at - 1] % limit if self._at <= len(self._data) else 0

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def take(self, size: int) -> bytes:
        """The next bytes themselves, as many as are left."""
        self._at += size
        return self._data[self._at - size : self._at]

    def rest(self) -> bytes:
        return self.take(max(0, len(self._data) - self._at))

    def pieces(self, data: bytes) -> list[bytes]:
        """`data` in one piece or several."""
        cuts = sorted({self.below(256) * len(data) // 256 for _ in range(self.below(6))})
        return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]
