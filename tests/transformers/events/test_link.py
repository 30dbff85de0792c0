"""An edge node's broker and its site's over real NATS servers, with a cable between them that is pulled out and plugged in."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cable import Authority, Cable
from free_ports import free_port
from nats.errors import NoRespondersError
from torpor.transformers.events import Event, json_format
from torpor.transformers.events.jetstream import JetStream
from torpor.transformers.events.link import COMMANDS

TORPOR = Path(sys.executable).with_name("torpor")
EVENTS = "torpor-events"
MODELS = Path(__file__).parents[1] / "models"
LIMIT_S = 90


def event(number: int | str, **more: str) -> Event:
    attributes = {"specversion": "1.0", "id": str(number), "source": "/sensor", "type": "reading"}
    return Event({**attributes, "datacontenttype": "application/json", **more}, b'{"instances": [[1, 2]]}')


def trigger(name: str, subscriber: str, **more: object) -> str:
    lines = ["[[trigger]]", f'name = "{name}"', f'subscriber = "{subscriber}"']
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in more.items())]) + "\n"


def in_stream(broker: Any, count: int, stream: str = EVENTS, kind: str = "", before: Sequence[str] = ()) -> list[Event]:
    """Its first events of a type, "" for all, in their order; waits for them. before: of the command, what it runs in."""
    command = [*before, TORPOR, "events", "tail", "--nats", broker.nats_url, "--stream", stream, "--sequence", "1"]
    command += ["--type", kind] if kind else []
    done = subprocess.run([*command, "--count", str(count)], capture_output=True, timeout=LIMIT_S, check=True)
    return [json_format.decode(line) for line in done.stdout.splitlines()]


def ids(events: list[Event]) -> list[str]:
    return [one.id for one in events]


def ask(broker: Any, work: Callable[[Any], Any]) -> Any:
    """What a client of the broker's NATS server is told."""

    async def run() -> Any:
        jetstream = await JetStream.connect(broker.nats_url)
        try:
            return await work(jetstream.client)
        finally:
            await jetstream.close()

    return asyncio.run(run())


def stored(broker: Any, stream: str = EVENTS) -> int:
    """How many events are in the stream."""

    async def count(client: Any) -> int:
        return (await client.jetstream().stream_info(stream)).state.messages

    return int(ask(broker, count))


def waiting(node: Any) -> int:
    """How many events the site does not have."""
    return int(node.metrics().rpartition("torpor_broker_waiting_for_site ")[2])


class Place:
    """A site and its nodes in a folder, each node by a cable of its own. They come back as they were when started again.

    host: of the site, which runs in the command `before`; elsewhere than on this machine's loopback there are no cables.
    """

    def __init__(
        self, folder: Path, start_broker: Callable[..., Any], nodes: tuple[str, ...], host: str, before: Sequence[str]
    ) -> None:
        self.folder = folder
        self._start = start_broker
        self._host, self._before = host, before
        authority = Authority(folder / "certificates")
        self.certificates = {name: authority.certificate(name) for name in nodes}
        self.certificates["site"] = authority.certificate("site", host)
        self.link_port = free_port()
        self._ports = {name: (free_port(), free_port()) for name in ("site", *nodes)}
        self.cables = {name: Cable(self.link_port) for name in nodes} if host == "127.0.0.1" else {}
        (folder / "nodes").write_text("# the site's nodes\n" + "".join(f"{name}\n" for name in nodes))

    def site(self, *options: str, triggers: str = "") -> Any:
        end = ("--nodes", str(self.folder / "nodes"), "--listen-nodes", f"{self._host}:{self.link_port}")
        return self._broker("site", triggers, *end, *options, before=self._before)

    def node(self, name: str = "node-1", *options: str, triggers: str = "") -> Any:
        port = self.cables[name].port if self.cables else self.link_port
        end = ("--site", f"{self._host}:{port}", "--node", name)
        return self._broker(name, triggers, *end, *options)

    def _broker(self, name: str, triggers: str, *options: str, before: Sequence[str] = ()) -> Any:
        port, nats_port = self._ports[name]
        folder = ("--folder", str(self.folder / name), "--nats-port", str(nats_port))
        certificate = ("--certificate", str(self.certificates[name]))
        return self._start(triggers, *folder, *certificate, *options, port=port, before=before)

    def log(self, name: str) -> str:
        return (self.folder / name / "nats-server.log").read_text()


