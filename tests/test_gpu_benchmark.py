"""The GPU's benchmark where there is no GPU: it can be asked what it does, and says that it did nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks/gpu.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would measure")
@pytest.mark.parametrize(("options", "status", "text"), [(["--help"], 0, "raw loop"), ([], 1, "no GPU here")])
def test_without_a_gpu_nothing_is_measured(options: list[str], status: int, text: str) -> None:
    """Help is help; a run ends with 1 and a message."""
    done = subprocess.run([sys.executable, "-P", SCRIPT, *options], capture_output=True, text=True)
    assert done.returncode == status
    assert text in done.stdout + done.stderr
