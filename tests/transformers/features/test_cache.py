"""The cache of features over a Redis that is told how to behave, in virtual time: no test sleeps, every wait is exact."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from torpor.predictors.errors import InvalidInput, ModelFailed, Unavailable
from torpor.transformers.features import FeatureCache, FeatureTable
from torpor.transformers.features.store import ABSENT, CONNECTIONS, FeatureStore, StoreError
from virtual_time import run_virtually

READ_S, WRITE_S, LOAD_S = 0.001, 0.002, 0.12
TABLE = FeatureTable("float32[rows, 2]", load_timeout_s=1.0, max_loads=2)


class Store(FeatureStore):
    """Holds rows in a dict. fails: of a read, a write or a ping what it raises; slow_s: how much longer it takes."""

    def __init__(self) -> None:
        super().__init__(TABLE)
        self.rows: dict[bytes, Any] = {}
        self.reads: list[list[bytes]] = []
        self.writes: list[list[bytes]] = []
        self.pings = 0
        self.fails: dict[str, str] = {}
        self.slow_s: dict[str, float] = {}

    async def read(self, keys: Sequence[bytes]) -> list[Any]:
        self.reads.append(list(keys))
        await self._behave("read", READ_S)
        return [self.rows.get(key, ABSENT) for key in keys]

    async def write(self, rows: Mapping[bytes, Any]) -> None:
        self.writes.append(list(rows))
        await self._behave("write", WRITE_S)
        self.rows |= rows

    async def ping(self) -> None:
        self.pings += 1
        await self._behave("ping", READ_S)

    async def _behave(self, what: str, seconds: float) -> None:
        await asyncio.sleep(seconds + self.slow_s.get(what, 0.0))
        if what in self.fails:
            raise StoreError(self.fails[what], "so told")


class Bench:
    """A cache, its store and its loader: key `7` has the row [7, 7]; what begins with `-` has none."""

    def __init__(self) -> None:
        self.loads: list[list[bytes]] = []
        self.raises: BaseException | None = None
        self.load_s = LOAD_S
        self.cache = FeatureCache(self.load, TABLE)
        self.cache.store = self.store = Store()
        self.now: Callable[[], float] = asyncio.get_running_loop().time

    async def load(self, keys: list[bytes]) -> dict[bytes, list[float]]:
        self.loads.append(keys)
        await asyncio.sleep(self.load_s)
        if self.raises is not None:
            raise self.raises
        return {key: [float(key)] * 2 for key in keys if not key.startswith(b"-")}

    async def get(self, *keys: Any, default: float | None = None) -> list[float]:
        rows = await self.cache.get(keys, default)
        assert rows.shape == (len(keys), 2)
        assert rows.dtype == np.float32
        return rows[:, 0].tolist()

    async def took_s(self, work: Coroutine[Any, Any, Any]) -> float:
        began_s = self.now()
        await work
        return self.now() - began_s

    def send(self, *keys: Any) -> "asyncio.Task[list[float]]":
        return asyncio.ensure_future(self.get(*keys))

    def has(self, *keys: bytes) -> None:
        self.store.rows |= {key: np.full(2, float(key), np.float32) for key in keys}


def run(scenario: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        bench = Bench()
        await scenario(bench)
        await bench.cache.close()

    run_virtually(whole())


# Reading and loading


def test_what_comes_together_is_one_read() -> None:
    """The keys of several callers, each once, whatever their form; each caller gets its rows, in its order."""

    async def scenario(bench: Bench) -> None:
        bench.has(b"1", b"2", b"3")
        answers = await asyncio.gather(bench.get("1", 2), bench.get(b"2", "3", 2), bench.get(np.int64(1)))
        assert answers == [[1, 2], [2, 3, 2], [1]]
        assert bench.store.reads == [[b"1", b"2", b"3"]]
        assert bench.loads == []

    run(scenario)


def test_hits_do_not_wait_for_others_misses() -> None:
    """They share the read and not the loader's 120 ms."""

    async def scenario(bench: Bench) -> None:
        bench.has(b"1")
        hit, miss = bench.took_s(bench.get(1)), bench.took_s(bench.get(2))
        took = await asyncio.gather(hit, miss)
        assert took == pytest.approx([READ_S, READ_S + LOAD_S])

    run(scenario)


