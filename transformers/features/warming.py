"""Filling a table before there are requests: `torpor features warm`, as an init container or whenever keys are known.

What is there already stays, so that it may be run again at any time, and by several at once.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from torpor.predictors.catalog import find_model_file, version_folder, wanted_versions
from torpor.predictors.errors import TorporError
from torpor.predictors.settings import ModelFile, SettingError

from ..features_command import FLAGS
from ..parameters import Parameters
from .loader import Loader, import_loader
from .store import ABSENT, FeatureStore, StoreError
from .table import FeatureTable, key_bytes

_PROGRESS_S = 5.0
_TIMEOUT_S = 10.0


def warm(options: argparse.Namespace, began_s: float) -> int:
    """Run the command; its exit status. Raises SettingError."""
    parameters, folder = _parameters(options.source)
    parameters |= {name: value for name in FLAGS if (value := getattr(options, name)) is not None}
    given = Parameters("features", parameters)
    # Nobody waits here, and one hiccup should not end it.
    table = replace(FeatureTable.read(given), timeout_s=_TIMEOUT_S)
    loader = Loader(import_loader(given.one("loader", ""), folder), table.codec(), table.load_timeout_s)
    try:
        with _lines(options.keys) as lines:
            warming = Warming(table, loader, options.refresh)
            asyncio.run(warming.run(lines, options.batch, options.parallel))
    except KeyboardInterrupt:
        return 130
    except (TorporError, StoreError) as error:
        print(f"torpor: {error}", file=sys.stderr)
        return 1
    print(f"{warming.report()}, {time.perf_counter() - began_s:.1f} s")
    return 0


def _parameters(source: str) -> tuple[dict[str, Any], Path]:
    """The parameters, and where the loader's module is looked for. Raises SettingError."""
    root = Path(source)
    if not root.is_dir():
        if ":" not in source:
            raise SettingError(f"{source!r} is neither a folder nor MODULE:LOADER")
        return {"loader": source}, Path.cwd()
    root = root.resolve()
    file = find_model_file(root, version_folder(root, wanted_versions(root, "latest")[0]))
    return dict(ModelFile.read(file).parameters), file.parent


@contextmanager
def _lines(name: str) -> Iterator[BinaryIO]:
    """Raises SettingError."""
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        file = open(name, "rb")  # noqa: SIM115
    except OSError as error:
        raise SettingError(f"--keys: {error}") from None
    with file:
        yield file


class Warming:
    """One run. keys: seen so far; there: of these already in Redis; loaded; without: those that the loader has no row for."""

    def __init__(self, table: FeatureTable, loader: Loader, refresh: bool = False) -> None:
        self.keys = 0
        self.there = 0
        self.loaded = 0
        self.without = 0
        self._store = FeatureStore(table)
        self._loader = loader
        self._refresh = refresh
        self._printed_s = time.perf_counter()

    def report(self) -> str:
        return f"{self.keys} keys: {self.there} there already, {self.loaded} loaded, {self.without} without features"

    async def run(self, lines: BinaryIO, batch: int, parallel: int) -> None:
        """Raises StoreError, SettingError for a line that is no key, and what the loader raises: Unavailable, ModelFailed."""
        reading = asyncio.Lock()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(parallel):
                    group.create_task(self._work(lines, batch, reading))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            await self._store.close()

    async def _work(self, lines: BinaryIO, batch: int, reading: asyncio.Lock) -> None:
        while True:
            async with reading:  # a pipe may keep its reader waiting
                chunk = await asyncio.to_thread(lambda: list(islice(lines, batch)))
            if not chunk:
                return
            try:
                keys = [key_bytes(key) for line in chunk if (key := line.rstrip(b"\r\n"))]
            except ValueError as error:
                raise SettingError(f"--keys: {error}") from None
            await self._fill(keys)

    async def _fill(self, keys: list[bytes]) -> None:
        self.keys += len(keys)
        lacking = list(dict.fromkeys(keys))
        if not self._refresh and lacking:
            found = await self._store.read(lacking)
            lacking = [key for key, row in zip(lacking, found, strict=True) if row is ABSENT]
        if lacking:
            rows = dict(zip(lacking, await self._loader.load(lacking), strict=True))
            await self._store.write(rows)
            without = sum(row is None for row in rows.values())
            self.without += without
            self.loaded += len(rows) - without
        self.there += len(keys) - len(lacking)
        now_s = time.perf_counter()
        if now_s - self._printed_s >= _PROGRESS_S:
            self._printed_s = now_s
            print(self.report(), file=sys.stderr, flush=True)
