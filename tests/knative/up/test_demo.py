"""`make demo`: the example's InferenceService by `torpor up`, asked, asleep and awake again."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

DEMO = Path(__file__).parents[3] / "examples" / "sentences" / "demo.py"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "model", raising=False)
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_demo_wakes_asks_sleeps_and_wakes_again(tmp_path: Path) -> None:
    """It ends by itself with status 0, every answer right, both components woken twice, and nothing left running."""
    command = [sys.executable, DEMO, "--once", "--port", "0", "--sentences", "40", "--callers", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 90 answers are right" in done.stdout
    for component in ("transformer", "predictor"):
        wakes = re.findall(rf"vectors-{component} +awake in .* s: process .*, import ", done.stdout)
        assert len(wakes) == 2, done.stdout
    ((alone, together),) = re.findall(r"rows a batch +([\d.]+) +([\d.]+)", done.stdout)
    assert float(alone) == 1 < float(together)
    assert done.stdout.endswith("torpor up ended with status 0\n")


def test_a_wrong_answer_is_told(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """One number of one answer is off, or an answer has another shape."""
    right = demo.directly(["a", "b"])
    assert demo.judge({text: [vector] for text, vector in right.items()})
    off = right["b"].copy()
    off[3] += 0.001
    for wrong in (off, off[:5], np.full_like(off, np.nan)):
        assert not demo.judge({"a": [right["a"]], "b": [right["b"], wrong]})
        assert "1 of 3 answers are wrong" in capsys.readouterr().out
