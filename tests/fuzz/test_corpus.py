"""Every target takes every input of its corpus; with atheris installed also some new ones, the same each time."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RUN = (sys.executable, HERE / "run.py")
TARGETS = sorted(path.name for path in (HERE / "corpus").iterdir())


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_breaks_nothing(target: str) -> None:
    """What fuzzing has found to reach all the code that it ever reached."""
    inputs = sorted((HERE / "corpus" / target).iterdir())
    assert inputs
    subprocess.run([*RUN, target, "--replay", *inputs], check=True)


@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="needs atheris (the extra `fuzz`)")
@pytest.mark.parametrize("target", TARGETS)
def test_a_short_run_finds_nothing(target: str) -> None:
    """Five thousand mutations of the corpus."""
    short = [*RUN, target, "--forget", "--runs", "5000", "--seed", "1"]
    done = subprocess.run(short, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
