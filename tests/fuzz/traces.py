"""Files of `torpor simulate --trace`: any bytes are a load or an error that names its place, and both forms say the same."""

import io
import json
import math
from typing import TextIO

from choices import Choices
from decoders import json_object, json_value
from torpor.predictors.batching.trace import TraceError, read_trace

FIELDS = (b"arrival_s", b"rows", b"tokens", b"deadline_s", b"other")
CELLS = (
    b"0", b"1", b"0.5", b"2", b"", b"-1", b"nan", b"inf", b"1e400", b"1_0", b" 3", b'"4"', b'"a', b"\xff", b"\0", b"9" * 400,
    b"true",
)  # fmt: skip


class _File:
    """A file as `read_trace` sees it."""

    def __init__(self, data: bytes, suffix: str) -> None:
        self._data = data
        self.suffix = suffix

    def open(self, newline: str) -> TextIO:
        return io.TextIOWrapper(io.BytesIO(self._data), "utf-8", newline=newline)

    def __str__(self) -> str:
        return "trace" + self.suffix


def trace_file(data: bytes) -> None:
    choices = Choices(data)
    suffix = choices.pick((".csv", ".jsonl"))
    if choices.below(2):
        text = choices.rest()
    else:
        make = _cells if suffix == ".csv" else _fields
        names = [*FIELDS[: 1 + choices.below(5)]]
        lines = [make(choices, names) for _ in range(choices.below(5))]
        text = choices.pick((b"\n", b"\r\n", b"\n\n")).join([b",".join(names), *lines] if suffix == ".csv" else lines)
    arrivals = _read(text, suffix)
    if arrivals is None:
        return
    for arrival_s, rows, sizes, patience_s in arrivals:
        assert 0 <= arrival_s < math.inf
        assert rows >= 1
        assert all(size >= 1 for size in sizes)
        assert patience_s is None or 0 <= patience_s < math.inf
    columns = ("arrival_s", "rows", "deadline_s", *(f"axis{number}" for number in range(len(arrivals[0][2]))))
    said = [(arrival_s, rows, patience_s, *sizes) for arrival_s, rows, sizes, patience_s in arrivals]
    table = [",".join("" if value is None else repr(value) for value in line) for line in said]
    assert _read("\n".join([",".join(columns), *table]).encode(), ".csv") == arrivals
    objects = [json.dumps(dict(zip(columns, line, strict=True))) for line in said]
    assert _read("\n".join(objects).encode(), ".jsonl") == arrivals


def _read(text: bytes, suffix: str) -> list[tuple[float, int, tuple[int, ...], float | None]] | None:
    """What the file says; None if it cannot be read."""
    try:
        trace = read_trace(_File(text, suffix))  # type: ignore[arg-type]
    except TraceError as error:
        if not str(error).startswith("trace" + suffix):
            raise
        return None
    calls = [(arrival.arrival_s, arrival.call) for arrival in trace.scheduled()]
    return [(arrival_s, call.rows, call.sizes, call.patience_s) for arrival_s, call in calls]


def _cells(choices: Choices, names: list[bytes]) -> bytes:
    return b",".join([choices.pick(CELLS) for _ in names[choices.below(16) == 15 :]])


def _fields(choices: Choices, names: list[bytes]) -> bytes:
    numbers = (b"0", b"1", b"0.5", b'"2"', b"null")
    kinds = {name: lambda: choices.pick(numbers) if choices.below(4) else json_value(choices) for name in names}
    return json_object(choices, names, kinds)
