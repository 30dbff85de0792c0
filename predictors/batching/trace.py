"""A load from a file: one request a line, as CSV with a header or as JSON objects.

    arrival_s,rows,tokens,deadline_s
    0.000,1,23,0.5
    0.013,2,81,

    {"arrival_s": 0.0, "tokens": 23, "deadline_s": 0.5}

arrival_s: seconds from any beginning. rows: 1 unless given. deadline_s: seconds after the arrival; none unless given.
Every other column is a named axis with its size; each line has all of them.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .load import Arrival, Call, Trace

_KNOWN = ("arrival_s", "rows", "deadline_s")


class TraceError(ValueError):
    """A trace that cannot be read; the message names file, line, field, value and what it must be."""


def read_trace(path: Path) -> Trace:
    """Raises TraceError."""
    arrivals: list[Arrival] = []
    axes: tuple[str, ...] | None = None
    try:
        with path.open(newline="") as file:
            for number, fields in _json_lines(path, file) if path.suffix != ".csv" else _csv_lines(path, file):
                where = f"{path}:{number}"
                found = tuple(name for name in fields if name not in _KNOWN)
                axes = found if axes is None else axes
                if {*found} != {*axes}:
                    odd = sorted({*found} ^ {*axes})[0]
                    raise TraceError(f"{where}: {odd} is in some lines only, must be in all: it is a named axis")
                arrivals.append(_arrival(where, fields, axes))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: {error}") from None
    if not arrivals:
        raise TraceError(f"{path}: requests = 0, must be at least 1")
    return Trace(arrivals)


def _csv_lines(path: Path, file: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(file, skipinitialspace=True)
    for fields in reader:
        if None in fields or None in fields.values():
            raise TraceError(
                f"{path}:{reader.line_num}: must have {len(reader.fieldnames or ())} columns as the header"
            )
        yield reader.line_num, fields


def _json_lines(path: Path, file: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TraceError(f"{path}:{number}: {error}") from None
        if not isinstance(fields, dict):
            raise TraceError(f"{path}:{number}: must be a JSON object")
        yield number, fields


def _arrival(where: str, fields: Mapping[str, Any], axes: tuple[str, ...]) -> Arrival:
    if "arrival_s" not in fields:
        raise TraceError(f"{where}: arrival_s is missing")
    arrival_s = _seconds(where, fields, "arrival_s")
    rows = _count(where, fields, "rows") if fields.get("rows") not in (None, "") else 1
    patience_s = _seconds(where, fields, "deadline_s") if fields.get("deadline_s") not in (None, "") else None
    return Arrival(arrival_s, Call(rows, tuple(_count(where, fields, axis) for axis in axes), patience_s))


def _seconds(where: str, fields: Mapping[str, Any], name: str) -> float:
    value = _number(fields[name], float)
    if not 0 <= value < math.inf:
        raise TraceError(f"{where}: {name} = {fields[name]!r}, must be a number of seconds, at least 0")
    return value


def _count(where: str, fields: Mapping[str, Any], name: str) -> int:
    value = _number(fields[name], int)
    if not value >= 1:
        raise TraceError(f"{where}: {name} = {fields[name]!r}, must be an integer, at least 1")
    return int(value)


def _number(value: Any, kind: type[int] | type[float]) -> float:
    """CSV has texts, JSON numbers; nan for what is none, and for a fraction where an int is asked for."""
    if isinstance(value, bool) or not isinstance(value, str | int | kind):
        return math.nan
    try:
        return kind(value)
    except (ValueError, OverflowError):
        return math.nan
