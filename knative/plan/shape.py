"""Traffic described in words.

poisson 100/s for 1h
quiet for 10m
ramp 0/s to 50/s for 5m
daily 2/s to 40/s for 24h            from the night's rate to the afternoon's and back, a cosine; it begins at midnight
bursts 200/s of 30s every 10m for 6h  nothing between them; `over 1/s` for something
poisson 5/s for 20m then quiet for 20m then bursts 50/s of 10s every 1m over 1/s for 20m
"""

import math
import re
from collections.abc import Callable

from torpor.predictors.settings import SettingError

from ..durations import seconds
from .traffic import STEP_S

_RATE = r"(\d+(?:\.\d+)?)/(s|min|h)"
_TIME = r"(\S+)"
_PER_S = {"s": 1.0, "min": 1 / 60, "h": 1 / 3600}
_FORMS = (
    re.compile(rf"poisson {_RATE} for {_TIME}"),
    re.compile(rf"quiet for {_TIME}"),
    re.compile(rf"ramp {_RATE} to {_RATE} for {_TIME}"),
    re.compile(rf"daily {_RATE} to {_RATE} for {_TIME}"),
    re.compile(rf"bursts {_RATE} of {_TIME} every {_TIME}(?: over {_RATE})? for {_TIME}"),
)

_LONGEST_S = 31 * 86_400


def rates(text: str) -> list[float]:
    """Requests a second of each second. Raises SettingError that names the part."""
    found: list[float] = []
    for part in re.split(r"\s+then\s+", text.strip()):
        words = " ".join(part.split())
        for form in _FORMS:
            if (match := form.fullmatch(words)) is not None:
                found += _part(words, *(group or "" for group in match.groups()))
                break
        else:
            raise SettingError(
                f"--shape: {part!r}, must be like 'poisson 100/s for 1h', 'quiet for 10m', 'ramp 0/s to 50/s for 5m', "
                "'daily 2/s to 40/s for 24h' or 'bursts 200/s of 30s every 10m for 6h'"
            )
    if len(found) * STEP_S > _LONGEST_S:
        raise SettingError(f"--shape: {len(found) * STEP_S:g} s in all, must be in [1, {_LONGEST_S}]")
    return found


def _part(words: str, *groups: str) -> list[float]:
    steps = _steps(words, groups[-1])
    rate = _rate(words, groups)
    return [rate(step * STEP_S, steps * STEP_S) for step in range(steps)]


def _rate(words: str, groups: tuple[str, ...]) -> Callable[[float, float], float]:
    """The rate by the time since the part's begin and the part's length."""
    kind = words.partition(" ")[0]
    if kind == "quiet":
        return lambda at_s, length_s: 0.0
    low = _per_s(groups[0], groups[1])
    if kind == "poisson":
        return lambda at_s, length_s: low
    if kind == "bursts":
        burst_s, every_s = _steps(words, groups[2]) * STEP_S, _steps(words, groups[3]) * STEP_S
        between = _per_s(groups[4], groups[5]) if groups[4] else 0.0
        return lambda at_s, length_s: low if at_s % every_s < burst_s else between
    high = _per_s(groups[2], groups[3])
    if kind == "ramp":
        return lambda at_s, length_s: low + (high - low) * at_s / length_s
    # Lowest at 3, highest at 15 o'clock.
    return lambda at_s, length_s: low + (high - low) * (1 - math.cos(2 * math.pi * (at_s / 86_400 - 0.125))) / 2


def _per_s(number: str, unit: str) -> float:
    return float(number) * _PER_S[unit]


def _steps(words: str, text: str) -> int:
    try:
        value_s = seconds(text)
    except ValueError as error:
        raise SettingError(f"--shape: {words!r}: {error}") from None
    if not STEP_S <= value_s <= _LONGEST_S:
        raise SettingError(f"--shape: {words!r}: {text} must be in [1s, {_LONGEST_S}s]")
    return round(value_s / STEP_S)
