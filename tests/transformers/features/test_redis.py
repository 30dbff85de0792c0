"""The cache of features over a real redis-server: what is in it, and what happens when it is killed, stopped, full."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis
from torpor.transformers.features import FeatureCache, FeatureTable
from torpor.transformers.features.circuit import Circuit
from torpor.transformers.features.store import CONNECTIONS

LOAD_S = 0.02
TABLE = FeatureTable("float32[rows, 4]", ttl_s=100, missing_ttl_s=10)


class Bench:
    """A cache, a connection of one's own, and a loader that counts: key `7` has the row [7, …], `-…` has none."""

    def __init__(self, server: Any, table: FeatureTable, circuit: Circuit | None = None) -> None:
        self.server = server
        self.loaded: list[bytes] = []
        self.table = replace(table, url=server.url)
        self.cache = FeatureCache(self.load, self.table, circuit)
        self.redis = Redis.from_url(server.url)

    async def load(self, keys: list[bytes]) -> dict[bytes, list[float]]:
        self.loaded += keys
        await asyncio.sleep(LOAD_S)
        return {key: [float(key)] * 4 for key in keys if not key.startswith(b"-")}

    async def get(self, *keys: Any) -> list[float]:
        return (await self.cache.get(keys, default=-1))[:, 0].tolist()

    async def written(self) -> None:
        """Wait until what was loaded is in Redis."""
        await self.cache._tasks.ended()

    async def anew(self) -> None:
        """Another process's cache over the same Redis."""
        await self.cache.close()
        self.cache = FeatureCache(self.load, self.table)
        self.loaded.clear()


def run(
    server: Any,
    scenario: Callable[[Bench], Coroutine[Any, Any, None]],
    table: FeatureTable = TABLE,
    circuit: Circuit | None = None,
) -> None:
    async def whole() -> None:
        bench = Bench(server, table, circuit)
        try:
            await scenario(bench)
        finally:
            await bench.cache.close()
            await bench.redis.aclose()

    asyncio.run(whole())


