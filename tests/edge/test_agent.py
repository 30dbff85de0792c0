"""One node's agent: what it takes, what it goes back from, and what it says, whatever mirrors, disks and operators do."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from edge_bundles import DAY, NAME, NOW, Publisher, files
from failing_disk import Unsynced
from mirrors import Answer, Mirrors
from torpor.edge import download as download_module
from torpor.edge.agent import Agent, Identity, Stopped
from torpor.edge.contents import of_kind
from torpor.edge.disk import Disk
from torpor.edge.layout import Layout
from torpor.edge.node import Node
from torpor.edge.origin import Origin
from torpor.edge.refused import Refused
from torpor.edge.repository import begin_rollout, change_offers, change_rollout, publish, sign, withdraw
from torpor.edge.rollout import Member, Rollout
from torpor.predictors.errors import Unavailable

TARGET = f"{NAME}/any"


@dataclass
class Site:
    """A publisher, its mirrors, and one node; `wrong` is what versions answer on it."""

    publisher: Publisher
    mirrors: Mirrors
    root: Path
    wrong: dict[str, str] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    clock: datetime = NOW

    def agent(self, disk: Disk | None = None, **more: Any) -> Agent:
        identity = Identity(Member("n", {}), NAME, self.publisher.root)
        mirrors = [Origin(self.mirrors.url(name)) for name in ("a", "b")]
        return Agent(
            self.root, identity, mirrors, more.pop("bring_up", self.bring_up), lambda: self.clock, log=self.log.append,
            disk=disk or Unsynced(), **more,
        )  # fmt: skip

    def look(self, disk: Disk | None = None, **more: Any) -> str:
        """Of a new agent, as after a start."""
        agent = self.agent(disk, **more)
        with agent.alone():
            return agent.round()

    def bring_up(self, generation: Any) -> str:
        self.ran.append(generation.version)
        return self.wrong.get(generation.version, "")

    def publish(self, version: str) -> bytes:
        with Layout.at(self.publisher.bundle_only(version, float(version))) as layout:
            publish(self.publisher.repository, layout)
            return layout.index()

    def in_force(self, version: str, days: int = 90) -> None:
        sign(self.publisher.repository, self.publish(version), self.publisher.keys, NOW, days)

    def candidate(self, version: str, share: int = 10_000) -> None:
        keys = self.publisher.keys
        begin_rollout(self.publisher.repository, self.publish(version), Rollout(share), keys, NOW, 90)

    def state(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.root / "agent.json").read_text())
        return value

    @property
    def version(self) -> str:
        current = Node(self.root).current()
        return current.version if current else ""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    publisher = Publisher(tmp_path / "publisher")
    with Mirrors(publisher.repository).running() as mirrors:
        yield Site(publisher, mirrors, tmp_path / "node")


def test_a_bare_node_takes_what_is_in_force_and_then_only_what_is_new(site: Site) -> None:
    """An update moves the parts that the node has not; a look without news is one request."""
    site.in_force("1")
    assert site.look() == ""
    assert site.ran == ["1"]
    site.in_force("2")
    first = len([path for _, path, status in site.mirrors.asked if path.startswith("blobs/") and status == 200])
    site.mirrors.asked.clear()
    agent = site.agent()
    with agent.alone():
        assert agent.round() == ""
        parts = [path for _, path, status in site.mirrors.asked if path.startswith("blobs/") and status == 200]
        assert len(parts) <= first - 7, "seven of eight tensors are there already"
        site.mirrors.asked.clear()
        agent.round()
        assert [(path, status) for _, path, status in site.mirrors.asked] == [("timestamp.json", 200)]
        site.mirrors.asked.clear()
        agent.round()
        assert [(path, status) for _, path, status in site.mirrors.asked] == [("timestamp.json", 304)]
    assert site.ran == ["1", "2"]
    assert files(site.root)[f"manifest/{NAME}/service.yaml"] == b"text: 2\n"
    assert not (site.root / "download").exists()


def test_a_version_that_does_not_answer_is_taken_back_and_tried_once(site: Site) -> None:
    """Until it is told to try it again."""
    site.in_force("1")
    site.look()
    site.candidate("2")
    site.wrong["2"] = "it answered 500"
    site.look()
    assert site.version == "1"
    assert site.ran == ["1", "2", "1"]
    assert "failed 2 it answered 500; 1 is served again" in site.log
    site.look()
    assert site.ran == ["1", "2", "1"]
    del site.wrong["2"]
    keys = site.publisher.keys
    change_rollout(site.publisher.repository, TARGET, lambda rollout: rollout, keys, NOW, 90, again=True)
    site.look()
    assert site.version == "2"


def test_a_withdrawn_version_is_left_for_the_one_before(site: Site) -> None:
    """By newer metadata, and without a byte of a bundle."""
    site.in_force("1")
    site.look()
    site.candidate("2")
    site.look()
    assert site.version == "2"
    withdraw(site.publisher.repository, TARGET, site.publisher.keys, NOW, 90)
    site.mirrors.asked.clear()
    site.wrong["1"] = "it answers no more"
    site.look()
    assert site.version == "1"
    assert not [path for _, path, _ in site.mirrors.asked if path.startswith("blobs/")]
    assert any("it stays, since the version before was withdrawn" in line for line in site.log)


def test_roll_outs_that_are_withdrawn_leave_one_version_on_the_disk_at_most(site: Site) -> None:
    """However many they were; where its room is needed that one goes, too."""

    class Small(Unsynced):
        def free_bytes(self, path: Path) -> int:
            return 1 << 40 if Node(site.root).generations.numbers() == [1] else 1000

    site.in_force("1")
    site.look()
    for version in ("2", "3", "4"):
        site.candidate(version)
        site.look()
        assert site.version == version
        withdraw(site.publisher.repository, TARGET, site.publisher.keys, NOW, 90)
        site.look()
        assert site.version == "1"
        assert len(Node(site.root).generations.numbers()) == 2
        assert not (site.root / "download").exists()
        assert not (site.root / "staging").exists()
    site.candidate("5")
    assert "download has 1000 bytes free" in site.look(Small())
    assert site.look(Small()) == ""
    assert site.version == "5"


def test_a_version_before_that_is_damaged_comes_from_a_mirror(site: Site) -> None:
    site.in_force("1")
    site.look()
    site.candidate("2")
    site.look()
    (site.root / "generations" / "1" / "model" / "minilm" / "model.toml").write_text("")
    withdraw(site.publisher.repository, TARGET, site.publisher.keys, NOW, 90)
    assert site.look() == ""
    assert site.version == "1"
    assert files(site.root)["model/minilm/model.toml"] == b"[model]\n"


def test_where_nothing_was_before_what_fails_stays(site: Site) -> None:
    site.in_force("1")
    site.wrong["1"] = "it answered 500"
    site.look()
    assert site.version == "1"
    assert any("it stays: " in line for line in site.log)
    site.look()
    assert site.ran == ["1"]


def test_versions_are_taken_one_after_the_other(site: Site) -> None:
    for version in ("1", "2", "3"):
        site.in_force(version)
        site.look()
        assert site.version == version
    assert site.ran == ["1", "2", "3"]
    assert site.state()["reports"] == [], "nobody is to receive them"


class Told:
    """A receiver that answers with `status`; 0: is not there."""

    def __init__(self) -> None:
        self.status = 0
        self.came: list[bytes] = []

    def post(self, body: bytes, content_type: str) -> int:
        if not self.status:
            raise Unavailable("nobody is there")
        self.came.append(body)
        return self.status

    def close(self) -> None: ...


def test_a_report_is_kept_until_it_is_received_or_never_will_be(site: Site) -> None:
    """In order, and each the same again."""
    told = Told()
    site.in_force("1")
    site.look(receiver=told)
    assert "nobody is there" in site.log
    (kept,) = site.state()["reports"]
    told.status = 503
    site.look(receiver=told)
    assert site.state()["reports"][0] == kept
    assert told.came == [kept.encode()]
    told.status = 204
    site.look(receiver=told)
    assert site.state()["reports"] == []
    assert told.came[1] == kept.encode()
    site.in_force("2")
    told.status = 400
    site.look(receiver=told)
    assert site.state()["reports"] == []


def test_a_version_that_cannot_be_read_once_it_is_served_has_failed(site: Site) -> None:
    class Damaging(Unsynced):
        def point(self, link: Path, target: str) -> None:
            super().point(link, target)
            (link.parent / target / "seal.json").unlink()

    site.in_force("1")
    site.look()
    site.in_force("2")
    site.look(Damaging())
    assert "failed 2 it cannot be read; nothing is served" in site.log
    assert site.ran == ["1"]


def test_what_an_operator_does_by_hand_stays_until_something_else_is_named(site: Site) -> None:
    site.in_force("1")
    site.look()
    site.in_force("2")
    site.look()
    Node(site.root, Unsynced()).roll_back()
    site.look()
    assert site.version == "1"
    site.in_force("3")
    site.look()
    assert site.version == "3"


def test_an_agent_takes_a_node_over_that_was_installed_by_hand(site: Site) -> None:
    site.in_force("1")
    with Layout.at(site.publisher.sign(site.publisher.folder / f"{NAME}-1")) as layout:
        Node(site.root, Unsynced()).install(layout, NOW, site.publisher.root)
    site.in_force("2")
    assert site.look() == ""
    assert site.version == "2"


def test_a_trial_that_was_broken_off_goes_on_and_has_an_end(site: Site) -> None:
    """A version that takes the node down each time is given up."""

    def down(generation: Any) -> str:
        raise KeyboardInterrupt

    site.in_force("1")
    site.look()
    site.in_force("2")
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            site.look(bring_up=down)
        assert site.version == "2"
    site.look()
    assert site.version == "1"
    assert any("brought up 3 times without a verdict" in line for line in site.log)


def test_a_trial_that_was_stopped_in_order_does_not_count(site: Site) -> None:
    def stopped(generation: Any) -> str:
        raise Stopped

    site.in_force("1")
    site.look()
    site.in_force("2")
    for _ in range(5):
        with pytest.raises(Stopped):
            site.look(bring_up=stopped)
    site.look()
    assert site.version == "2"
    assert "trial" not in site.state()


def test_a_way_back_that_was_broken_off_goes_on(site: Site) -> None:
    """The verdict was there before it; the version is not tried again."""

    class Dead(Unsynced):
        def point(self, link: Path, target: str) -> None:
            super().point(link, target)
            if site.wrong and self_is_back(target):
                raise KeyboardInterrupt

    def self_is_back(target: str) -> bool:
        return target.endswith("/1")

    site.in_force("1")
    site.look()
    site.in_force("2")
    site.wrong["2"] = "it answered 500"
    with pytest.raises(KeyboardInterrupt):
        site.look(Dead())
    site.look()
    site.look()
    assert site.ran == ["1", "2", "1"]
    assert site.version == "1"


def break_off(site: Site) -> None:
    """A download, once."""
    site.mirrors.spoil = lambda answer: setattr(answer, "cut", 100) if answer.path.startswith("blobs/") else None
    assert "before its end" in site.look()
    site.mirrors.spoil = lambda answer: None


def test_two_agents_at_once_are_one(site: Site) -> None:
    site.in_force("1")
    with site.agent().alone(), pytest.raises(Refused, match="another agent runs") as refused:
        site.look()
    assert refused.value.reason == "busy"


def test_an_installation_by_hand_is_waited_for(site: Site) -> None:
    """And what has come until then stays."""
    site.in_force("1")
    site.look()
    site.in_force("2")
    break_off(site)
    node = Node(site.root, Unsynced())
    with node._alone():
        assert "another installation runs [busy]" in site.look()
    assert (site.root / "download").exists()
    assert not [line for line in site.log if line.startswith("refused")], "it is no mirror's fault"
    assert site.look() == ""
    assert site.version == "2"


def test_a_way_back_waits_for_an_installation_by_hand(site: Site) -> None:
    """The verdict stays."""
    site.in_force("1")
    site.look()
    site.in_force("2")
    with ExitStack() as by_hand:

        def bring_up(generation: Any) -> str:
            by_hand.enter_context(Node(site.root, Unsynced())._alone())
            return "it answered 500"

        assert "another installation runs [busy]" in site.look(bring_up=bring_up)
    site.look()
    assert site.version == "1"
    assert site.ran == ["1", "1"]


# Mirrors


def spoil_a(how: Callable[[Answer], None], until: list[int]) -> Callable[[Answer], None]:
    """The first mirror's answers; until: counts them."""

    def spoil(answer: Answer) -> None:
        if answer.whom == "a":
            until[0] += 1
            how(answer)

    return spoil


