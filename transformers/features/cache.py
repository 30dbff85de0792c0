"""Rows of features by key, from Redis, and from the loader where Redis has none or does not answer.

    get ─► wanted ─┬─ closed ─► one MGET for all that came meanwhile ─┬─ there ──► callers
                   │                                                  └─ not ─┐
                   └─ open: Redis is not asked ───────────────────────────────┴─► one call of the loader ─► callers, and Redis

A key is on its way once: who wants it meanwhile waits for the same row. Callers that leave take nothing with them, since
others may wait for the same, and the row that comes is good for the next.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torpor.predictors.errors import InvalidInput, TorporError, Unavailable
from torpor.predictors.protocol.datatypes import Array
from torpor.predictors.serving.tasks import Tasks

from .circuit import Circuit
from .loader import Loader
from .metrics import FeatureMetrics
from .store import CONNECTIONS, Absent, FeatureStore, StoreError
from .table import FeatureTable, Key, key_bytes

logger = logging.getLogger("torpor.features")

MAX_KEYS = 4096
"""Of one caller, of one read and of one call of the loader: neither the event loop nor Redis does anything else meanwhile."""

_MOST_WRITTEN = 512
"""Rows in one write: packing them holds up the event loop."""

_MOST_UNWRITTEN = 10_000
"""Rows that may wait to be written; more are not."""


class FeatureCache:
    """A table and the function that its rows come from (`loader.py`). Belongs to one event loop."""

    def __init__(self, load: Callable[[list[bytes]], Any], table: FeatureTable, circuit: Circuit | None = None) -> None:
        self.store = FeatureStore(table)
        self.circuit = circuit or Circuit()
        self.metrics = FeatureMetrics(self.circuit, self.store)
        self._loader = Loader(load, self.store.codec, table.load_timeout_s)
        self._max_loads = table.max_loads
        self._waiting: dict[bytes, list[_Caller]] = {}
        self._wanted: list[bytes] = []
        self._lacking: list[bytes] = []
        self._unwritten: dict[bytes, Array | None] = {}
        self._reads = 0
        self._loads = 0
        self._is_writing = False
        self._tasks = Tasks()
        self._closing = Tasks()
        self._loop: asyncio.AbstractEventLoop | None = None

    def prepare(self) -> None:
        """Import what takes long, so that the first request need not. Raises SettingError for a URL that is none of Redis."""
        _ = self.store.client

    async def get(self, keys: Sequence[Key], default: float | None = None) -> Array:
        """The rows of the keys, [keys, …]; a key without one has the default everywhere.

        Raises InvalidInput for a key without a row if there is no default, for a key of more than 1024 bytes and for more than
        4096 keys, Unavailable and ModelFailed if the loader was needed and failed.
        """
        return self.table_of(keys, await self.look_up(keys), default)

    def table_of(self, keys: Sequence[Key], rows: Sequence[Array | None], default: float | None = None) -> Array:
        """What `look_up` found as one array. Raises InvalidInput."""
        codec = self.store.codec
        table = np.empty((len(rows), *codec.shape), codec.dtype)
        for place, row in enumerate(rows):
            if row is None:
                if default is None:
                    raise InvalidInput(f"key {_shown(keys[place])} has no features")
                row = default  # type: ignore[assignment]
            table[place] = row
        return table

    async def look_up(self, keys: Sequence[Key]) -> list[Array | None]:
        """The row of each key, read-only, or None if there is none. Raises like `get`."""
        self.prepare()
        self._loop = asyncio.get_running_loop()
        if len(keys) > MAX_KEYS:
            raise InvalidInput(f"keys = {len(keys)}, must be at most {MAX_KEYS}")
        try:
            wanted = [key_bytes(key) for key in keys]
        except ValueError as error:
            raise InvalidInput(str(error)) from None
        distinct = dict.fromkeys(wanted)
        caller = _Caller(self._loop.create_future(), len(distinct))
        for key in distinct:
            if key in self._unwritten:
                self.metrics.keys["joined"] += 1
                caller.arrived(key, self._unwritten[key])
            elif key in self._waiting:
                self.metrics.keys["joined"] += 1
                self._waiting[key].append(caller)
            else:
                self._waiting[key] = [caller]
                self._wanted.append(key)
        if self._wanted:
            self._loop.call_soon(self._go)  # with what others want before then
        if caller.left:
            await caller.future
        return [caller.rows[key] for key in wanted]

    async def close(self) -> None:
        """Wait for what is on its way, and end the connections."""
        await self._tasks.ended()
        await self.store.close()

    def close_soon(self) -> None:
        """The same from any thread, without waiting."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lambda: self._closing.start(self.close(), "features-close"))

    def _go(self) -> None:
        """Send what is wanted where it is to come from, as far as there is room."""
        if self.circuit.is_closed:
            while self._wanted and self._reads < CONNECTIONS:
                keys, self._wanted = self._wanted[:MAX_KEYS], self._wanted[MAX_KEYS:]
                self._reads += 1
                self._tasks.start(self._read(keys), "features-read")
        else:
            self.metrics.keys["bypassed"] += len(self._wanted)
            self._lacking += self._wanted
            self._wanted = []
            if self.circuit.probes(_now_s()):
                self._tasks.start(self._probe(), "features-probe")
        while self._lacking and self._loads < self._max_loads:
            keys, self._lacking = self._lacking[:MAX_KEYS], self._lacking[MAX_KEYS:]
            self._loads += 1
            self._tasks.start(self._load(keys), "features-load")

    async def _read(self, keys: list[bytes]) -> None:
        began_s = _now_s()
        try:
            found = await self.store.read(keys)
        except StoreError as error:
            self._failed("read", error)
            self._lacking += keys
        else:
            self._succeeded()
            self.metrics.read_seconds.observe(_now_s() - began_s)
            for key, row in zip(keys, found, strict=True):
                if isinstance(row, Absent):
                    self.metrics.keys["miss"] += 1
                    self._lacking.append(key)
                else:
                    self.metrics.keys["missing" if row is None else "hit"] += 1
                    self._arrived(key, row)
        finally:
            self._reads -= 1
            self._go()

    async def _load(self, keys: list[bytes]) -> None:
        began_s = _now_s()
        try:
            rows = await self._loader.load(keys)
        except TorporError as error:
            self.metrics.load_failures += 1
            self._broke(keys, error)
        except BaseException:  # that the loader is cancelled ends its callers' wait too
            self._broke(keys, Unavailable("the loader of features was cancelled"))
            raise
        else:
            self.metrics.load_seconds.observe(_now_s() - began_s)
            for key, row in zip(keys, rows, strict=True):
                self._keep(key, row)
                self._arrived(key, row)
        finally:
            self._loads -= 1
            self._go()
        if self._unwritten and not self._is_writing:
            self._is_writing = True
            self._tasks.start(self._write(), "features-write")

    def _keep(self, key: bytes, row: Array | None) -> None:
        if self.circuit.is_closed and len(self._unwritten) < _MOST_UNWRITTEN:
            self._unwritten[key] = row
        else:
            self.metrics.dropped += 1

    async def _write(self) -> None:
        """Write all that there is, and what has come meanwhile; a row stays at hand until it is in Redis."""
        try:
            while self._unwritten:
                rows = dict(islice(self._unwritten.items(), _MOST_WRITTEN))
                try:
                    await self.store.write(rows)
                except StoreError as error:
                    self._failed("write", error)
                    if not self.circuit.is_closed:
                        rows = dict(self._unwritten)
                    self.metrics.dropped += len(rows)
                for key in rows:
                    del self._unwritten[key]
        finally:
            self._is_writing = False

    async def _probe(self) -> None:
        try:
            await self.store.ping()
        except StoreError as error:
            self._failed("probe", error)
        else:
            self._succeeded()

    def _succeeded(self) -> None:
        if self.circuit.succeeded():
            logger.info("Redis at %s answers again", self.store.address)

    def _failed(self, operation: str, error: StoreError) -> None:
        self.metrics.failures[operation, error.kind] += 1
        # A write that is refused, for want of memory or on a replica, says nothing against reading.
        if (operation, error.kind) != ("write", "refused") and self.circuit.failed(_now_s()):
            logger.warning("Redis at %s does not answer, features come from the loader: %s", self.store.address, error)

    def _arrived(self, key: bytes, row: Array | None) -> None:
        for caller in self._waiting.pop(key):
            caller.arrived(key, row)

    def _broke(self, keys: list[bytes], error: TorporError) -> None:
        for key in keys:
            for caller in self._waiting.pop(key):
                caller.failed(error)


class _Caller:
    """Who waits for rows. left: how many are still to come."""

    __slots__ = ("future", "left", "rows")

    def __init__(self, future: "asyncio.Future[None]", left: int) -> None:
        self.future = future
        self.left = left
        self.rows: dict[bytes, Array | None] = {}

    def arrived(self, key: bytes, row: Array | None) -> None:
        self.rows[key] = row
        self.left -= 1
        if not self.left and not self.future.done():
            self.future.set_result(None)

    def failed(self, error: TorporError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _shown(key: Key) -> str:
    return repr(key.decode(errors="replace") if isinstance(key, bytes) else key)
