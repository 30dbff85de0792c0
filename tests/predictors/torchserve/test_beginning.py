"""A worker that begins before the server knows what it is to load."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from archives import manifest, write_mar
from torpor.predictors.catalog import Catalog, Outside
from torpor.predictors.torchserve import beginning
from torpor.predictors.torchserve.store import ArchiveStore

WAITS = """
import os, sys
from torpor.predictors.torchserve import frames
import socket
link = socket.socket(fileno=int(sys.argv[-1]))
parser = frames.Parser()
while data := link.recv(1 << 16):
    for head, _ in parser.feed(data):
        if "import" in head:
            link.sendall(head["import"].encode())
"""


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginning, "_COMMAND", WAITS)


def store_of(root: Path, **flags: Any) -> ArchiveStore:
    return ArchiveStore.of(root, Outside(flags, {}), 4, None, may_be_empty=True)


async def told(begun: beginning.Begun) -> bytes:
    """What it is to import."""
    begun.link.settimeout(20)
    return await asyncio.to_thread(begun.link.recv, 100)


@pytest.mark.parametrize("source", ["import torch", "from ts.context import Context"])
def test_the_first_models_worker_begins_with_torch(tmp_path: Path, source: str) -> None:
    """If the handler will probably want it."""
    write_mar(tmp_path / "a.mar", {"handler.py": source}, manifest("a"))
    write_mar(tmp_path / "b.mar", {"handler.py": source}, manifest("b"))

    async def scenario() -> None:
        store = store_of(tmp_path)
        await store.prepare()
        model = store.model("a")
        (begun,) = model.begun
        assert await told(begun) == b"torch"
        assembled = model.assemble("1.0")
        environment = beginning.environment_of(4, 4, assembled.settings)
        assert assembled._begun({**environment, "OTHER": "1"}) is None
        assert assembled._begun(environment) is begun
        assert assembled._begun(environment) is None
        await store.settle()
        assert begun.process.returncode is None
        await begun.end()

    asyncio.run(scenario())


def test_torchserves_own_handlers_want_torch(tmp_path: Path) -> None:
    write_mar(tmp_path / "a.mar", {"x.py": ""}, manifest("stock", "image_classifier"))

    async def scenario() -> None:
        store = store_of(tmp_path)
        await store.prepare()
        assert await told(store.model("stock").begun[0]) == b"torch"
        await store.settle()

    asyncio.run(scenario())


def test_what_nobody_takes_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: it may be importing. It was not told to, where the handler speaks of no torch."""
    told: list[str] = []
    monkeypatch.setattr(beginning.Begun, "expect", lambda begun, module: told.append(module))
    write_mar(tmp_path / "a.mar", {"handler.py": "import numpy"}, manifest("a"))
    before = os.listdir("/proc/self/fd")

    async def scenario() -> None:
        store = store_of(tmp_path)
        await store.prepare()
        (begun,) = store.model("a").begun
        await store.settle()
        assert (begun.process.returncode, store.model("a").begun, told) == (-9, [], [])

    asyncio.run(scenario())
    assert os.listdir("/proc/self/fd") == before


def test_nobody_begins_for_nothing(tmp_path: Path) -> None:
    """No archive, none that is to have workers, one that cannot be served: its load says it."""
    pytest.importorskip("yaml")

    async def scenario(root: Path, name: str | None) -> None:
        store = store_of(root)
        await store.prepare()
        assert name is None or store.model(name).begun == []

    (tmp_path / "empty").mkdir()
    asyncio.run(scenario(tmp_path / "empty", None))
    none = write_mar(
        tmp_path / "none.mar", {"handler.py": "", "c.yaml": "minWorkers: 0"}, manifest("n", configFile="c.yaml")
    )
    asyncio.run(scenario(none, "n"))
    bad = write_mar(
        tmp_path / "bad.mar", {"handler.py": "", "c.yaml": "batchSize: x"}, manifest("b", configFile="c.yaml")
    )
    asyncio.run(scenario(bad, "b"))


def test_a_process_that_cannot_be_had_is_nobodys_fault_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mar(tmp_path / "a.mar", {"handler.py": ""}, manifest("a"))
    monkeypatch.setattr(sys, "executable", "/no/python")

    async def scenario() -> None:
        store = store_of(tmp_path)
        await store.prepare()
        assert store.model("a").begun == []

    asyncio.run(scenario())


def test_models_of_torpors_own_have_nothing_to_prepare() -> None:
    async def scenario() -> None:
        await Catalog({}).prepare()
        await Catalog({}).settle()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("said", "workers", "setting", "threads"),
    [
        ("", 2, 0, "2"),
        ("", 8, 0, "1"),
        ("", 0, 0, "4"),
        ("1", 1, 0, "1"),
        ("9", 2, 0, "2"),
        ("", 1, 3, "3"),
        ("x", 1, 0, "4"),
        ("0", 4, 0, "1"),
    ],
)
def test_a_worker_has_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, said: str, workers: int, setting: int, threads: str
) -> None:
    """Or fewer, if the environment says so."""
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    found = beginning.environment_of(workers, 4, {"threads": setting})
    assert (found["OMP_NUM_THREADS"], found["PYTHONUNBUFFERED"], found["PATH"]) == (threads, "1", os.environ["PATH"])
