"""Stores of answers: JetStream's and Redis' own servers, several processes, and a server that goes."""

import asyncio
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torpor.predictors.errors import Unavailable
from torpor.transformers.events import Event
from torpor.transformers.events.store import Store, open_store

MODELS = Path(__file__).parents[1] / "models"


@pytest.fixture(params=["nats", "redis"])
def url(request: pytest.FixtureRequest, run_process: Callable[..., Any], tmp_path: Path) -> Iterator[str]:
    """Of a server with an empty store."""
    if request.param == "nats":
        yield request.getfixturevalue("nats").url
        return
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed")
    path = tmp_path / "redis.sock"
    run_process(
        "sh", "-c", 'exec "$@" >&2', "sh", binary, "--port", "0", "--unixsocket", path, "--dir", tmp_path, "--save", "",
        ready="eady to accept connections",
    )  # fmt: skip
    yield f"unix://{path}"


def with_stores(url: str, count: int, work: Callable[..., Any], ttl_s: float = 60.0) -> Any:
    """Run the work with so many stores of this URL, each a connection of its own."""

    async def run() -> Any:
        stores: list[Store] = [await open_store(url, ttl_s) for _ in range(count)]
        try:
            return await work(*stores)
        finally:
            for store in stores:
                await store.close()

    return asyncio.run(run())


def test_the_first_answer_stays(url: str) -> None:
    """Whoever comes second gets it, and may not change it."""

    async def work(one: Store, other: Store) -> None:
        assert await one.get("k") is None
        assert await one.keep("k", b"first") == b"first"
        assert await other.keep("k", b"second") == b"first"
        assert await other.get("k") == b"first"
        assert await other.keep("l", b"\0\xff") == b"\0\xff"

    with_stores(url, 2, work)


def test_of_many_at_once_one_is_first(url: str) -> None:
    """All of them give back the same bytes."""

    async def work(*stores: Store) -> None:
        for key in map(str, range(20)):
            kept = await asyncio.gather(*(store.keep(key, b"%d" % n) for n, store in enumerate(stores)))
            assert len(set(kept)) == 1

    with_stores(url, 4, work)


def test_a_server_that_is_gone_is_unavailable(url: str, processes: Any) -> None:
    """The event is answered 503, and comes again."""

    async def work(store: Store) -> None:
        assert await store.keep("k", b"first") == b"first"
        processes[-1].end(signal.SIGKILL)
        with pytest.raises(Unavailable, match="the store of answers cannot be reached"):
            await store.get("k")
        with pytest.raises(Unavailable, match="the store of answers cannot be reached"):
            await store.keep("l", b"x")

    with_stores(url, 1, work)


def test_a_url_of_no_store_is_refused() -> None:
    """With what it must be."""
    with pytest.raises(ValueError, match="must be nats://HOST:PORT or redis://HOST:PORT"):
        asyncio.run(open_store("http://x", 1.0))


def test_two_processes_answer_one_event_with_the_same_bytes(url: str, start: Any, send: Any) -> None:
    """Both at once, in different batches, and again later."""
    servers = [
        start(MODELS / "words", "--model-name", "counts", "--predictor", str(MODELS / "counts"), "--event-store", url)
        for _ in range(2)
    ]
    attributes = {"specversion": "1.0", "source": "/me", "type": "ask", "datacontenttype": "application/json"}

    async def ask(server: Any, number: int) -> tuple[Any, ...]:
        event = Event({**attributes, "id": str(number)}, b'{"instances": ["abc"]}')
        response = await asyncio.to_thread(send, server.port, event)
        return response.status, response.headers["ce-id"], response.content

    async def both(number: int) -> list[tuple[Any, ...]]:
        return await asyncio.gather(*(ask(server, number) for server in servers * 2))

    async def all_of_them() -> list[list[tuple[Any, ...]]]:
        return await asyncio.gather(*map(both, range(25)))

    first = asyncio.run(all_of_them())
    assert all(answer[0] == 200 and len(set(answers)) == 1 for answers in first for answer in answers)
    assert asyncio.run(all_of_them()) == first
