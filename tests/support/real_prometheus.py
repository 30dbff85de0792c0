"""Debian's Prometheus over targets of a test's own."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

TIMEOUT_S = 60


@contextmanager
def prometheus(folder: Path, port: int, targets: Sequence[tuple[str, Mapping[str, str]]], every: str) -> Iterator[str]:
    """It has been started, and may not answer yet; its URL. targets: addresses with their labels. every: asked so often."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("the Debian package prometheus is missing")
    static = [{"targets": [address], "labels": dict(labels)} for address, labels in targets]
    job = {"job_name": "asked", "scrape_interval": every, "scrape_timeout": every, "static_configs": static}
    (folder / "prometheus.yml").write_text(json.dumps({"scrape_configs": [job]}))
    address = f"127.0.0.1:{port}"
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    process = subprocess.Popen([program, *options, f"--web.listen-address={address}"], stderr=subprocess.DEVNULL)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)
