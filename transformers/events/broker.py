"""A broker on one machine, in place of Knative's: an ingress, a JetStream stream, and triggers that deliver from it.

    POST / ─► decode ─► stream ─► 202          each trigger: consumer ─► subscriber ─► reply ─► stream
                                                                   └─► again later, or a dead letter

The 202 means that the event is on disk. Everything that must not be lost is the NATS server's; a broker that is killed, and
one that comes after it, need nothing of this process.
"""

import asyncio
import contextlib
import logging
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from torpor.predictors.errors import Unavailable
from torpor.predictors.serving.exchange import Head
from torpor.predictors.serving.server import HttpServer, Port
from torpor.predictors.serving.tasks import Tasks

from . import Event
from .dispatch import FIRST_TTL, TTL, Dispatch
from .handover import Giver, Taker
from .http_caller import HttpCaller
from .ingress import Ingress
from .jetstream import JetStream, StreamSettings, key_of
from .link import COMMANDS, SITE, ToNodes, ToSite, commands_subject, consumer_for, events_subject
from .nats_server import NatsServer
from .trigger import DEAD_LETTERS, Trigger

logger = logging.getLogger("torpor.events")

REPLAY = b"torpor-replay"
"""The header of a replay: events with one value of it are repeats of each other, and of no event without it."""

_LETTERS_AGE_S = 30 * 86_400.0


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """nats_url: of a server that runs; "" for one of the broker's own in `folder`, on `nats_port`.

    ack_wait_s: after so long without a sign of life of this broker, another one gets what it had in flight.
    drain_timeout_s: for what is in flight at SIGTERM. link: on an edge node, and on its site.
    """

    host: str = "127.0.0.1"
    port: int = 8081
    nats_url: str = ""
    nats_port: int = 4222
    folder: Path = Path("torpor-events")
    syncs_always: bool = False
    stream: StreamSettings = field(default_factory=StreamSettings)
    ack_wait_s: float = 5.0
    drain_timeout_s: float = 30.0
    max_body_bytes: int = 16 << 20
    link: ToSite | ToNodes | None = None