@pytest.fixture
def place(tmp_path: Path, start_broker: Any) -> Iterator[Callable[..., Place]]:
    """A site with so many nodes: node-1, …"""
    made: list[Place] = []

    def make(count: int = 1, host: str = "127.0.0.1", before: Sequence[str] = ()) -> Place:
        nodes = tuple(f"node-{n + 1}" for n in range(count))
        made.append(Place(tmp_path / "place", start_broker, nodes, host, before))
        return made[-1]

    (tmp_path / "place").mkdir()
    yield make
    for one in made:
        for cable in one.cables.values():
            cable.close()


def test_what_is_sent_while_the_link_is_lost_arrives_in_order(place: Any, polling: Any) -> None:
    """Before the node has ever seen its site, while it does, and after it has lost it; then the node has nothing to keep."""
    here = place()
    cable = here.cables["node-1"]
    cable.pull()
    node = here.node()
    for number in range(20):
        assert node.send(event(number)).status == 202
    assert waiting(node) == 20
    site = here.site()
    cable.plug()
    assert ids(in_stream(site, 20)) == [str(n) for n in range(20)]
    cable.pull()
    for number in range(20, 40):
        assert node.send(event(number)).status == 202
    cable.plug()
    assert ids(in_stream(site, 40)) == [str(n) for n in range(40)]
    polling(lambda: waiting(node) == 0 and stored(node) == 0)


def test_a_node_that_is_killed_while_the_link_is_lost_loses_nothing(place: Any) -> None:
    """Broker and NATS server die together; what got its 202 is there when they are back, and is told from its repeats."""
    here = place()
    site, node = here.site(), here.node()
    assert node.send(event("first")).status == 202
    in_stream(site, 1)
    here.cables["node-1"].pull()
    for number in range(3):
        assert node.send(event(f"{number}a")).status == 202
        node.end(signal.SIGKILL)
        node = here.node()
        assert [node.send(event(f"{number}{which}")).status for which in "ab"] == [202, 202]
    here.cables["node-1"].plug()
    assert ids(in_stream(site, 7)) == ["first", "0a", "0b", "1a", "1b", "2a", "2b"]


def test_a_site_that_is_killed_goes_on_where_it_was(place: Any, polling: Any) -> None:
    """Nothing is lost, nothing is there twice, and the order stays."""
    here = place()
    site, node = here.site(), here.node()
    for number in range(10):
        assert node.send(event(number)).status == 202
    in_stream(site, 10)
    site.end(signal.SIGKILL)
    for number in range(10, 20):
        assert node.send(event(number)).status == 202
    site = here.site()
    assert ids(in_stream(site, 20)) == [str(n) for n in range(20)]
    polling(lambda: waiting(node) == 0)
    assert stored(site) == 20


def test_an_event_that_reached_two_nodes_is_at_the_site_once(place: Any, polling: Any) -> None:
    """The site tells it by source, id and type, whoever sent it on."""
    here = place(2)
    site, nodes = here.site(), [here.node("node-1"), here.node("node-2")]
    for node in nodes:
        assert node.send(event("shared")).status == 202
        assert node.send(event(node.port)).status == 202
    assert sorted(ids(in_stream(site, 3))) == sorted(["shared", *(str(node.port) for node in nodes)])
    polling(lambda: all(waiting(node) == 0 for node in nodes))
    assert stored(site) == 3


