"""Durations as Go writes them, `1h30m`, `6s`, `250ms`: what Knative's and KServe's YAML takes (https://pkg.go.dev/time#ParseDuration)."""

import re

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")


def seconds(text: str) -> float:
    """Raises ValueError for what is none; a sign is none of those that settings may have."""
    if text == "0":
        return 0.0
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is no duration, must be like 6s, 1m30s or 250ms")
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def duration(value_s: float) -> str:
    """The shortest text in h, m, s and ms."""
    if value_s != int(value_s):
        return f"{round(value_s * 1000)}ms"
    rest_s = int(value_s)
    text = ""
    for unit, size_s in (("h", 3600), ("m", 60), ("s", 1)):
        count, rest_s = divmod(rest_s, size_s)
        text += f"{count}{unit}" if count else ""
    return text or "0s"
