"""`torpor events`: send events, watch them, send them again, and a broker on one machine.

Nothing of events is imported before one of the commands runs.
"""

import argparse
import asyncio
import contextlib
import logging
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client.message import Reply
    from .events import Event
    from .events.link import ToNodes, ToSite

_NATS = "nats://127.0.0.1:4222"
_STREAM = "torpor-events"
_DEAD_LETTERS = "torpor-dead-letters"
_REPLAY_CONCURRENCY = 16
_LISTEN_NODES = "0.0.0.0:7422"
_NODE_BYTES = 1 << 30
"""Of an edge node's stream: what it keeps while the link is lost."""

_EXAMPLE = """\
example: a broker with a trigger for a model, an event, and its answer

  torpor events broker --triggers triggers.toml &
  torpor events tail --type io.kserve.inference.response &
  torpor events send http://127.0.0.1:8081/ --type ask --source /me --data '{"instances": [[1, 2]]}'
"""


class CommandError(Exception):
    """What ends a command with status 2: its text is for whoever typed it."""


def add_command(commands: Any) -> None:
    """Add `events` to the sub-commands of `torpor`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "events",
        help="send, watch and replay CloudEvents; a broker on one machine",
        description="CloudEvents over HTTP. Exit statuses: 0 all went well; 1 an event was refused or a server is gone; 2 an "
        "argument is wrong.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_broker(parts)
    _add_send(parts)
    _add_tail(parts)
    _add_replay(parts)


def _add_broker(parts: Any) -> None:
    parser = parts.add_parser(
        "broker",
        help="run a broker on this machine, in place of Knative's",
        description="Takes events by POST / and keeps them in a NATS JetStream stream; triggers deliver them. Answers 202 when "
        "an event is on disk, 503 with Retry-After when it cannot be.",
    )  # fmt: skip
    parser.add_argument("--triggers", type=Path, metavar="FILE", help="the triggers' TOML file (docs/events.md)")
    parser.add_argument("--host", default="127.0.0.1", help="address of the ingress (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8081, help="port of the ingress (default 8081; 0 for a free one)")
    parser.add_argument(
        "--nats", default="", metavar="URL", help="a NATS server with JetStream; without it, one is started"
    )
    parser.add_argument(
        "--nats-port",
        type=int,
        default=4222,
        help="port of the server that is started (default 4222; 0 for a free one)",
    )
    parser.add_argument("--folder", type=Path, default=Path("torpor-events"),
                        help="data of the server that is started (default torpor-events)")  # fmt: skip
    parser.add_argument(
        "--sync", choices=("default", "always"), default="default",
        help="always: sync each event to disk before its 202, for machines that lose power; default: every two minutes, and "
        "always with --site and --nodes",
    )  # fmt: skip
    parser.add_argument("--stream", default=_STREAM, help=f"the stream's name (default {_STREAM})")
    parser.add_argument("--duplicate-window-s", type=_positive, default=120.0, metavar="SECONDS",
                        help="for so long an event that comes again is dropped (default 120)")  # fmt: skip
    parser.add_argument("--max-age-s", type=_positive, metavar="SECONDS",
                        help="events are kept for so long (default 86400; with --site until they are taken)")  # fmt: skip
    parser.add_argument("--max-bytes", type=int, metavar="BYTES",
                        help="of the stream on disk; when it is full events are refused (default no bound; with --site 1 GiB)",
                        )  # fmt: skip
    parser.add_argument("--ack-wait-s", type=_positive, default=5.0, metavar="SECONDS",
                        help="what a killed broker had in flight is delivered again after so long (default 5)")  # fmt: skip
    parser.add_argument("--drain-timeout-s", type=_positive, default=30.0, metavar="SECONDS",
                        help="at SIGTERM, for what is in flight (default 30)")  # fmt: skip
    link = parser.add_argument_group("between an edge node and its site (docs/edge.md)")
    end = link.add_mutually_exclusive_group()
    end.add_argument("--site", metavar="HOST:PORT", help="this is an edge node: its events go to the broker there")
    end.add_argument(
        "--nodes", type=Path, metavar="FILE", help="this is the site: take the events of these nodes, one a line"
    )
    link.add_argument("--certificate", type=Path, metavar="FOLDER", help="of this end: tls.crt, tls.key and ca.crt")
    link.add_argument("--node", metavar="NAME", help="with --site: of this node, and of its certificate")
    link.add_argument("--to-site", action="append", metavar="TYPE",
                      help="with --site: send events of this type only; may be repeated")  # fmt: skip
    link.add_argument("--listen-nodes", metavar="HOST:PORT", help=f"with --nodes (default {_LISTEN_NODES})")
    link.add_argument("--to-nodes", action="append", metavar="TYPE",
                      help="with --nodes: an event of this type is a command to every node; may be repeated")  # fmt: skip
    parser.set_defaults(run=_run_broker)


def _add_send(parts: Any) -> None:
    parser = parts.add_parser(
        "send",
        help="send an event, and print the event that answers it",
        description="Sends an event to a broker, a model's server or another receiver over HTTP. Prints the answer as JSON.",
    )
    parser.add_argument("url", metavar="URL")
    parser.add_argument("--type", default="torpor.event", help="(default torpor.event)")
    parser.add_argument("--source", default="/torpor/events/send", help="(default /torpor/events/send)")
    parser.add_argument("--id", help="(default a random one); with --count, -1, -2, … are added")
    parser.add_argument(
        "--extension", action="append", default=[], metavar="NAME=TEXT", help="another attribute, such as subject"
    )
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--data", metavar="TEXT")
    data.add_argument("--data-file", type=Path, metavar="FILE", help="- for standard input")
    parser.add_argument("--content-type", default="application/json", help="of the data (default application/json)")
    parser.add_argument(
        "--mode", choices=("binary", "structured", "batched"), default="binary", help="(default binary)"
    )
    parser.add_argument("--count", type=_whole, default=1, metavar="N", help="so many events (default 1)")
    parser.add_argument("--concurrency", type=_whole, default=16, metavar="N", help="requests at a time (default 16)")
    parser.add_argument(
        "--timeout-s", type=_positive, default=60.0, metavar="SECONDS", help="for an answer (default 60)"
    )
    parser.set_defaults(run=_run_send)


def _add_tail(parts: Any) -> None:
    parser = parts.add_parser(
        "tail",
        help="print events as they come, one JSON object a line",
        description="Follows the local broker's stream, or is itself a receiver over HTTP that answers 202.",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--nats", default=_NATS, metavar="URL", help=f"the broker's NATS server (default {_NATS})")
    where.add_argument(
        "--listen", type=int, metavar="PORT", help="take events by POST / on this port; 0 for a free one"
    )
    parser.add_argument("--host", default="127.0.0.1", help="of --listen (default 127.0.0.1)")
    parser.add_argument("--stream", default=_STREAM, help=f"(default {_STREAM})")
    parser.add_argument("--dead", action="store_const", const=_DEAD_LETTERS, dest="stream",
                        help=f"the dead letters: --stream {_DEAD_LETTERS}")  # fmt: skip
    parser.add_argument(
        "--since", default="", metavar="TIME", help="from a time on, as 2026-01-31T12:00:00Z; else new ones"
    )
    parser.add_argument("--sequence", type=_whole, default=0, metavar="N", help="from the N-th event of the stream on")
    parser.add_argument("--type", default="", help="events of this type only")
    parser.add_argument("--count", type=_whole, default=0, metavar="N", help="end after so many events")
    parser.set_defaults(run=_run_tail)


def _add_replay(parts: Any) -> None:
    parser = parts.add_parser(
        "replay",
        help="send dead letters, a part of the stream or a file of events again",
        description="Sends events again, with their ids. A broker of torpor's takes them although it has seen them; the notes "
        "of a dead letter (knativeerror…) are taken off.",
    )
    parser.add_argument("url", metavar="URL", help="where to: a broker, or any receiver")
    parser.add_argument("--nats", default=_NATS, metavar="URL", help=f"the broker's NATS server (default {_NATS})")
    parser.add_argument("--stream", default=_DEAD_LETTERS, help=f"(default {_DEAD_LETTERS})")
    parser.add_argument("--since", default="", metavar="TIME", help="from a time on, as 2026-01-31T12:00:00Z")
    parser.add_argument("--sequence", type=_whole, default=0, metavar="N", help="from the N-th event of the stream on")
    parser.add_argument("--until-sequence", type=_whole, default=0, metavar="N", help="up to the N-th, with it")
    parser.add_argument(
        "--file", type=Path, metavar="FILE", help="a file as `tail` prints it, instead; - for standard input"
    )
    parser.add_argument("--type", default="", help="events of this type only")
    parser.add_argument("--delete", action="store_true", help="remove from the stream what was taken")
    parser.add_argument(
        "--timeout-s", type=_positive, default=60.0, metavar="SECONDS", help="for an answer (default 60)"
    )
    parser.set_defaults(run=_run_replay)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}, must be above 0")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}, must be 1 or more")
    return value


def _run(work: Coroutine[Any, Any, int], loop_factory: "Callable[[], asyncio.AbstractEventLoop] | None" = None) -> int:
    """Run a command; its exit status. loop_factory: None for asyncio's own loop."""
    from torpor.predictors.errors import InvalidInput, TorporError

    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(work)
    except (CommandError, ValueError, InvalidInput) as error:
        print(f"torpor events: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"torpor events: {error}: pip install 'torpor[events]'", file=sys.stderr)
        return 2
    except (TorporError, OSError) as error:
        print(f"torpor events: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run_broker(options: argparse.Namespace, began_s: float) -> int:
    from .events.broker import Broker, BrokerSettings
    from .events.jetstream import StreamSettings
    from .events.trigger import read_triggers

    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    async def run() -> int:
        triggers = read_triggers(options.triggers) if options.triggers else []
        link = _link(options)
        max_age_s, max_bytes = (0.0, _NODE_BYTES) if options.site else (86_400.0, -1)
        stream = StreamSettings(
            options.stream, options.duplicate_window_s, options.max_age_s or max_age_s, options.max_bytes or max_bytes
        )
        settings = BrokerSettings(
            options.host, options.port, options.nats, options.nats_port, options.folder,
            options.sync == "always" or link is not None, stream, options.ack_wait_s, options.drain_timeout_s, link=link,
        )  # fmt: skip
        return await Broker(settings, triggers).run()

    if sys.platform == "win32":
        return _run(run())
    import uvloop

    return _run(run(), uvloop.new_event_loop)


def _link(options: argparse.Namespace) -> "ToSite | ToNodes | None":
    """Raises CommandError, ValueError."""
    from .events.link import Certificate, ToNodes, ToSite, read_nodes

    needs = {"site": ("node", "to_site"), "nodes": ("listen_nodes", "to_nodes")}
    for end, others in needs.items():
        for other in others:
            if getattr(options, other) and not getattr(options, end):
                raise CommandError(f"--{other.replace('_', '-')} is given without --{end}")
    if not options.site and not options.nodes:
        if options.certificate:
            raise CommandError("--certificate is given without --site or --nodes")
        return None
    if options.nats:
        raise CommandError("--nats is given with --site or --nodes, which need a NATS server of the broker's own")
    if not options.certificate:
        raise CommandError("--certificate is not given, must be the folder of tls.crt, tls.key and ca.crt")
    certificate = Certificate(options.certificate)
    if options.site:
        return ToSite(options.node or "", options.site, certificate, options.to_site or ())
    return ToNodes(
        read_nodes(options.nodes), options.listen_nodes or _LISTEN_NODES, certificate, options.to_nodes or ()
    )


def _run_send(options: argparse.Namespace, began_s: float) -> int:
    return _run(_send(options))


async def _send(options: argparse.Namespace) -> int:
    from .events import Event, Mode, encode, encode_batch
    from .events.destination import Destination
    from .events.http_caller import HttpCaller

    attributes = {"specversion": "1.0", "type": options.type, "source": options.source}
    for extension in options.extension:
        name, equals, value = extension.partition("=")
        if not equals:
            raise CommandError(f"--extension = {extension!r}, must be NAME=TEXT")
        attributes[name] = value
    data = _data(options)
    if data is not None:
        attributes["datacontenttype"] = options.content_type
    destination, mode, caller = Destination.parse("URL", options.url), Mode(options.mode), HttpCaller()
    first = options.id or str(uuid.uuid4())
    ids = [first] if options.count == 1 else [f"{first}-{n}" for n in range(1, options.count + 1)]
    events = [Event({**attributes, "id": one}, data) for one in ids]
    messages = [encode_batch(events)] if mode is Mode.BATCHED else [encode(event, mode) for event in events]
    statuses: list[int] = []
    waiting = iter(messages)

    async def work() -> None:
        for headers, body in waiting:
            response = await _post(caller.post(destination, headers, body, options.timeout_s), options.url)
            statuses.append(response.status)
            _print_answer(response, prints_all=len(messages) == 1)
            _progress(len(statuses), len(messages))

    await asyncio.gather(*(work() for _ in range(min(options.concurrency, len(messages)))))
    await caller.close()
    failed = sum(not 200 <= status < 300 for status in statuses)
    if failed and len(messages) > 1:
        print(f"torpor events: {failed} of {len(messages)} were refused", file=sys.stderr)
    return 1 if failed else 0


def _data(options: argparse.Namespace) -> bytes | None:
    if options.data is not None:
        return str(options.data).encode()
    if options.data_file is None:
        return None
    if str(options.data_file) == "-":
        return sys.stdin.buffer.read()
    try:
        return bytes(options.data_file.read_bytes())
    except OSError as error:
        raise CommandError(f"--data-file: {error}") from error


async def _post(call: "Coroutine[Any, Any, Reply]", url: str) -> "Reply":
    """Raises OSError with a text for people."""
    try:
        return await call
    except TimeoutError:
        raise OSError(f"{url} did not answer in time") from None


def _print_answer(response: "Reply", prints_all: bool) -> None:
    from .events import decode, is_event
    from .events.json_format import encode_batch

    status, headers, body = response
    if 200 <= status < 300:
        if is_event(headers):
            events = decode(headers, body)
            for event in events if isinstance(events, list) else [events]:
                print(encode_batch([event])[1:-1].decode(), flush=True)
        elif prints_all:
            print(f"{status} {body[:1000].decode('utf-8', 'replace')}".rstrip(), file=sys.stderr)
        return
    again = headers.get(b"retry-after")
    hint = f" (again after {again.decode('latin-1')} s)" if again else ""
    print(f"torpor events: {status}{hint}: {body[:1000].decode('utf-8', 'replace')}", file=sys.stderr)


def _progress(done: int, total: int) -> None:
    if total > 1 and sys.stderr.isatty():
        print(f"\r{done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _print_event(event: "Event") -> None:
    from .events.json_format import encode

    print(encode(event).decode(), flush=True)


def _run_tail(options: argparse.Namespace, began_s: float) -> int:
    _check_time(options)
    return _run(_tail(options) if options.listen is None else _listen(options))


def _check_time(options: argparse.Namespace) -> None:
    import datetime

    if options.since and options.sequence:
        print("torpor events: --since and --sequence are given, must be one of them", file=sys.stderr)
        raise SystemExit(2)
    if options.since:
        try:
            when = datetime.datetime.fromisoformat(options.since)
        except ValueError:
            when = None
        if when is None or when.tzinfo is None:
            print(f"torpor events: --since = {options.since!r}, must be as 2026-01-31T12:00:00Z", file=sys.stderr)
            raise SystemExit(2)


async def _tail(options: argparse.Namespace) -> int:
    from .events.jetstream import JetStream

    jetstream = await JetStream.connect(options.nats)
    seen = 0
    try:
        stored = jetstream.read(options.stream, options.sequence, options.since, options.type, follows=True)
        async with contextlib.aclosing(stored):
            print(f"following {options.stream}", file=sys.stderr, flush=True)
            async for one in stored:
                _print_event(one.event)
                seen += 1
                if seen == options.count:
                    break
    finally:
        await jetstream.close()
    return 0


async def _listen(options: argparse.Namespace) -> int:
    """Be a receiver."""
    from torpor.predictors.serving.server import HttpServer, Port

    from .events.ingress import Ingress

    end = asyncio.Event()
    seen = 0

    async def no_metrics() -> str:
        return ""

    async def take(head: object, events: Any) -> None:
        nonlocal seen
        for event in events:
            if not options.type or event.type == options.type:
                _print_event(event)
                seen += 1
        if options.count and seen >= options.count:
            end.set()

    server = HttpServer(Ingress(take, lambda: True, no_metrics), Port(options.host, options.listen, None), 64 << 20, 0)
    print(f"listening on {await server.start()}", file=sys.stderr, flush=True)
    await end.wait()
    await server.shutdown(5.0)
    return 0


def _run_replay(options: argparse.Namespace, began_s: float) -> int:
    _check_time(options)
    return _run(_replay(options))


async def _replay(options: argparse.Namespace) -> int:
    from .events import Event, Mode, encode
    from .events.broker import REPLAY
    from .events.destination import Destination
    from .events.http_caller import HttpCaller
    from .events.jetstream import JetStream

    destination, caller = Destination.parse("URL", options.url), HttpCaller()
    run = uuid.uuid4().hex.encode()
    jetstream = None if options.file else await JetStream.connect(options.nats)
    taken = refused = 0
    room = asyncio.Semaphore(_REPLAY_CONCURRENCY)

    async def again(event: Event, sequence: int) -> None:
        nonlocal taken, refused
        kept = {name: value for name, value in event.attributes.items() if not name.startswith("knative")}
        headers, body = encode(Event(kept, event.data), Mode.BINARY)
        try:
            response = await _post(
                caller.post(destination, headers | {REPLAY: run}, body, options.timeout_s), options.url
            )
        finally:
            room.release()
        if not 200 <= response.status < 300:
            refused += 1
            _print_answer(response, prints_all=False)
            return
        taken += 1
        if options.delete and jetstream is not None:
            await jetstream.delete(options.stream, sequence)

    try:
        async with asyncio.TaskGroup() as group:
            async for event, sequence in _to_replay(options, jetstream):
                await room.acquire()
                group.create_task(again(event, sequence))
    except ExceptionGroup as errors:  # of the group; one is enough to tell
        raise errors.exceptions[0] from None
    finally:
        await caller.close()
        if jetstream is not None:
            await jetstream.close()
        print(f"{taken} sent again, {refused} refused", file=sys.stderr)
    return 1 if refused else 0


async def _to_replay(options: argparse.Namespace, jetstream: Any) -> "AsyncIterator[tuple[Event, int]]":
    """Events, and their numbers in the stream, 0 for those of a file."""
    from torpor.predictors.errors import InvalidInput

    from .events import json_format

    if jetstream is None:
        try:
            content = sys.stdin.buffer.read() if str(options.file) == "-" else options.file.read_bytes()
        except OSError as error:
            raise CommandError(f"--file: {error}") from error
        for number, line in enumerate(content.splitlines(), 1):
            if not line.strip():
                continue
            try:
                event = json_format.decode(line)
            except InvalidInput as error:
                raise CommandError(f"{options.file}:{number}: {error}") from None
            if not options.type or event.type == options.type:
                yield event, 0
        return
    async for one in jetstream.read(options.stream, options.sequence, options.since, options.type):
        if options.until_sequence and one.sequence > options.until_sequence:
            return
        yield one.event, one.sequence
