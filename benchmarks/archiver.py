"""TorchServe's archives, by the real `torch-model-archiver` of the peer's environment. The tests make theirs here as well."""

import os
import subprocess
import tempfile
from pathlib import Path

from environments import BENCHMARKS, UnavailableError, python_of

SHIMS = BENCHMARKS / "shims"

SUFFIXES = {"default": ".mar", "zip-store": ".mar", "tgz": ".tar.gz", "no-archive": ""}
"""By `--archive-format`."""


def make(name: str, store: Path, folder: Path, *options: str, version: str = "1.0", form: str = "default") -> Path:
    """The archive, in `store`, of files of `folder` that the options name."""
    archiver = python_of("torchserve").with_name("torch-model-archiver")
    command = [
        str(archiver), "--model-name", name, "--version", version, "--export-path", str(store), "--archive-format", form,
        *options,
    ]  # fmt: skip
    # It collects the files in a folder of the model's name in the temporary folder: another archiver's may be there.
    with tempfile.TemporaryDirectory(prefix="archiver-") as scratch:
        done = subprocess.run(
            command, cwd=folder, env=os.environ | {"TMPDIR": scratch}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise UnavailableError(f"archive {name}: {done.stdout[-500:]}")
    return store / f"{name}{SUFFIXES[form]}"


def for_torpor() -> dict[str, str]:
    """Variables with which torpor's workers find what handlers import, though its own environment has no `ts`."""
    packages = next(python_of("torchserve").parents[1].glob("lib/python*/site-packages"))
    return {"PYTHONPATH": str(SHIMS), "HANDLER_PACKAGES": str(packages)}
