"""Giver and taker over a link that loses, delays, repeats and reorders what is sent on it, and both of them killed meanwhile.

In virtual time, with a stream and a backlog that are lists: NATS' own are in `test_backlog.py` and `test_link.py`.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.errors import TimeoutError as NothingCame
from torpor.predictors.errors import Unavailable
from torpor.transformers.events import Event
from torpor.transformers.events.backlog import Given, Position
from torpor.transformers.events.handover import Giver, Taker
from torpor.transformers.events.jetstream import encode_stored, key_of
from virtual_time import run_virtually

SUBJECT = "torpor-link.node.events"
LONG_S = 600.0


def event(number: int) -> Event:
    return Event({"specversion": "1.0", "id": str(number), "source": "/s", "type": "t"}, b"x")


class Message:
    def __init__(self, data: bytes, headers: dict[str, str] | None) -> None:
        self.data, self.headers = data, headers


class Subscription:
    """As nats-py's: errors and names."""

    def __init__(self, link: "Link", subject: str) -> None:
        self._queue: asyncio.Queue[Message] = asyncio.Queue()
        link.subscribers[subject].append(self)

    @property
    def pending_msgs(self) -> int:
        return self._queue.qsize()

    def put(self, message: Message) -> None:
        self._queue.put_nowait(message)

    async def next_msg(self, timeout: float | None = 1.0) -> Message:  # noqa: ASYNC109 — as nats-py has it
        try:
            return await asyncio.wait_for(self._queue.get(), timeout)
        except TimeoutError:
            raise NothingCame from None


class Link:
    """fates: how late each copy of each message comes. Then all come at once and in order, or those on SUBJECT so late."""

    def __init__(self, fates: Sequence[Sequence[float]] = (), late_s: float = 0.0) -> None:
        self.subscribers: defaultdict[str, list[Subscription]] = defaultdict(list)
        self.sent: list[tuple[str, dict[str, str]]] = []
        self.is_up = True
        self._fates = [*reversed(fates)]
        self._late_s = late_s

    async def subscribe(self, subject: str) -> Subscription:
        return Subscription(self, subject)

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        self.sent.append((subject, headers or {}))
        if not self.is_up or not self.subscribers[subject]:
            for one in self.subscribers[reply]:
                one.put(Message(b"", {"Status": "503"}))
            return
        in_order_s = 1e-6 * len(self.sent)
        for late_s in self._fates.pop() if self._fates else [in_order_s + self._late_s * (subject == SUBJECT)]:
            asyncio.get_running_loop().call_later(late_s, self._deliver, subject, Message(payload, headers))

    def _deliver(self, subject: str, message: Message) -> None:
        if self.is_up:
            for one in self.subscribers[subject]:
                one.put(message)


class FromThere:
    """What there is for the other end. Nothing may go that is not at the other end."""

    def __init__(self, count: int, there: "Here") -> None:
        self._left = [Position("made", n + 1, key_of(event(n))) for n in range(count)]
        self._there = there

    async def after(self, last: Position | None, wait_s: float) -> list[Given]:
        while last in self._left:
            released = self._left.pop(0)
            assert released.key in self._there.keys
        if not self._left:
            await asyncio.sleep(wait_s)
        return [Given(one, encode_stored(event(one.sequence - 1)), None) for one in self._left[:3]]


class Here:
    """The stream of the taker's end. refusals: how many stores fail, in turn by how many have come between them."""

    def __init__(self, client: Link, refusals: Sequence[int] = ()) -> None:
        self.client = client
        self.keys: list[str] = []
        self._newest: Position | None = None
        self._refusals = [*reversed(refusals)]
        self._changed = asyncio.Condition()

    async def have(self, count: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.keys) >= count)

    async def position(self, stream: str, origin: str) -> Position | None:
        return self._newest

    async def keep(self, stream: str, origin: str, event_type: str, payload: bytes, position: Position) -> None:
        await asyncio.sleep(0.01)
        if self._refusals:
            self._refusals[-1] -= 1
            if self._refusals[-1] < 0:
                self._refusals.pop()
                raise Unavailable("full")
        self.keys.append(position.key)
        self._newest = position
        async with self._changed:
            self._changed.notify_all()