def test_models_answer_without_the_link_and_repeat_themselves(place: Any, start: Any, send: Any, polling: Any) -> None:
    """A repeat gets the bytes that were stored at first, and those are what comes to the site."""
    here = place()
    here.cables["node-1"].pull()
    node = here.node()
    model = start(MODELS / "counts", "--event-store", node.nats_url)
    node.end()
    node = here.node(triggers=trigger("ask", f"http://{model.address}/", filter='{type = "reading"}'))
    asked = event("asked")
    assert node.send(asked).status == 202
    polling(lambda: node.counts().get(("ask", "delivered")) == 1, node.counts)
    again = send(model.port, asked)
    site = here.site()
    here.cables["node-1"].plug()
    sent, answer = in_stream(site, 2)
    assert (sent.id, answer.attributes["correlationid"]) == ("asked", "asked")
    assert (answer.id, answer.data) == (again.headers["ce-id"], again.content)


def test_commands_reach_every_node_also_one_that_was_away(place: Any, subscribe: Any, polling: Any) -> None:
    """They are in the node's own domain: it has them without the link too. They do not come back up."""
    here = place(2)
    listeners = [subscribe(), subscribe()]
    here.cables["node-2"].pull()
    site = here.site("--to-nodes", "policy")
    nodes = [
        here.node(f"node-{n + 1}", triggers=trigger("obey", listener.url, from_site="true"))
        for n, listener in enumerate(listeners)
    ]
    for number in range(3):
        assert site.send(event(number, type="policy")).status == 202
    assert sorted(ids(listeners[0].wait_for(3))) == ["0", "1", "2"]
    assert listeners[1].events == []
    here.cables["node-2"].plug()
    assert sorted(ids(listeners[1].wait_for(3))) == ["0", "1", "2"]
    here.cables["node-2"].pull()
    nodes[1].end(signal.SIGKILL)
    again = here.node("node-2")
    assert ids(in_stream(again, 3, COMMANDS)) == ["0", "1", "2"]
    assert nodes[0].send(event("reading")).status == 202
    assert ids(in_stream(site, 1)) == ["reading"]


def test_a_node_that_is_full_refuses_and_loses_nothing(place: Any, polling: Any) -> None:
    """503 with Retry-After, from a bound on; when the site has taken what there was, there is room again."""
    here = place()
    here.cables["node-1"].pull()
    node = here.node("node-1", "--max-bytes", "20000")
    taken = []
    while (response := node.send(event(len(taken)))).status == 202:
        taken.append(str(len(taken)))
    assert (response.status, response.headers["Retry-After"]) == (503, "1")
    assert len(taken) > 10
    site = here.site()
    here.cables["node-1"].plug()
    assert ids(in_stream(site, len(taken))) == taken
    polling(lambda: node.send(event("later")).status == 202)
    assert ids(in_stream(site, len(taken) + 1))[-1] == "later"


def test_only_the_types_that_are_named_go_to_the_site(place: Any, polling: Any) -> None:
    """The others are the node's own, and leave its stream when its triggers are done with them."""
    here = place()
    site, node = here.site(), here.node("node-1", "--to-site", "alarm", "--to-site", "count")
    for kind in ("reading", "alarm", "reading", "count"):
        assert node.send(event(kind, type=kind)).status == 202
    assert ids(in_stream(site, 2)) == ["alarm", "count"]
    polling(lambda: stored(node) == 0)


def test_the_site_finds_a_nodes_events_by_their_type(place: Any, subscribe: Any) -> None:
    """As its own: its triggers, and those who read the stream."""
    here = place()
    listener = subscribe()
    site = here.site(triggers=trigger("alarms", listener.url, filter='{type = "alarm"}'))
    node = here.node()
    for number, kind in enumerate(("reading", "alarm", "reading")):
        assert node.send(event(f"node {number}", type=kind)).status == 202
    in_stream(site, 3)
    assert site.send(event("site", type="alarm")).status == 202
    assert sorted(ids(listener.wait_for(2))) == ["node 1", "site"]
    assert ids(in_stream(site, 2, kind="alarm")) == ["node 1", "site"]