class Broker:
    """Runs until a signal."""

    def __init__(self, settings: BrokerSettings, triggers: Sequence[Trigger]) -> None:
        """Raises ValueError."""
        if not isinstance(settings.link, ToSite):
            for trigger in triggers:
                if trigger.from_site:
                    raise ValueError(f"trigger {trigger.name!r}: from_site = true, must be false without --site")
        self._settings = settings
        self._triggers = triggers
        self._counts: Counter[tuple[str, str]] = Counter()
        self._jetstream: JetStream = None  # type: ignore[assignment]

    async def run(self) -> int:
        """Serve; the exit status. Raises Unavailable if there is no NATS server, OSError for the port."""
        settings = self._settings
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        server = (
            None
            if settings.nats_url
            else NatsServer(settings.folder, settings.nats_port, settings.syncs_always, settings.link)
        )
        caller = HttpCaller()
        try:
            if server is not None:
                await server.start()
            url = settings.nats_url or (server.url if server else "")
            self._jetstream = await JetStream.connect(url)
            await self._serve(caller, url, stop)
        finally:
            await caller.close()
            if self._jetstream is not None:
                await self._jetstream.close()
            if server is not None:
                await server.close()
        logger.info("stopped")
        return 0

    async def _serve(self, caller: HttpCaller, url: str, stop: asyncio.Event) -> None:
        settings, jetstream = self._settings, self._jetstream
        ends, links = await self._add_streams(), Tasks()
        for name in sorted({DEAD_LETTERS, *(trigger.dead_letter_stream for trigger in self._triggers)}):
            # On a node all that grows has its bound; a dead letter that finds no room waits for it in the stream.
            most = settings.stream.max_bytes if isinstance(settings.link, ToSite) else -1
            await jetstream.add_stream(replace(settings.stream, name=name, max_age_s=_LETTERS_AGE_S, max_bytes=most))
        dispatches = [
            Dispatch(trigger, jetstream, caller, self, settings.ack_wait_s, self._counts) for trigger in self._triggers
        ]
        for dispatch in dispatches:
            await dispatch.start(COMMANDS if dispatch.trigger.from_site else settings.stream.name)
        ingress = Ingress(self._take, lambda: jetstream.is_connected, self._metrics)
        http = HttpServer(ingress, Port(settings.host, settings.port, None), settings.max_body_bytes, 256 << 20)
        address = await http.start()
        names = ", ".join(trigger.name for trigger in self._triggers) or "none"
        logger.info("ready: broker on %s, nats %s, triggers: %s", address, url, names)
        for end in ends:
            links.start(end.run(), end.name)
        await stop.wait()
        logger.info("draining: taking no more, at most %g s for what is in flight", settings.drain_timeout_s)
        await http.drain()
        await asyncio.gather(
            http.shutdown(settings.drain_timeout_s),
            *(dispatch.stop(settings.drain_timeout_s) for dispatch in dispatches),
        )
        await links.cancel()

    async def _add_streams(self) -> list[Giver | Taker]:
        """Those of events and commands, before anything is published; what goes over the link."""
        jetstream, link, stream = self._jetstream, self._settings.link, self._settings.stream
        commands = replace(stream, name=COMMANDS, max_age_s=_LETTERS_AGE_S)
        if isinstance(link, ToSite):
            await jetstream.add_stream(replace(stream, keeps_taken=False))
            await jetstream.add_stream(commands)
            to_site = consumer_for(SITE)
            events = await jetstream.backlog(stream.name, to_site, link.types)
            await jetstream.drop_consumers(stream.name, {to_site, *(f"trigger-{one.name}" for one in self._triggers)})
            return [
                Giver(jetstream.client, events, events_subject(link.node)),
                Taker(jetstream, COMMANDS, SITE, commands_subject(link.node)),
            ]
        await jetstream.add_stream(stream)
        if not isinstance(link, ToNodes):
            return []
        await jetstream.add_stream(commands)
        ends: list[Giver | Taker] = []
        for node in link.nodes:
            backlog = await jetstream.backlog(COMMANDS, consumer_for(node))
            ends.append(Giver(jetstream.client, backlog, commands_subject(node)))
            ends.append(Taker(jetstream, stream.name, node, events_subject(node)))
        await jetstream.drop_consumers(COMMANDS, [consumer_for(node) for node in link.nodes])
        return ends

    async def _take(self, head: Head, events: Sequence[Event]) -> None:
        replay = head.headers.get(REPLAY, b"").decode("latin-1")
        await asyncio.gather(*(self.publish(event, replay) for event in events))

    async def publish(self, event: Event, replay: str = "") -> None:
        """Return when the event is stored. Raises Unavailable, PayloadTooLarge.

        replay: which replay it belongs to, "" for none.
        """
        arrived = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        marked = Event({TTL: str(FIRST_TTL), "knativearrivaltime": arrived, **event.attributes}, event.data)
        key = key_of(event, replay) if replay else key_of(event)
        link = self._settings.link
        is_command = isinstance(link, ToNodes) and event.type in link.types
        stream = COMMANDS if is_command else self._settings.stream.name
        was_there = await self._jetstream.publish(stream, marked, key)
        self._counts["", "repeated" if was_there else "stored"] += 1

    async def _metrics(self) -> str:
        """The counts in Prometheus' text format."""
        lines = ["# TYPE torpor_broker_events_total counter"]
        for (trigger, what), count in sorted(self._counts.items()):
            lines.append(f'torpor_broker_events_total{{trigger="{trigger}",outcome="{what}"}} {count}')
        if isinstance(self._settings.link, ToSite):
            with contextlib.suppress(Unavailable):
                waiting = await self._jetstream.waiting(self._settings.stream.name, consumer_for(SITE))
                lines += ["# TYPE torpor_broker_waiting_for_site gauge", f"torpor_broker_waiting_for_site {waiting}"]
        return "\n".join(lines) + "\n"