def test_a_key_is_loaded_once_for_all_who_wait() -> None:
    """Those who come while it is read, while it is loaded, and while it is written; then it is in Redis."""

    async def scenario(bench: Bench) -> None:
        first = bench.send(1, 2)
        await asyncio.sleep(READ_S / 2)
        second = bench.send(2)
        await asyncio.sleep(LOAD_S / 2)
        third = bench.send(2)
        assert [await first, await second, await third] == [[1, 2], [2], [2]]
        assert await bench.took_s(bench.get(2)) == 0.0  # the write is under way
        await asyncio.sleep(WRITE_S)
        assert await bench.get(2) == [2]
        assert bench.loads == [[b"1", b"2"]]
        assert bench.store.reads == [[b"1", b"2"], [b"2"]]
        assert bench.store.writes == [[b"1", b"2"]]

    run(scenario)


def test_that_there_is_no_row_is_remembered() -> None:
    """It is one of the things that Redis knows; `get` refuses it without a default, `look_up` says None."""

    async def scenario(bench: Bench) -> None:
        assert await bench.get(1, "-2", default=-1) == [1, -1]
        with pytest.raises(InvalidInput, match=r"^key '-2' has no features$"):
            await bench.get("-2")
        found = await bench.cache.look_up(["-2", 1])
        assert found[0] is None
        assert found[1].tolist() == [1, 1]
        assert bench.loads == [[b"1", b"-2"]]
        await bench.cache.close()
        assert bench.store.rows[b"-2"] is None

    run(scenario)


def test_no_keys_are_no_rows() -> None:
    """And ask nobody."""

    async def scenario(bench: Bench) -> None:
        assert await bench.get() == []
        assert bench.store.reads == []

    run(scenario)


def test_a_key_that_is_too_long_is_refused() -> None:
    """With its length, before anybody is asked."""

    async def scenario(bench: Bench) -> None:
        with pytest.raises(InvalidInput, match="a key has 1025 bytes, must have at most 1024"):
            await bench.get("7" * 1025)
        assert bench.store.reads == []

    run(scenario)


def test_reads_are_as_many_as_there_are_connections() -> None:
    """What is wanted meanwhile goes together with the next one."""

    async def scenario(bench: Bench) -> None:
        keys = [b"%d" % n for n in range(30)]
        bench.has(*keys)
        callers = []
        for key in keys:
            callers.append(bench.send(key))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert len(bench.store.reads) == CONNECTIONS
        assert [await caller for caller in callers] == [[n] for n in range(30)]
        assert len(bench.store.reads) == CONNECTIONS + 1

    run(scenario)


def test_calls_of_the_loader_are_as_many_as_the_table_says() -> None:
    """What is missing meanwhile is one call: a database that is asked for everything is asked seldom."""

    async def scenario(bench: Bench) -> None:
        callers = []
        for n in range(20):
            callers.append(bench.send(n))
            await asyncio.sleep(READ_S)
        assert [await caller for caller in callers] == [[n] for n in range(20)]
        assert [len(keys) for keys in bench.loads] == [1, 1, 18]

    run(scenario)


# Those who leave, and what fails


def test_who_leaves_takes_nothing_along() -> None:
    """The others get their rows, and what is loaded for nobody is in Redis for the next."""

    async def scenario(bench: Bench) -> None:
        leaving, staying, alone = bench.send(1), bench.send(1, 2), bench.send(3)
        await asyncio.sleep(LOAD_S / 2)
        leaving.cancel()
        alone.cancel()
        assert await staying == [1, 2]
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await bench.cache.close()
        assert set(bench.store.rows) == {b"1", b"2", b"3"}

    run(scenario)


@pytest.mark.parametrize("raised", [OSError("no route"), asyncio.CancelledError()], ids=["raises", "is cancelled"])
def test_a_loader_that_fails_fails_those_who_needed_it(raised: BaseException) -> None:
    """With 503, retryable; who had hits is answered, and the next try loads again."""

    async def scenario(bench: Bench) -> None:
        bench.has(b"1")
        bench.raises = raised
        results = await asyncio.gather(bench.get(1), bench.get(1, 2), bench.get(2), return_exceptions=True)
        assert results[0] == [1]
        assert [type(result) for result in results[1:]] == [Unavailable, Unavailable]
        assert "no route" not in str(results[1])
        bench.raises = None
        assert await bench.get(2) == [2]
        await bench.cache.close()
        assert bench.store.writes == [[b"2"]]

    run(scenario)