def test_what_a_node_keeps_is_bounded_by_bytes_and_not_by_age(place: Any) -> None:
    """Dead letters too; and each event is on the disk, for the power may go as well, at the site as at the node."""
    here = place()
    site, node = here.site(), here.node()

    async def bounds(client: Any) -> list[tuple[float | None, int]]:
        found = [(await client.jetstream().stream_info(name)).config for name in (EVENTS, "torpor-dead-letters")]
        return [(config.max_age, config.max_bytes) for config in found]

    assert ask(node, bounds) == [(0, 1 << 30), (30 * 86_400, 1 << 30)]
    assert ask(site, bounds) == [(86_400, -1), (30 * 86_400, -1)]
    for name in ("site", "node-1"):
        assert 'sync_interval: "always"' in (here.folder / name / "nats-server.conf").read_text()


def test_a_trigger_that_is_gone_keeps_nothing(place: Any, subscribe: Any, polling: Any) -> None:
    """Otherwise a node's stream would fill with what nobody fetches."""
    here = place()
    site, node = here.site(), here.node(triggers=trigger("gone", "http://127.0.0.1:9/", retry=1000))
    assert node.send(event(1)).status == 202
    in_stream(site, 1)
    node.end()
    node = here.node()
    polling(lambda: stored(node) == 0)


def test_a_node_sees_nothing_of_the_site_but_commands(place: Any) -> None:
    """Its certificate says who it is: other nodes' events are not for it, on their way or in a stream."""
    here = place(2)
    site, nodes = here.site(), [here.node("node-1"), here.node("node-2")]
    for node in nodes:
        assert node.send(event(node.port)).status == 202
    in_stream(site, 2)

    async def heard(client: Any) -> list[str]:
        """While the other node sends."""
        found = []

        async def note(message: Any) -> None:
            found.append(message.subject)

        for subject in ("torpor-link.node-2.>", f"{EVENTS}.>"):
            await client.subscribe(subject, cb=note)
        await client.flush()
        assert nodes[1].send(event("secret")).status == 202
        await asyncio.to_thread(in_stream, site, 3)
        await client.flush()
        for domain in ("site", "node-2"):
            try:
                await client.request(f"$JS.{domain}.API.STREAM.INFO.{EVENTS}", b"", timeout=10)
            except NoRespondersError:
                found.append("nobody")
        return found

    assert ask(nodes[0], heard) == ["nobody", "nobody"]


def test_who_has_no_certificate_of_a_node_of_the_site_is_refused(place: Any, polling: Any, tmp_path: Path) -> None:
    """One that the site's authority did not make, and one for a name that is not among the nodes."""
    here = place(2)
    (here.folder / "nodes").write_text("node-2\n")
    site, node = here.site(), here.node("node-1")
    assert node.send(event(1)).status == 202
    polling(lambda: "authentication error" in here.log("site"))
    node.end()
    shutil.rmtree(here.certificates["node-1"])
    here.certificates["node-1"] = Authority(tmp_path / "others").certificate("node-2")
    node = here.node("node-1")
    polling(lambda: "TLS leafnode handshake error" in here.log("node-1"))
    assert stored(site) == 0
    assert waiting(node) == 1


@pytest.fixture
def lossy() -> Iterator[tuple[str, list[str]]]:
    """A network of its own behind a link that drops every second packet that goes there: an address in it, and what runs there.

    By netem where the kernel has it, by the packet filter otherwise.
    """
    space, near, far, host = f"torpor-{os.getpid()}", f"tp{os.getpid()}a", f"tp{os.getpid()}b", "198.18.77.2"
    inside = ["ip", "netns", "exec", space]

    def done(*command: str) -> bool:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    if shutil.which("ip") is None or not done("ip", "netns", "add", space):
        pytest.skip("no network namespace can be made here: it takes iproute2 and root's rights")
    try:
        assert done("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", space)
        assert done("ip", "addr", "add", "198.18.77.1/30", "dev", near)
        assert done("ip", "link", "set", near, "up")
        assert done(*inside, "ip", "addr", "add", f"{host}/30", "dev", far)
        assert done(*inside, "ip", "link", "set", far, "up")
        assert done(*inside, "ip", "link", "set", "lo", "up")
        # From good to bad and back with each packet.
        lose = ["root", "netem", "loss", "gemodel", "100%", "100%", "100%", "0%"]
        drop = ("-m", "statistic", "--mode", "nth", "--every", "2", "--packet", "0", "-j", "DROP")
        by_netem = done("tc", "qdisc", "add", "dev", near, *lose)
        by_filter = by_netem or done(*inside, "iptables", "-A", "INPUT", "-i", far, *drop)
        if not by_filter:
            pytest.skip("nothing here can drop packets: it takes netem in the kernel, or iptables with `statistic`")
        yield host, inside
    finally:
        done("ip", "netns", "del", space)


