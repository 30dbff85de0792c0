"""The table in Redis, by redis-py (the extra `features`): a batch is one round trip, whatever its keys.

Values are written with the time that they live, in one command: nothing is ever there for good, and what is written again
lives anew.
"""

import asyncio
import random
from collections.abc import Awaitable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from torpor.predictors.protocol.datatypes import Array
from torpor.predictors.settings import SettingError

from .table import FeatureTable

if TYPE_CHECKING:
    from redis.asyncio import Redis

_JITTER = 0.1
"""The part of its time by which a row may go earlier, so that rows that were written together do not go together."""

_PATIENCE_S = 2.0
"""Of a write and of a probe, which nobody waits for: enough for a connection that is opened across a continent."""

CONNECTIONS = 8
"""Reads at once; what is wanted meanwhile goes with the next."""


class Absent:
    """Redis has nothing for this key that is the table's."""


ABSENT: Final = Absent()

Found = Array | None | Absent
"""A row; None where it is known that there is none."""


class StoreError(Exception):
    """Redis did not do it. kind: timeout, connection, or refused: it answers, with an error."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class FeatureStore:
    """Belongs to the event loop that it is first used on. chance: spreads the rows' ends."""

    def __init__(self, table: FeatureTable, chance: random.Random | None = None) -> None:
        self.codec = table.codec()
        self._table = table
        self._prefix = table.prefix.encode() + b":"
        self._url = table.where()
        self._chance = chance or random.Random()
        self.foreign = 0
        """Values that were none of the table's."""

    @property
    def address(self) -> str:
        """For messages, without the password."""
        parts = urlsplit(self._url)
        return parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or 6379}"

    @cached_property
    def client(self) -> "Redis":
        """Made at its first use, without a connection yet. Raises SettingError for a URL that is none of Redis."""
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        # The second try is for a connection that was closed while nobody used it. Two connections more are for the writer and
        # the probe.
        retry = Retry(NoBackoff(), 1)
        try:
            return Redis.from_url(self._url, max_connections=CONNECTIONS + 2, retry=retry, decode_responses=False)
        except ValueError as error:
            raise SettingError(f"url: {error}") from None

    async def read(self, keys: Sequence[bytes]) -> list[Found]:
        """What there is for each key, by one MGET. Raises StoreError."""
        values = await self._within(
            self._table.timeout_s, self.client.mget([self._prefix + key for key in keys]), "a read"
        )
        return [self._decoded(value) for value in values]

    async def write(self, rows: Mapping[bytes, Array | None]) -> None:
        """Write them all by one pipeline. Raises StoreError."""
        pipeline = self.client.pipeline(transaction=False)
        for key, row in rows.items():
            ttl_s = self._table.missing_ttl_s if row is None else self._table.ttl_s
            ttl_ms = max(1, int(1000 * ttl_s * self._chance.uniform(1 - _JITTER, 1)))
            pipeline.set(self._prefix + key, self.codec.encode(row), px=ttl_ms)
        await self._within(_PATIENCE_S, pipeline.execute(), "a write")

    async def ping(self) -> None:
        """Raises StoreError."""
        await self._within(_PATIENCE_S, self.client.ping(), "a ping")

    async def close(self) -> None:
        if "client" in self.__dict__:
            await self.client.aclose()

    def _decoded(self, value: bytes | None) -> Found:
        if value is None:
            return ABSENT
        try:
            return self.codec.decode(value)
        except ValueError:
            self.foreign += 1
            return ABSENT

    async def _within(self, timeout_s: float, work: Awaitable[Any], what: str) -> Any:
        from redis import exceptions

        try:
            async with asyncio.timeout(timeout_s):
                return await work
        except (TimeoutError, exceptions.TimeoutError):
            raise StoreError("timeout", f"{what} took more than {timeout_s:g} s") from None
        except exceptions.ResponseError as error:
            raise StoreError("refused", str(error)) from None
        except Exception as error:  # its own errors, and what event loops say of a connection that breaks: RuntimeError
            raise StoreError("connection", str(error)) from None
