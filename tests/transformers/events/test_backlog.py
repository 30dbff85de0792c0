"""What a stream has for the other end of a link, over a real NATS server that is killed, set back and emptied."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torpor.predictors.errors import Unavailable
from torpor.transformers.events import Event
from torpor.transformers.events.backlog import MOST_BYTES, MOST_EVENTS, Backlog, Given, Position
from torpor.transformers.events.jetstream import JetStream, StreamSettings, decode_stored, key_of

EVENTS = StreamSettings("events", keeps_taken=False)
WAIT_S = 0.1


def event(number: int | str, kind: str = "t", size: int = 1) -> Event:
    return Event({"specversion": "1.0", "id": str(number), "source": "/s", "type": kind}, b"x" * size)


class End:
    """A process that has a connection to the server and reads the backlog."""

    def __init__(self, jetstream: JetStream, backlog: Backlog) -> None:
        self.jetstream, self.backlog = jetstream, backlog

    async def publish(self, *events: Event) -> None:
        for one in events:
            await self.jetstream.publish(EVENTS.name, one, key_of(one))

    async def after(self, last: Position | None, wait_s: float = WAIT_S) -> Sequence[Given]:
        return await self.backlog.after(last, wait_s)

    async def stored(self) -> int:
        return int((await self.jetstream.client.jsm().stream_info(EVENTS.name)).state.messages)


def with_end(url: str, work: Callable[[End], Awaitable[Any]], types: Sequence[str] = ()) -> Any:
    async def run() -> Any:
        jetstream = await JetStream.connect(url)
        try:
            await jetstream.add_stream(EVENTS)
            return await work(End(jetstream, await jetstream.backlog(EVENTS.name, "to-there", types)))
        finally:
            await jetstream.close()

    return asyncio.run(run())


def ids(given: Sequence[Given]) -> list[str]:
    return [decode_stored(one.payload).id for one in given]


def test_an_event_stays_until_the_other_end_asks_for_what_is_behind_it(nats: Any) -> None:
    """And is given again until then, as it is and in its order."""

    async def work(end: End) -> None:
        await end.publish(*map(event, range(5)))
        given = await end.after(None)
        assert ids(given) == ids(await end.after(None)) == ["0", "1", "2", "3", "4"]
        assert await end.stored() == 5
        assert ids(await end.after(given[2].position)) == ["3", "4"]
        await end.publish(event("later"))
        assert ids(await end.after(given[4].position)) == ["later"]
        assert await end.stored() == 1

    with_end(nats.url, work)


def test_a_process_that_comes_after_another_goes_on_where_the_other_end_stands(nats: Any) -> None:
    """What the first one gave is given again, but for what has been stored there; also when the server was killed too."""

    async def first(end: End) -> Position:
        await end.publish(*map(event, range(5)))
        return (await end.after(None))[2].position

    async def second(end: End) -> None:
        assert ids(await end.after(there)) == ["3", "4"]
        assert await end.stored() == 2

    there = with_end(nats.url, first)
    nats.kill()
    nats.start()
    with_end(nats.url, second)


def test_what_comes_while_it_waits_is_given_at_once(nats: Any) -> None:
    async def work(end: End) -> None:
        waiting = asyncio.create_task(end.after(None, wait_s=60.0))
        while not (await end.jetstream.client.jsm().consumer_info(EVENTS.name, "to-there")).num_waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await end.publish(event("new"))
        assert ids(await asyncio.wait_for(waiting, 20.0)) == ["new"]
        assert await end.after((await waiting)[0].position) == []

    with_end(nats.url, work)


def test_as_many_as_there_may_be_are_given_at_once_and_one_of_any_size(nats: Any) -> None:
    """The bound by bytes is for the memory of a small node."""

    async def work(end: End) -> None:
        await end.publish(*map(event, range(MOST_EVENTS + 1)))
        given = await end.after(None)
        assert len(given) == MOST_EVENTS
        last = await end.after(given[-1].position)
        assert ids(last) == [str(MOST_EVENTS)]
        await end.publish(
            *(event(f"large {n}", size=MOST_BYTES // 3) for n in range(3)), event("huge", size=MOST_BYTES + 1)
        )
        sizes = []
        while last := await end.after(last[-1].position):
            sizes.append(len(last))
        assert sizes == [2, 1, 1]

    with_end(nats.url, work)


def test_the_position_in_a_stream_that_was_made_anew_is_another(nats: Any) -> None:
    """Otherwise the first events of the new one would count as taken."""

    async def first(end: End) -> Position:
        await end.publish(event("old"), event("old too"))
        there = (await end.after(None))[1].position
        await end.jetstream.client.jsm().delete_stream(EVENTS.name)
        return there

    async def second(end: End) -> None:
        await end.publish(event("new"), event("old too"))
        assert ids(await end.after(there)) == ["new", "old too"]
        assert await end.stored() == 2

    there = with_end(nats.url, first)
    with_end(nats.url, second)


def test_a_disk_that_was_set_back_gives_what_has_come_since(nats: Any, tmp_path: Path) -> None:
    """Its sequences are those of other events, which the other end has."""

    async def first(end: End) -> None:
        await end.publish(event(0))

    async def second(end: End) -> Position:
        await end.publish(event("forgotten"), event("forgotten too"))
        return (await end.after(None))[2].position

    async def third(end: End) -> None:
        await end.publish(event("new"), event("newer"), event("newest"))
        assert ids(await end.after(there)) == ["0", "new", "newer", "newest"]
        assert await end.stored() == 4

    with_end(nats.url, first)
    nats.kill()
    shutil.copytree(nats.folder, tmp_path / "copy")
    nats.start()
    there = with_end(nats.url, second)
    nats.kill()
    shutil.rmtree(nats.folder)
    shutil.copytree(tmp_path / "copy", nats.folder)
    nats.start()
    with_end(nats.url, third)


def test_a_position_that_went_long_ago_gives_what_there_is(nats: Any) -> None:
    """The other end has stored repeats since, which it does not keep, or has let go of its newest by their age."""

    async def work(end: End) -> None:
        await end.publish(*map(event, range(3)))
        first, second, _ = await end.after(None)
        await end.after(second.position)
        assert ids(await end.after(first.position)) == ids(await end.after(None)) == ["2"]

    with_end(nats.url, work)


def test_a_delivery_that_was_lost_is_made_up_for(nats: Any) -> None:
    """What somebody else pulled may not be missed out and then count as taken."""

    async def work(end: End) -> None:
        await end.publish(event(0))
        (first,) = await end.after(None)
        await end.publish(*map(event, range(1, 4)))
        thief = await end.jetstream.client.jetstream().pull_subscribe_bind("to-there", EVENTS.name)
        await thief.fetch(1)
        with pytest.raises(Unavailable, match="stream events for to-there: delivery 3 came in place of 2"):
            await end.after(first.position)
        assert ids(await end.after(first.position)) == ["1", "2", "3"]
        assert await end.stored() == 3

    with_end(nats.url, work)


def test_only_the_types_that_are_named_are_given(nats: Any) -> None:
    """Those that came over another link too."""

    async def work(end: End) -> None:
        await end.publish(event(1, "a"), event(2, "b"), event(3, "c"))
        for origin in ("a", "b"):
            at = Position("made", 1, origin)
            await end.jetstream.keep(EVENTS.name, "n", origin, (await end.after(None))[0].payload, at)
        given = await end.after(None)
        assert [one.message.subject for one in given] == ["events.a", "events.c"]
        assert [one.message.subject for one in await end.after(given[1].position)] == ["events.a.n"]

    with_end(nats.url, work, ("a", "c"))


def test_a_server_that_was_started_again_is_read_from_its_beginning(nats: Any) -> None:
    """While this process stays: what was given before may be given again, and nothing is missed."""

    async def work(end: End) -> None:
        await end.publish(*map(event, range(3)))
        given = await end.after(None)
        nats.kill()
        with pytest.raises(Unavailable, match="stream events for to-there"):
            await end.after(given[0].position)
        nats.start()
        await end.jetstream.client.flush(20)
        assert ids(await end.after(given[0].position)) == ["1", "2"]

    with_end(nats.url, work)