def test_a_link_that_drops_every_second_packet_loses_no_event(place: Any, lossy: Any, subscribe: Any) -> None:
    """Readings to the site come in their order, a command from there arrives."""
    host, inside = lossy
    here = place(1, host, inside)
    listener = subscribe()
    site = here.site("--to-nodes", "policy")
    node = here.node(triggers=trigger("obey", listener.url, from_site="true"))
    command = [*inside, TORPOR, "events", "send", f"http://127.0.0.1:{site.port}/", "--type", "policy", "--id", "obey"]
    subprocess.run(command, check=True, timeout=LIMIT_S)
    for number in range(100):
        assert node.send(event(number)).status == 202
    assert ids(in_stream(site, 100, before=inside)) == [str(n) for n in range(100)]
    assert ids(listener.wait_for(1)) == ["obey"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--node", "n"), "--node is given without --site"),
        (("--to-site", "t"), "--to-site is given without --site"),
        (("--listen-nodes", "h:1"), "--listen-nodes is given without --nodes"),
        (("--to-nodes", "t"), "--to-nodes is given without --nodes"),
        (("--certificate", "here"), "--certificate is given without --site or --nodes"),
        (("--site", "h:1", "--node", "n"), "--certificate is not given"),
        (("--site", "h:1", "--node", "n", "--certificate", "nowhere"), "certificate nowhere has no tls.crt"),
        (("--site", "h:1", "--certificate", "here"), "node = '', must be 1 to 64 letters"),
        (("--site", "h:1", "--node", "site", "--certificate", "here"), "node = 'site', must be"),
        (("--site", "h:1", "--node", "local", "--certificate", "here"), "node = 'local', must be"),
        (("--site", "h", "--node", "n", "--certificate", "here"), "site = 'h', must be HOST:PORT"),
        (("--site", ":1", "--node", "n", "--certificate", "here"), "site = ':1', must be HOST:PORT"),
        (("--site", "a b:1", "--node", "n", "--certificate", "here"), "site = 'a b:1', must be HOST:PORT"),
        (("--site", "h:x", "--node", "n", "--certificate", "here"), "site = 'h:x', must be HOST:PORT"),
        (("--site", "h:99999", "--node", "n", "--certificate", "here"), "site = 'h:99999', must be HOST:PORT"),
        (("--site", "h:1", "--node", "n", "--certificate", "here", "--nats", "nats://h"), "--nats is given with"),
        (("--nodes", "missing", "--certificate", "here"), "nodes: "),
        (("--nodes", "bad", "--certificate", "here"), "node = 'a b', must be"),
        (("--nodes", "good", "--listen-nodes", "x", "--certificate", "here"), "listen_nodes = 'x', must be HOST:PORT"),
        (("--triggers", "triggers"), "trigger 'obey': from_site = true, must be false without --site"),
    ],
)
def test_wrong_arguments_are_named(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """With status 2, before anything is started."""
    Authority(tmp_path / "made").certificate("here").rename(tmp_path / "here")
    (tmp_path / "good").write_text("n\n")
    (tmp_path / "bad").write_text("a b\n")
    (tmp_path / "triggers").write_text(trigger("obey", "http://127.0.0.1:9/", from_site="true"))
    command = [TORPOR, "events", "broker", "--nats-port", "0", "--port", "0", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2, done
    assert said in done.stderr
    assert not (tmp_path / "torpor-events").exists()
