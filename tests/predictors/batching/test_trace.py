"""Loads from files: what is read, and what is said of a file that cannot be."""

from pathlib import Path

import pytest
from torpor.predictors.batching.trace import TraceError, read_trace


def test_csv_and_json_lines_say_the_same(tmp_path: Path) -> None:
    """A column that torpor does not know is a named axis; rows and deadline may be left out."""
    (tmp_path / "t.csv").write_text("arrival_s,rows,tokens,deadline_s\n0.5,2,23,0.25\n0.1,,81,\n")
    (tmp_path / "t.jsonl").write_text(
        '{"arrival_s": 0.5, "rows": 2, "tokens": 23, "deadline_s": 0.25}\n\n{"arrival_s": 0.1, "tokens": 81}\n'
    )
    for name in ("t.csv", "t.jsonl"):
        read = [
            (at_s, call.rows, call.sizes, call.patience_s) for at_s, call in read_trace(tmp_path / name).scheduled()
        ]
        assert read == [(0.1, 1, (81,), None), (0.5, 2, (23,), 0.25)]


def test_a_model_without_named_axes_has_none(tmp_path: Path) -> None:
    """Arrivals alone are a load; all rows are alike."""
    (tmp_path / "t.csv").write_text("arrival_s\n0\n1\n")
    assert [call.sizes for _, call in read_trace(tmp_path / "t.csv").scheduled()] == [(), ()]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "arrival_s\n", "t.csv: requests = 0, must be at least 1"),
        ("t.csv", "rows\n1\n", "t.csv:2: arrival_s is missing"),
        ("t.csv", "arrival_s\nsoon\n", "t.csv:2: arrival_s = 'soon', must be a number of seconds, at least 0"),
        ("t.csv", "arrival_s\n-1\n", "t.csv:2: arrival_s = '-1', must be a number of seconds, at least 0"),
        ("t.csv", "arrival_s,rows\n0,0\n", "t.csv:2: rows = '0', must be an integer, at least 1"),
        ("t.csv", "arrival_s,tokens\n0,8\n1,2.5\n", "t.csv:3: tokens = '2.5', must be an integer, at least 1"),
        ("t.csv", "arrival_s,deadline_s\n0,inf\n", "t.csv:2: deadline_s = 'inf', must be a number of seconds"),
        ("t.csv", "arrival_s,tokens\n0\n", "t.csv:2: must have 2 columns as the header"),
        ("t.csv", "arrival_s\n0,7\n", "t.csv:2: must have 1 columns as the header"),
        ("t.jsonl", "[1]\n", "t.jsonl:1: must be a JSON object"),
        ("t.jsonl", "{\n", "t.jsonl:1: Expecting"),
        ("t.jsonl", '{"arrival_s": ' + "[" * 5000, "t.jsonl:1: maximum recursion depth exceeded"),
        (
            "t.jsonl",
            '{"arrival_s": 0, "t": 1}\n{"arrival_s": 0}\n',
            "t.jsonl:2: t is in some lines only, must be in all",
        ),
        ("t.jsonl", '{"arrival_s": 0, "t": true}\n', "t.jsonl:1: t = True, must be an integer, at least 1"),
        ("t.jsonl", '{"arrival_s": null}\n', "t.jsonl:1: arrival_s = None, must be a number of seconds"),
        ("none.csv", None, "none.csv: .* No such file"),
        ("t.csv", b"\xff\xfe", "t.csv: .*can't decode"),
    ],
)
def test_a_bad_trace_is_refused_by_line_and_field(
    tmp_path: Path, name: str, text: str | bytes | None, message: str
) -> None:
    """The message names what to mend."""
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TraceError, match=message):
        read_trace(tmp_path / name)
