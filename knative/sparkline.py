"""Numbers over time as a line of characters."""

from collections.abc import Sequence

_LEVELS = " ▁▂▃▄▅▆▇█"
_ASCII = " .:-=+*#@"


def sparkline(values: Sequence[float], plain: bool) -> str:
    """A character a value, from 0 to the largest; what is above 0 is seen. plain: ASCII only."""
    levels = _ASCII if plain else _LEVELS
    most = max(values) or 1.0
    steps = len(levels) - 1
    return "".join(levels[max(int(value > 0), round(steps * value / most))] for value in values)