def test_a_loader_that_hangs_is_not_waited_for() -> None:
    """Its time-out ends the wait of all who joined, and the next try asks anew."""

    async def scenario(bench: Bench) -> None:
        bench.load_s = 1e6
        first = bench.send(1)
        await asyncio.sleep(0.9)
        second = asyncio.ensure_future(bench.took_s(bench.get(1)))
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert [str(result) for result in results] == ["the loader of features took more than 1 s"] * 2
        assert bench.now() == pytest.approx(101.0 + READ_S)
        bench.load_s = LOAD_S
        assert await bench.get(1) == [1]

    run(scenario)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([[1.0, 1.0]], "returned 1 rows, must return 2, or rows by key"),
        (None, "returned a NoneType, must return 2, or rows by key"),
        ({b"1": [1.0]}, r"returned for key b'1': shape = \[1\], must be \[2\]"),
        (np.zeros((2, 3)), r"returned for key b'1': shape = \[3\], must be \[2\]"),
        ({b"1": object()}, r"returned for key b'1': shape = \[\], must be \[2\]"),
    ],
)
def test_a_loader_that_returns_something_else_is_at_fault(returned: Any, message: str) -> None:
    """500, with what is wrong; nothing of it is kept."""

    async def scenario(bench: Bench) -> None:
        async def load(keys: list[bytes]) -> Any:
            return returned

        cache = FeatureCache(load, TABLE)
        cache.store = bench.store
        with pytest.raises(ModelFailed, match=message):
            await cache.get([1, 2])
        assert bench.store.writes == []

    run(scenario)


def test_a_loader_may_return_rows_in_the_order_of_the_keys() -> None:
    """An array, or a list with None for a key that has none; and it may be a plain function, on a thread."""

    async def scenario() -> None:
        for rows in (np.ones((2, 2)), [[1, 1], None]):

            def load(keys: list[bytes], rows: Any = rows) -> Any:
                assert threading.current_thread() is not threading.main_thread()
                return rows

            cache = FeatureCache(load, TABLE)
            cache.store = Store()
            found = await cache.get(["a", "b"], default=0)
            assert found[:, 0].tolist() == [1, 0 if rows[1] is None else 1]
            await cache.close()

    asyncio.run(scenario())  # threads know no virtual time


# Without Redis


def test_a_dead_redis_costs_a_few_their_time_and_then_nobody() -> None:
    """After three failures it is not asked any more: what is needed comes from the loader at once."""

    async def scenario(bench: Bench) -> None:
        bench.store.fails = {"read": "timeout", "ping": "timeout"}
        bench.store.slow_s = {"read": 0.1}
        for n in range(3):
            assert await bench.took_s(bench.get(n)) == pytest.approx(0.1 + READ_S + LOAD_S)
        assert await bench.took_s(bench.get(3)) == pytest.approx(LOAD_S)
        assert len(bench.store.reads) == 3
        assert bench.cache.metrics.failures["read", "timeout"] == 3
        assert bench.cache.metrics.keys["bypassed"] == 1

    run(scenario)


def test_who_waits_for_a_connection_when_redis_dies_goes_to_the_loader() -> None:
    """All connections hang: the failure that opens the circuit lets go who has none, the first two let in one each."""

    async def scenario(bench: Bench) -> None:
        bench.store.fails = {"read": "timeout"}
        bench.store.slow_s = {"read": 0.1}
        callers = []
        for n in range(CONNECTIONS + 4):
            callers.append(bench.send(n))
            await asyncio.sleep(1e-6)
        began_s = bench.now()
        await asyncio.gather(*callers)
        assert bench.now() - began_s < 2 * (0.1 + LOAD_S)
        assert len(bench.store.reads) <= CONNECTIONS + 2

    run(scenario)


def test_single_flight_holds_without_redis() -> None:
    """A database whose cache is gone is not asked for the same key by all at once."""

    async def scenario(bench: Bench) -> None:
        bench.store.fails = {"read": "connection", "write": "connection"}
        for n in range(3):
            await bench.get(n)
        bench.loads.clear()
        assert await asyncio.gather(*(bench.get(7) for _ in range(50))) == [[7]] * 50
        assert bench.loads == [[b"7"]]
        assert bench.store.writes[3:] == []

    run(scenario)