def flip(answer: Answer) -> None:
    if answer.body:
        answer.body = answer.body[:-1] + bytes([answer.body[-1] ^ 1])


@pytest.mark.parametrize(
    "how",
    [
        lambda answer: setattr(answer, "status", 500),
        lambda answer: setattr(answer, "status", 404),
        lambda answer: setattr(answer, "cut", len(answer.body) // 2),
        lambda answer: flip(answer) if answer.path.startswith("blobs/") else None,
        lambda answer: flip(answer) if answer.path.endswith("targets.json") else None,
        lambda answer: flip(answer) if answer.path == "timestamp.json" else None,
        lambda answer: setattr(answer, "body", answer.body * 3),
    ],
)
def test_where_one_mirror_fails_or_lies_the_next_one_is_asked(site: Site, how: Callable[[Answer], None]) -> None:
    site.in_force("1")
    site.look()
    site.in_force("2")
    counted = [0]
    site.mirrors.spoil = spoil_a(how, counted)
    site.look()
    assert counted[0] > 0
    assert site.version == "2"


def test_tampering_is_reported_once(site: Site) -> None:
    """By mirror, each of which is asked once for the same; and not at each look."""
    site.in_force("1")
    site.look()
    site.in_force("2")
    site.mirrors.spoil = lambda answer: flip(answer) if answer.path.startswith("blobs/") else None
    site.mirrors.asked.clear()
    agent = site.agent()
    with agent.alone():
        assert "other bytes than sha256:" in agent.round()
        assert sorted(whom for whom, path, _ in site.mirrors.asked if path.startswith("blobs/")) == ["a", "b"]
        agent.round()
    assert site.version == "1"
    assert len([line for line in site.log if line.startswith("refused")]) == 2


def test_a_mirror_that_gives_old_metadata_is_refused(site: Site) -> None:
    site.in_force("1")
    old = (site.publisher.repository / "timestamp.json").read_bytes()
    site.in_force("2")
    site.look()

    def spoil(answer: Answer) -> None:
        if answer.path == "timestamp.json":
            answer.status, answer.body = 200, old

    site.mirrors.spoil = spoil
    assert "[version]" in site.look()
    assert site.version == "2"


def test_a_download_that_breaks_off_goes_on(site: Site) -> None:
    """At the byte where it ended, at the next look and from any mirror; what a power cut has spoilt comes anew."""
    site.in_force("1")
    largest = max((site.publisher.repository / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)

    def spoil(answer: Answer) -> None:
        if answer.path.endswith(largest.name):
            answer.cut = 100

    site.mirrors.spoil = spoil
    assert "before its end" in site.look()
    partial = site.root / "download" / "partial" / largest.name
    assert partial.read_bytes() == largest.read_bytes()[:200]
    whole = {path.name for path in (site.root / "download/bundle/blobs/sha256").iterdir()}
    site.mirrors.spoil = lambda answer: None
    partial.write_bytes(bytes(200))
    site.mirrors.asked.clear()
    assert site.look() == ""
    assert [status for _, path, status in site.mirrors.asked if path.endswith(largest.name)] == [206, 200]
    assert not whole & {Path(path).name for _, path, _ in site.mirrors.asked}
    assert not [line for line in site.log if line.startswith("refused")]


def test_what_has_come_of_a_version_goes_when_it_is_withdrawn(site: Site) -> None:
    """Or it would lie there until the next one. While its roll-out is paused it stays, so that it goes on."""
    site.in_force("1")
    site.look()
    site.candidate("2")
    break_off(site)
    change_rollout(site.publisher.repository, TARGET, Rollout.paused, site.publisher.keys, NOW, 90)
    assert site.look() == ""
    assert (site.root / "download").exists()
    withdraw(site.publisher.repository, TARGET, site.publisher.keys, NOW, 90)
    assert site.look() == ""
    assert not (site.root / "download").exists()


def test_what_a_download_has_in_full_and_wrong_comes_anew(site: Site) -> None:
    """After a power cut, say: it is no mirror's fault."""
    site.in_force("1")
    site.look()
    site.in_force("2")
    partial = site.root / "download" / "partial"
    partial.mkdir(parents=True)
    for path in (site.publisher.repository / "blobs" / "sha256").iterdir():
        (partial / path.name).write_bytes(bytes(path.stat().st_size))
    assert site.look() == ""
    assert site.version == "2"
    assert not [line for line in site.log if "other bytes" in line]


def test_a_list_without_end_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any of it is fetched."""
    site.in_force("1")
    monkeypatch.setattr(download_module, "LARGEST_LIST_BYTES", 10)
    assert "must have at most 10 [malformed]" in site.look()
    assert site.version == ""


def test_a_part_that_is_damaged_on_the_node_comes_from_a_mirror(site: Site) -> None:
    site.in_force("1")
    site.look()
    weights = site.root / "current" / "model" / "minilm" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[1500] ^= 1
    weights.write_bytes(data)
    site.in_force("2")
    assert site.look() == ""
    assert site.version == "2"


# Time, disk, state


def test_expired_metadata_means_no_update_and_fresh_metadata_mends_it(site: Site) -> None:
    """The report says how far the clock is ahead of the mirror's."""
    site.in_force("1")
    site.look()
    site.in_force("2", days=10)
    site.clock = datetime.now(tz=NOW.tzinfo) + 4000 * DAY
    said = site.look()
    assert "[expired]" in said
    assert "h ahead of http://127.0.0.1" in said
    assert site.version == "1"
    site.clock = NOW + timedelta(days=11)
    assert "[expired]" in site.look()
    change_offers(site.publisher.repository, site.publisher.keys, site.clock, 10)
    assert site.look() == ""
    assert site.version == "2"


def test_expired_metadata_is_said_at_each_look_of_a_bare_node(site: Site) -> None:
    """Which keeps none of it, so that "not changed" must not be the answer."""
    site.in_force("1", days=10)
    site.clock = NOW + timedelta(days=11)
    agent = site.agent()
    with agent.alone():
        assert ["[expired]" in agent.round() for _ in range(4)] == [True] * 4


@pytest.mark.parametrize(
    ("says_so", "most", "said"),
    [(True, 2500, "download has 1000 bytes free"), (False, 2500, "the disk is full"), (False, 900, "No space left")],
)
def test_a_full_disk_gets_its_room_back_and_is_tried_again(site: Site, says_so: bool, most: int, said: str) -> None:
    """Before anything is fetched, while it is installed, while it is fetched."""
    from simulated_fleet import full_disk

    site.in_force("1")
    site.look()
    site.in_force("2")
    current = Node(site.root).current()
    assert current is not None
    had = {part.digest for file in of_kind(current.files, "model") for part in file.parts}
    site.mirrors.asked.clear()
    agent = site.agent(full_disk(Unsynced, says_so, most))
    with agent.alone():
        assert said in agent.round()
        assert not had & {f"sha256:{Path(path).name}" for _, path, _ in site.mirrors.asked}
        agent.round()
    assert len([line for line in site.log if line.startswith("waiting")]) == 1
    assert not (site.root / "download").exists()
    assert not (site.root / "staging").exists()
    assert site.look() == ""
    assert site.version == "2"


def test_a_disk_without_room_for_a_line_keeps_nobody_from_serving(site: Site) -> None:
    class Full(Unsynced):
        def put(self, path: Path, data: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    site.in_force("1")
    site.look()
    assert site.look(Full()) == ""
    assert "agent.json: No space left on device" in site.log
    assert site.version == "1"


def test_a_damaged_memory_is_begun_anew(site: Site) -> None:
    site.in_force("1")
    site.look()
    for text in ("{", "{}", '{"declined": [], "left": "", "said": [], "reports": []}'):
        (site.root / "agent.json").write_text(text)
        assert site.look() == ""
    assert site.version == "1"


@pytest.mark.parametrize(
    ("bundle", "has_root", "said"),
    [
        ("", False, "trusts no root yet"),
        ("", True, "has no bundles yet; give the name of those that it takes"),
        ("other", True, ""),
    ],
)
def test_a_node_for_which_nothing_is_named_or_that_trusts_nobody_waits(
    site: Site, bundle: str, has_root: bool, said: str
) -> None:
    site.in_force("1")
    agent = of_identity(site, Identity(Member("n", {}), bundle, site.publisher.root if has_root else None))
    with agent.alone():
        found = agent.round()
    assert said in found if said else found == ""
    assert site.ran == []


def test_a_node_is_not_made_anothers_by_its_agents_settings(site: Site) -> None:
    """The name that it has taken bundles of counts."""
    site.in_force("1")
    site.look()
    agent = of_identity(site, Identity(Member("n", {}), "other", site.publisher.root))
    with agent.alone():
        assert f"the node takes bundles of the name {NAME}, not other [name]" in agent.round()


def of_identity(site: Site, identity: Identity) -> Agent:
    mirrors = [Origin(site.mirrors.url("a"))]
    return Agent(site.root, identity, mirrors, site.bring_up, lambda: NOW, disk=Unsynced())


def test_keys_that_are_replaced_are_followed(site: Site) -> None:
    """By the chain of roots on the mirrors."""
    from securesystemslib.signer import CryptoSigner
    from torpor.edge.repository import replace_key

    site.in_force("1")
    site.look()
    keys = site.publisher.keys
    keys["timestamp"] = CryptoSigner.generate_ed25519()
    replace_key(site.publisher.repository, "timestamp", keys["timestamp"], keys["root"], NOW)
    site.in_force("2")
    assert site.look() == ""
    assert site.version == "2"
