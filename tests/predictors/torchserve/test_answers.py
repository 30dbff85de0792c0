"""What a caller gets of what a handler returned, byte for byte as TorchServe's worker writes it."""

import json
import sys
from collections import OrderedDict
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from torpor.predictors.torchserve.worker import answers
from torpor.predictors.torchserve.worker.answers import Unanswerable


class Colour(IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.floats(1e-5, 1e-3)
    | st.floats(1e15, 1e17)
    | st.lists(st.floats(1e-6, 1e-3) | st.floats(0, 1e18))
    | st.text()
    | st.sampled_from([Colour.RED, Text("\n"), (), [], {}, OrderedDict(a=[1.5])])
)
KEYS = st.text() | st.integers() | st.none() | st.booleans() | st.floats(allow_nan=False)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(KEYS, inner))


@given(VALUES.filter(lambda value: not isinstance(value, str)))
@example([1e-4, 9.999e-5, 1e16, 9999999999999998.0, -0.0, float("nan"), float("-inf")])
@example([[1.5, 2.0], [1.234e-5, 1.0], [10.00001, -0.0], [1e15, 1e16], [0.5, float("nan")], [1.5, True]])
@example({"a\nb": [[1.5], {"c": "d\ne"}], "ü": [(1.5, [2.5])]})
def test_json_is_what_the_standard_library_writes_with_an_indent(value: Any) -> None:
    assert answers.body(value) == json.dumps(value, indent=2).encode()


def test_bytes_and_texts_stand_as_they_are() -> None:
    assert answers.body(b"\x00") == answers.body(bytearray(1)) == b"\x00"
    assert answers.body("ü\ud800") == b"\xc3\xbc?"


@pytest.mark.parametrize("nested", [False, True])
def test_what_json_cannot_hold_is_no_answer(nested: bool) -> None:
    endless: list[Any] = []
    endless.append(endless)
    for value in (object(), {(1, 2): 3}, endless):
        with pytest.raises(Unanswerable, match="Unsupported model output data type"):
            answers.body({"outputs": [value]} if nested else value)


def test_json_is_dense_or_has_blanks() -> None:
    """As KServe's server writes it, or as Python."""
    value = {"a": [1, 2.5], "ü": "\n"}
    assert answers.json_text(value) == b'{"a":[1,2.5],"\\u00fc":"\\n"}'
    assert answers.json_text(value, has_blanks=True) == b'{"a": [1, 2.5], "\\u00fc": "\\n"}'
    endless: list[Any] = []
    endless.append(endless)
    for nothing in (object(), endless):
        with pytest.raises(Unanswerable, match="Unsupported model output data type"):
            answers.json_text(nothing)


def test_a_tensor_is_what_torch_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where anybody has imported torch; nothing else is asked whether it is one."""

    class Tensor(list[float]):
        """Which JSON could have as well."""

    torch = SimpleNamespace(Tensor=Tensor, save=lambda value, file: file.write(b"saved %d" % len(value)))
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert answers.body(Tensor([1.0])) == b"saved 1"
    assert answers.body([1.0]) == b"[\n  1.0\n]"
    monkeypatch.delitem(sys.modules, "torch")
    assert answers.body(Tensor([1.0])) == b"[\n  1.0\n]"