def test_redis_is_used_again_when_it_answers() -> None:
    """A probe beside the requests finds out, one a second while there are requests; none of them waits for it."""

    async def scenario(bench: Bench) -> None:
        bench.store.fails = {"read": "connection", "write": "connection", "ping": "connection"}
        for n in range(3):
            await bench.get(n)
        for _ in range(3):
            await asyncio.sleep(1.0)
            assert await bench.took_s(bench.get(5)) == pytest.approx(LOAD_S)
        assert bench.store.pings == 3
        bench.store.fails = {}
        bench.has(b"5")
        await asyncio.sleep(1.0)
        assert await bench.took_s(bench.get(5)) == pytest.approx(LOAD_S)
        await asyncio.sleep(2 * WRITE_S)
        assert await bench.took_s(bench.get(5)) == pytest.approx(READ_S)
        assert bench.store.pings == 4

    run(scenario)


def test_a_write_that_is_refused_is_no_reason_to_stop_reading() -> None:
    """Redis is full, or a replica: what it has is still good."""

    async def scenario(bench: Bench) -> None:
        bench.has(b"1")
        bench.store.fails = {"write": "refused"}
        for n in range(2, 8):
            assert await bench.get(n) == [n]
            await asyncio.sleep(WRITE_S)
        await bench.cache.close()
        assert bench.cache.metrics.dropped == 6
        await bench.get(*range(2000))  # several writes, and no read between them
        await bench.cache.close()
        assert bench.cache.metrics.failures["write", "refused"] == 10
        assert await bench.took_s(bench.get(1)) == pytest.approx(READ_S)

    run(scenario)


def test_what_waits_to_be_written_goes_with_a_redis_that_goes() -> None:
    """It is not tried row by row against a server that hangs."""

    async def scenario(bench: Bench) -> None:
        bench.store.fails = {"write": "timeout"}
        await bench.get(*range(4000))
        await bench.cache.close()
        assert len(bench.store.writes) == 3
        assert bench.cache.metrics.dropped == 4000
        assert not bench.cache.circuit.is_closed

    run(scenario)


def test_keys_of_one_caller_are_bounded() -> None:
    """A body of 64 MiB could hold millions."""

    async def scenario(bench: Bench) -> None:
        with pytest.raises(InvalidInput, match="keys = 4097, must be at most 4096"):
            await bench.get(*range(4097))

    run(scenario)


def test_rows_that_wait_to_be_written_are_bounded() -> None:
    """A Redis that is slow to write costs memory for so many rows, and no answer."""

    async def scenario(bench: Bench) -> None:
        bench.store.slow_s = {"write": 1.0}
        bench.load_s = 0.0
        for start in range(0, 12_000, 4_000):
            keys = range(start, start + 4_000)
            assert await bench.get(*keys) == [*keys]
        assert bench.cache.metrics.dropped == 2_000
        await bench.cache.close()
        assert len(bench.store.rows) == 10_000

    run(scenario)


def test_the_counts_are_prometheuss() -> None:
    """With the labels that the server gives, among them whether Redis is asked."""

    async def scenario(bench: Bench) -> None:
        bench.has(b"1")
        await asyncio.gather(bench.get(1, 2), bench.get(2), bench.get("-3", default=0))
        await bench.cache.close()
        await bench.get("-3", default=0)
        bench.store.fails = {"read": "timeout"}
        for n in (4, 5, 6):
            await bench.get(n)

        class Collector:
            def collect(self) -> Any:
                return bench.cache.metrics.families({"model_name": "m"})

        registry = CollectorRegistry()
        registry.register(Collector())
        lines = generate_latest(registry).decode().splitlines()
        for line in (
            'torpor_feature_keys_total{model_name="m",result="hit"} 1.0',
            'torpor_feature_keys_total{model_name="m",result="miss"} 2.0',
            'torpor_feature_keys_total{model_name="m",result="missing"} 1.0',
            'torpor_feature_keys_total{model_name="m",result="joined"} 1.0',
            'torpor_feature_store_failures_total{kind="timeout",model_name="m",operation="read"} 3.0',
            'torpor_feature_degraded{model_name="m"} 1.0',
            'torpor_feature_load_seconds_bucket{le="0.25",model_name="m"} 4.0',
            'torpor_feature_read_seconds_count{model_name="m"} 2.0',
        ):
            assert line in lines

    run(scenario)
