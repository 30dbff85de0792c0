"""What the log says when a handler unpickles, by an audit hook that is called here by hand."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torpor.predictors.torchserve.worker import unpickling

FOLDER = Path("/archive")
Hook = Callable[[str, tuple[object, ...]], None]


@pytest.fixture
def hear(monkeypatch: pytest.MonkeyPatch) -> Hook:
    """Python never lets go of a hook that it was given."""
    hooks: list[Any] = []
    monkeypatch.setattr(sys, "addaudithook", hooks.append)
    unpickling.watch(FOLDER)
    (hook,) = hooks
    return hook


def said_by(file: str, say: Callable[[], None]) -> None:
    """Call it in the second line of this file."""
    exec(compile("\nsay()", file, "exec"), {"say": say})


def test_the_first_time_is_said_with_its_place(hear: Hook, caplog: pytest.LogCaptureFixture) -> None:
    """Of the archive's innermost code, whatever else has been called by it."""

    def find(name: str) -> None:
        hear("pickle.find_class", ("collections", name))

    said_by("/archive/own.py", lambda: hear("open", ("x", "y")))
    said_by("/archives/other.py", lambda: find("other"))
    assert caplog.messages == []
    said_by(
        "/archive/own.py", lambda: said_by("/archive/deep/er.py", lambda: said_by("/lib/x.py", lambda: find("deque")))
    )
    said_by("/archive/own.py", lambda: find("Counter"))
    assert caplog.messages == [
        "deep/er.py:2 unpickles (collections.deque): a pickle runs what its author likes; weights_only=True or safetensors "
        "would not"
    ]


def test_torchserves_own_handler_is_a_place_too(hear: Hook, caplog: pytest.LogCaptureFixture) -> None:
    """By the name of its file."""
    said_by("/lib/ts/torch_handler/base_handler.py", lambda: hear("pickle.find_class", ("a", "b")))
    assert [message.split(" unpickles ")[0] for message in caplog.messages] == ["base_handler.py:2"]