async def run_both(link: Link, there: Any, here: Here, kills: Sequence[tuple[float, bool]], count: int) -> None:
    """Until so many are stored. kills: after so long the giver, or else the taker, ends and comes again."""

    def start(is_giver: bool) -> asyncio.Task[None]:
        end = Giver(link, there, SUBJECT) if is_giver else Taker(here, "stream", "node", SUBJECT)
        return asyncio.create_task(end.run())

    async def end(is_giver: bool) -> None:
        tasks[is_giver].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await tasks[is_giver]
        link.subscribers[f"{SUBJECT}.asked" if is_giver else SUBJECT].clear()

    tasks = {True: start(True), False: start(False)}
    for after_s, is_giver in kills:
        await asyncio.sleep(after_s)
        await end(is_giver)
        tasks[is_giver] = start(is_giver)
    await asyncio.wait_for(here.have(count), LONG_S)
    await asyncio.sleep(60.0)  # in which nothing more may come
    sent = len(link.sent)
    await asyncio.sleep(60.0)
    assert len(link.sent) - sent <= 32, "an ask and an answer every four seconds"
    for is_giver in tasks:
        await end(is_giver)


FATES = st.lists(st.lists(st.sampled_from([0.0, 0.0, 0.5, 7.0]), max_size=2), max_size=40)
KILLS = st.lists(st.tuples(st.floats(0.0, 8.0), st.booleans()), max_size=4)


@given(FATES, KILLS, st.lists(st.integers(0, 4), max_size=3), st.integers(1, 12))
@example([[7.0], [], [0.0, 0.0]], [], [0], 5)
def test_every_event_arrives_once_and_in_order(
    fates: list[list[float]], kills: list[tuple[float, bool]], refusals: list[int], count: int
) -> None:
    """Whatever the link does, whoever ends in the midst of it, and also if some can be stored only later."""
    link = Link(fates)
    here = Here(link, refusals)
    run_virtually(run_both(link, FromThere(count, here), here, kills, count))
    assert here.keys == [key_of(event(n)) for n in range(count)]


def test_what_is_under_way_for_long_is_not_sent_again_and_again() -> None:
    """On a slow link an answer takes a minute: meanwhile it is asked whether it was lost, and it is sent once."""
    link = Link(late_s=60.0)
    here = Here(link)
    run_virtually(run_both(link, FromThere(3, here), here, [], 3))
    given = [headers for subject, headers in link.sent if "Torpor-Position" in headers]
    assert len(given) == 3


def test_where_nobody_is_it_is_asked_each_second_until_somebody_is(caplog: pytest.LogCaptureFixture) -> None:
    """NATS says at once that nobody hears: no time is lost when the other end comes. It is logged once each time."""
    caplog.set_level("INFO")

    async def run() -> tuple[int, int]:
        link = Link()
        here = Here(link)
        link.is_up = False
        task = asyncio.create_task(Taker(here, "stream", "node", SUBJECT).run())
        giver = asyncio.create_task(Giver(link, FromThere(1, here), SUBJECT).run())
        await asyncio.sleep(60.5)
        asks = len(link.sent)
        link.is_up = True
        await asyncio.sleep(1.0)
        arrived = len(here.keys)
        link.is_up = False
        await asyncio.sleep(60.0)
        for one in (task, giver):
            one.cancel()
        return asks, arrived

    assert run_virtually(run()) == (61, 1)
    assert caplog.text.count("the other end is not there") == 2


def test_what_is_no_event_is_dropped_and_keeps_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    """A node that sends what it likes does no harm to what comes behind it."""

    class Junk(FromThere):
        async def after(self, last: Position | None, wait_s: float) -> list[Given]:
            given = await super().after(last, wait_s)
            return [Given(one.position, b"{" if one.position.sequence == 2 else one.payload, None) for one in given]

    link = Link()
    here = Here(link)
    here.keys.append(key_of(event(1)))  # as if it were there, so that it may go
    run_virtually(run_both(link, Junk(3, here), here, [], 3))
    assert here.keys[1:] == [key_of(event(0)), key_of(event(2))]
    assert f"what is at made/2/{key_of(event(1))} is no event, and is dropped" in caplog.text


@pytest.mark.parametrize("position", ["", "made", "made/x/key", "made/1"])
def test_a_position_that_is_none_is_named(position: str, caplog: pytest.LogCaptureFixture) -> None:
    """By the taker that is given it, and by the giver that is asked for it; the next right one goes on."""

    async def run() -> list[str]:
        link = Link()
        here = Here(link)
        taker = asyncio.create_task(Taker(here, "stream", "node", SUBJECT).run())
        giver = asyncio.create_task(Giver(link, FromThere(1, here), SUBJECT).run())
        await asyncio.sleep(0)
        await link.publish(SUBJECT, b"", headers={"Torpor-After": "", "Torpor-Position": position})
        await asyncio.sleep(10.0)
        await link.publish(f"{SUBJECT}.asked", headers={"Torpor-After": position or "/", "Torpor-Ask": "1"})
        await asyncio.sleep(10.0)
        for one in (taker, giver):
            one.cancel()
        return here.keys

    caplog.set_level("INFO")
    assert run_virtually(run()) == [key_of(event(0))]
    assert "nothing is taken for now" in caplog.text
    assert "which is no position" in caplog.text