async def until(condition: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    end_s = time.monotonic() + 20
    while not await condition():
        assert time.monotonic() < end_s, "it never came to be"
        await asyncio.sleep(0.01)


def test_another_process_finds_what_was_loaded(redis_server: Any) -> None:
    """Rows, and that there are none, under the table's prefix, each with its time to live and none for good."""

    async def scenario(bench: Bench) -> None:
        assert await bench.get(1, "-2", b"3") == [1, -1, 3]
        await bench.anew()
        assert await bench.get("3", "1", "-2") == [3, 1, -1]
        assert bench.loaded == []
        for key, ttl_s in ((b"features:1", 100), (b"features:3", 100), (b"features:-2", 10)):
            assert 0.85 * ttl_s < await bench.redis.pttl(key) / 1000 <= ttl_s
        assert await bench.redis.strlen("features:1") == 3 + 4 + 16

    run(redis_server, scenario)


def test_a_batch_is_one_command(redis_server: Any) -> None:
    """A thousand rows that are there: one MGET more than before."""

    async def scenario(bench: Bench) -> None:
        async def commands(name: str) -> int:
            return (await bench.redis.info("commandstats")).get(f"cmdstat_{name}", {}).get("calls", 0)

        await bench.get(*range(1000))
        await bench.written()
        assert await commands("mget") == 1
        callers = [bench.get(*range(start, start + 100)) for start in range(0, 1000, 50)]
        answers = await asyncio.gather(*callers, return_exceptions=False)
        assert answers[1] == list(range(50, 150))
        assert await commands("mget") == 2

    run(redis_server, scenario)


def test_a_row_that_has_expired_is_loaded_again(redis_server: Any) -> None:
    """No row is used when its time is over."""

    async def scenario(bench: Bench) -> None:
        await bench.get(7)
        await bench.written()

        async def has_gone() -> bool:
            return not await bench.redis.exists("features:7")

        await until(has_gone)
        bench.loaded.clear()
        assert await bench.get(7) == [7]
        assert bench.loaded == [b"7"]

    run(redis_server, scenario, replace(TABLE, ttl_s=0.3))


def test_rows_that_were_written_together_end_apart(redis_server: Any) -> None:
    """Over the last tenth of their time, and none later than said."""

    async def scenario(bench: Bench) -> None:
        await bench.get(*range(200))
        await bench.written()
        ends_s = [await bench.redis.pttl(f"features:{n}") / 1000 for n in range(200)]
        assert max(ends_s) <= 1000
        assert max(ends_s) - min(ends_s) > 50

    run(redis_server, scenario, replace(TABLE, ttl_s=1000))


def test_a_connection_that_was_closed_costs_nobody_anything(redis_server: Any) -> None:
    """Redis, or what is between, closes idle ones: the next read has a new one, and is no failure."""

    async def scenario(bench: Bench) -> None:
        await bench.get(1)
        await bench.written()
        await bench.redis.client_kill_filter(_type="normal", skipme=True)
        bench.loaded.clear()
        assert await bench.get(1) == [1]
        assert bench.loaded == []
        assert not bench.cache.metrics.failures

    run(redis_server, scenario)


def test_a_value_of_another_form_is_loaded_and_replaced(redis_server: Any) -> None:
    """What a pod of another version, or somebody else, has written; a hash under the key too."""

    async def scenario(bench: Bench) -> None:
        await bench.redis.set("features:1", b"\x01\x04\x01\x02\x00\x00\x00" + bytes(8))
        await bench.redis.set("features:2", b"pickle")
        await bench.redis.hset("features:3", "a", "b")
        assert await bench.get(1, 2, 3) == [1, 2, 3]
        assert bench.cache.store.foreign == 2
        await bench.anew()
        assert await bench.get(1, 2, 3) == [1, 2, 3]
        assert bench.loaded == []

    run(redis_server, scenario)


@pytest.mark.parametrize("ends", ["kill", "pause"])
def test_killed_and_started_again_under_load(redis_server: Any, ends: str) -> None:
    """Everybody is answered rightly all the while, a few wait for it in vain, and afterwards it is used again."""

    async def scenario(bench: Bench) -> None:
        answers = 0
        going = True

        async def caller(number: int) -> None:
            nonlocal answers
            while going:
                keys = [(number * 7 + answers) % 50 + n for n in range(3)]
                assert await bench.get(*keys) == keys
                answers += 1

        async def degraded() -> bool:
            return not bench.cache.circuit.is_closed

        async def has_loaded() -> bool:
            return len(bench.loaded) >= before + 200

        async def hits_again() -> bool:
            hits = bench.cache.metrics.keys["hit"]
            await asyncio.sleep(0.05)
            return bench.cache.circuit.is_closed and bench.cache.metrics.keys["hit"] > hits

        callers = [asyncio.ensure_future(caller(number)) for number in range(16)]
        await until(hits_again)
        before = len(bench.loaded)
        getattr(redis_server, ends)()
        await until(degraded)
        await until(has_loaded)
        assert bench.cache.metrics.keys["bypassed"] > 0
        if ends == "pause":
            redis_server.kill()
        redis_server.start()
        await until(hits_again)
        going = False
        await asyncio.gather(*callers)
        failures = {kind: n for (operation, kind), n in bench.cache.metrics.failures.items() if operation == "read"}
        assert sum(failures.values()) <= CONNECTIONS + 2

    run(redis_server, scenario, replace(TABLE, timeout_s=1.0), Circuit(pause_s=0.1))


def test_one_that_is_not_there_at_the_start_is_used_when_it_comes(redis_server: Any) -> None:
    """A transformer starts without Redis, and without an error to its callers."""

    async def scenario(bench: Bench) -> None:
        redis_server.kill()
        for n in range(4):
            assert await bench.get(n) == [n]
        assert not bench.cache.circuit.is_closed
        redis_server.start()

        async def is_written() -> bool:
            await bench.get(9)
            return bool(await bench.redis.exists("features:9"))

        await until(is_written)

    run(redis_server, scenario, circuit=Circuit(pause_s=0.05))


def test_one_that_is_full_still_serves_what_it_has(redis_server: Any) -> None:
    """A write is refused (OOM); that is counted, and reading goes on."""

    async def scenario(bench: Bench) -> None:
        await bench.get(1)
        await bench.written()
        await bench.redis.config_set("maxmemory", "1")
        for n in range(2, 8):
            assert await bench.get(n) == [n]
            await bench.written()
        assert bench.cache.metrics.failures["write", "refused"] == 6
        assert bench.cache.circuit.is_closed
        bench.loaded.clear()
        assert await bench.get(1) == [1]
        assert bench.loaded == []

    run(redis_server, scenario)


def test_a_wrong_password_is_said_and_not_shown(redis_server: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The log names the server and what it says; the loader answers."""
    redis_server.kill()
    redis_server.start("--requirepass", "right")

    async def scenario(bench: Bench) -> None:
        for n in range(4):
            assert await bench.get(n) == [n]

    async def whole() -> None:
        url = redis_server.url.replace("//", "//:secret@")
        bench = Bench(redis_server, TABLE)
        bench.cache = FeatureCache(bench.load, replace(TABLE, url=url))
        await scenario(bench)
        await bench.cache.close()
        await bench.redis.aclose()

    asyncio.run(whole())
    assert f"Redis at 127.0.0.1:{redis_server.port} does not answer" in caplog.text
    assert "invalid username-password" in caplog.text
    assert "secret" not in caplog.text


def test_a_caller_that_leaves_does_not_shift_answers(redis_server: Any) -> None:
    """Callers give up at any moment, also while a read is on its way; nobody ever gets another one's row."""

    async def scenario(bench: Bench) -> None:
        chance = np.random.default_rng(0)

        async def caller() -> None:
            for _ in range(40):
                key = int(chance.integers(0, 200))
                try:
                    async with asyncio.timeout(float(chance.choice([0.0005, 0.002, 1.0]))):
                        assert await bench.get(key) == [key]
                except TimeoutError:
                    pass

        await asyncio.gather(*(caller() for _ in range(20)))

    run(redis_server, scenario, replace(TABLE, timeout_s=0.002))
