"""Where answers are kept, so that a repeated event gets the same bytes again, whichever process answers it.

The first answer that is kept is the answer: who comes second with another gives back the first. A row that runs in
another batch is not bit-equal in torch, so without a store only the attributes of two answers agree.
"""

import contextlib
import logging
from typing import Any, Protocol

from torpor.predictors.errors import Unavailable

logger = logging.getLogger("torpor.events")

MOST_BYTES = 1 << 20
"""What JetStream and Redis take by default or well; larger answers are not kept."""


class Store(Protocol):
    """Answers by the key of their request."""

    async def get(self, key: str) -> bytes | None:
        """None if there is none. Raises Unavailable."""
        ...

    async def keep(self, key: str, answer: bytes) -> bytes:
        """Keep the answer unless there is one; the one that is kept. Raises Unavailable."""
        ...

    async def close(self) -> None: ...


async def open_store(url: str, ttl_s: float) -> Store:
    """The store at `nats://…/BUCKET` or `redis://…`. Raises Unavailable if it cannot be reached, ValueError for another URL.

    ttl_s: how long an answer is kept; longer than a broker goes on retrying.
    """
    if url.startswith("nats://"):
        return await JetStreamStore.open(url, ttl_s)
    if url.startswith(("redis://", "rediss://", "unix://")):
        return RedisStore(url, ttl_s)
    raise ValueError(f"event_store = {url!r}, must be nats://HOST:PORT or redis://HOST:PORT")


class RedisStore:
    """Keys with a time to live; SET NX decides who was first."""

    def __init__(self, url: str, ttl_s: float) -> None:
        from redis.asyncio import Redis

        self._redis: Any = Redis.from_url(url, socket_timeout=2.0, socket_connect_timeout=2.0)
        self._ttl_ms = max(1, round(ttl_s * 1000))

    async def get(self, key: str) -> bytes | None:
        try:
            answer: bytes | None = await self._redis.get(_PREFIX + key)
        except _redis_errors() as error:
            raise Unavailable(f"the store of answers cannot be reached: {error}") from error
        return answer

    async def keep(self, key: str, answer: bytes) -> bytes:
        try:
            # The old value comes back: one round trip says who was first, and with what.
            first: bytes | None = await self._redis.set(_PREFIX + key, answer, nx=True, get=True, px=self._ttl_ms)
        except _redis_errors() as error:
            raise Unavailable(f"the store of answers cannot be reached: {error}") from error
        return answer if first is None else first

    async def close(self) -> None:
        await self._redis.aclose()


_PREFIX = "torpor:answer:"


def _redis_errors() -> tuple[type[Exception], ...]:
    from redis.exceptions import RedisError

    return RedisError, OSError


async def _note(error: Exception) -> None:
    """Of the connection; whoever waits for an answer gets an error of their own."""
    logger.info("the store of answers: %s", error)


class JetStreamStore:
    """A key-value bucket; its `create` decides who was first."""

    def __init__(self, client: Any, bucket: Any) -> None:
        self._client = client
        self._bucket = bucket

    @classmethod
    async def open(cls, url: str, ttl_s: float) -> "JetStreamStore":
        import nats
        from nats.js.api import KeyValueConfig
        from nats.js.errors import APIError

        server, _, bucket = url.removeprefix("nats://").partition("/")
        try:
            client = await nats.connect(
                f"nats://{server}", max_reconnect_attempts=-1, reconnect_time_wait=0.2, error_cb=_note
            )
            stream = client.jetstream(timeout=2.0)
            config = KeyValueConfig(bucket=bucket or "torpor-answers", ttl=ttl_s, history=1)
            try:
                kept = await stream.create_key_value(config)
            except APIError:  # it is there, by whoever came first
                kept = await stream.key_value(config.bucket)
        except (nats.errors.Error, OSError) as error:
            raise Unavailable(f"the store of answers at {server} cannot be reached: {error}") from error
        return cls(client, kept)

    async def get(self, key: str) -> bytes | None:
        import nats
        from nats.js.errors import KeyNotFoundError

        try:
            value: bytes | None = (await self._bucket.get(key)).value
        except KeyNotFoundError:
            return None
        except (nats.errors.Error, OSError) as error:
            raise Unavailable(f"the store of answers cannot be reached: {error}") from error
        return value

    async def keep(self, key: str, answer: bytes) -> bytes:
        import nats
        from nats.js.errors import KeyWrongLastSequenceError

        try:
            await self._bucket.create(key, answer)
        except KeyWrongLastSequenceError:
            first = await self.get(key)
            return answer if first is None else first
        except (nats.errors.Error, OSError) as error:
            raise Unavailable(f"the store of answers cannot be reached: {error}") from error
        return answer

    async def close(self) -> None:
        with contextlib.suppress(OSError):  # a server that is gone cannot be told
            await self._client.close()
