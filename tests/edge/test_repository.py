"""A publisher's repository: keys, roots, and what is named."""

import fcntl
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_bundles import DAY, NAME, NOW, Publisher
from torpor.edge.contents import Blob
from torpor.edge.layout import Layout
from torpor.edge.refused import Refused
from torpor.edge.repository import (
    ROOT_DAYS,
    begin_rollout,
    change_offers,
    change_rollout,
    make_key,
    offers_of,
    publish,
    read_key,
    replace_key,
    sign,
    withdraw,
)
from torpor.edge.rollout import MOST_WITHDRAWN, Rollout
from tuf.api.metadata import Metadata, Root

TARGET = f"{NAME}/any"


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Of two versions."""
    publisher = Publisher(tmp_path_factory.mktemp("made"))
    made = {version: publisher.bundle_only(version, float(version)) for version in ("1", "2")}
    return {version: (bundle / "index.json").read_bytes() for version, bundle in made.items()}


@pytest.mark.parametrize("data", [b"", b"no key", b"encrypted"])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, data: bytes) -> None:
    """One with a password among them: nobody would be asked for it."""
    file = tmp_path / "targets.pem"
    if data == b"encrypted":
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
        data = Ed25519PrivateKey.generate().private_bytes(*form, serialization.BestAvailableEncryption(b"secret"))
    file.write_bytes(data)
    with pytest.raises(Refused, match=r"targets\.pem must be a private key in PEM without a password") as refused:
        read_key(file)
    assert refused.value.reason == "malformed"
    file.unlink()
    with pytest.raises(Refused, match=r"targets\.pem does not exist") as refused:
        read_key(file)
    assert refused.value.reason == "missing"


def test_a_key_is_its_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    """What it has signed could be renewed by nobody."""
    file = tmp_path / "keys" / "targets.pem"
    key = make_key(file)
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        make_key(file)
    assert read_key(file).public_key == key.public_key


def test_a_new_root_is_valid_as_long_as_the_first_one_was(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path)
    keys, later = publisher.keys, NOW + 1000 * DAY
    data = replace_key(publisher.repository, "timestamp", keys["snapshot"], keys["root"], later)
    assert Metadata[Root].from_bytes(data).signed.expires == later + ROOT_DAYS * DAY


def test_a_folder_without_a_root_is_no_repository(tmp_path: Path, indexes: dict[str, bytes]) -> None:
    """A mistyped path is said, and no second repository begins there."""
    keys = Publisher(tmp_path / "publisher").keys
    with pytest.raises(Refused, match="none has no root") as refused:
        offers_of(tmp_path / "none")
    assert refused.value.reason == "missing"
    with pytest.raises(Refused, match="none has no root"):
        sign(tmp_path / "none", indexes["1"], keys, NOW, 90)
    assert not (tmp_path / "none").exists()


def test_a_repository_names_nothing_before_anything_is_signed(tmp_path: Path) -> None:
    assert offers_of(Publisher(tmp_path).repository) == {}


def test_what_has_no_candidate_can_be_neither_changed_nor_withdrawn(tmp_path: Path, indexes: dict[str, bytes]) -> None:
    publisher = Publisher(tmp_path)
    folder, keys = publisher.repository, publisher.keys
    sign(folder, indexes["1"], keys, NOW, 90)
    before = offers_of(folder)
    with pytest.raises(Refused, match=f"{TARGET} has no candidate") as refused:
        change_rollout(folder, TARGET, Rollout.paused, keys, NOW, 90)
    assert refused.value.reason == "state"
    with pytest.raises(Refused, match=f"{TARGET} has no candidate"):
        withdraw(folder, TARGET, keys, NOW, 90)
    assert offers_of(folder) == before


def test_a_roll_out_begins_when_the_one_before_is_at_its_end(tmp_path: Path, indexes: dict[str, bytes]) -> None:
    """And with another version than what is in force or was named last."""
    publisher = Publisher(tmp_path)
    folder, keys = publisher.repository, publisher.keys
    begin_rollout(folder, indexes["1"], Rollout(500), keys, NOW, 90)
    for index, said in (("1", "1 is named already"), ("2", "roll-out of 1 is not at its end")):
        with pytest.raises(Refused, match=said) as refused:
            begin_rollout(folder, indexes[index], Rollout(), keys, NOW, 90)
        assert refused.value.reason == "state"
    change_rollout(folder, TARGET, lambda rollout: rollout.raised(10_000, {}), keys, NOW, 90)
    begin_rollout(folder, indexes["2"], Rollout(), keys, NOW, 90)
    assert {name: offer.version for name, offer in offers_of(folder).items()} == {TARGET: "1", f"{TARGET}/next": "2"}
    with pytest.raises(Refused, match="1 is named already"):
        begin_rollout(folder, indexes["1"], Rollout(), keys, NOW, 90)


def test_what_is_put_in_force_leaves_no_candidate(tmp_path: Path, indexes: dict[str, bytes]) -> None:
    """Or some nodes would go on to what is older by now."""
    publisher = Publisher(tmp_path)
    folder, keys = publisher.repository, publisher.keys
    begin_rollout(folder, indexes["1"], Rollout(500), keys, NOW, 90)
    sign(folder, indexes["2"], keys, NOW, 90)
    assert list(offers_of(folder)) == [TARGET]


def test_what_was_withdrawn_is_remembered_until_it_is_named_again(tmp_path: Path, indexes: dict[str, bytes]) -> None:
    """So that no node takes it for the way back; over a version that comes in force, and not without end."""
    publisher = Publisher(tmp_path)
    folder, keys = publisher.repository, publisher.keys

    def withdrawn() -> tuple[str, ...]:
        return offers_of(folder)[TARGET].withdrawn

    first, second = (Blob.of(indexes[version]).digest for version in ("1", "2"))
    sign(folder, indexes["1"], keys, NOW, 90)
    begin_rollout(folder, indexes["2"], Rollout(), keys, NOW, 90)
    withdraw(folder, TARGET, keys, NOW, 90)
    assert withdrawn() == (second,)
    others = [indexes["1"].replace(b'version":"1"', b'version":"1.%d"' % number) for number in range(MOST_WITHDRAWN)]
    begin_rollout(folder, others[0], Rollout(10_000), keys, NOW, 90)
    begin_rollout(folder, others[1], Rollout(), keys, NOW, 90)
    assert offers_of(folder)[TARGET].version == "1.0"
    assert withdrawn() == (second,)
    withdraw(folder, TARGET, keys, NOW, 90)
    begin_rollout(folder, indexes["2"], Rollout(), keys, NOW, 90)
    assert withdrawn() == (Blob.of(others[1]).digest,)
    for index in (*others[2:], indexes["1"], indexes["2"], others[1]):
        withdraw(folder, TARGET, keys, NOW, 90)
        begin_rollout(folder, index, Rollout(), keys, NOW, 90)
    withdraw(folder, TARGET, keys, NOW, 90)
    assert len(withdrawn()) == MOST_WITHDRAWN
    assert withdrawn()[-3:] == (first, second, Blob.of(others[1]).digest)


def test_what_is_published_already_is_not_copied_again(tmp_path: Path) -> None:
    """Nor told; and the index comes last, so that no node finds half a bundle."""
    publisher = Publisher(tmp_path)
    bundle = publisher.bundle_only("1")
    index = publisher.repository / Blob.of((bundle / "index.json").read_bytes()).path
    told: list[tuple[int, int]] = []

    def tell(done: int, all_bytes: int) -> None:
        assert not index.exists()
        told.append((done, all_bytes))

    with Layout.at(bundle) as layout:
        came = publish(publisher.repository, layout, tell)
        assert index.exists()
        sizes = [size for size, _ in told]
        assert sizes == sorted(sizes)
        assert told[-1] == (came, came)
        told.clear()
        assert publish(publisher.repository, layout, tell) == 0
    assert told == []


def test_one_change_is_made_at_a_time(tmp_path: Path) -> None:
    """Two would give one version number to two files, and nodes refuse the second."""
    publisher = Publisher(tmp_path)

    def change(offers: object, version: int) -> None:
        folder = os.open(publisher.repository, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(folder)
        asked.append(version)

    asked: list[int] = []
    for _ in range(2):
        change_offers(publisher.repository, publisher.keys, NOW, 90, change)
    assert asked == [1, 2]


def test_what_is_signed_is_valid_for_as_many_days_as_were_asked_for(tmp_path: Path) -> None:
    """All three roles; the root has years of its own."""
    publisher = Publisher(tmp_path)
    files = change_offers(publisher.repository, publisher.keys, NOW, 7)
    ends = {name: Metadata.from_bytes(data).signed.expires - NOW for name, data in files.items()}
    assert ends.pop("1.root.json") == ROOT_DAYS * DAY
    assert ends == {f"{role}.json": 7 * DAY for role in ("targets", "snapshot", "timestamp")}


def test_nodes_on_which_a_candidate_has_failed_try_it_again_only_when_told(
    tmp_path: Path, indexes: dict[str, bytes]
) -> None:
    """By a higher attempt; raising a share alone tells nobody."""
    publisher = Publisher(tmp_path)
    folder, keys = publisher.repository, publisher.keys
    before = begin_rollout(folder, indexes["1"], Rollout(), keys, NOW, 90)
    raised = change_rollout(folder, TARGET, lambda rollout: rollout.raised(500, {}), keys, NOW, 90)
    assert (raised.attempt, raised.rollout) == (before.attempt, Rollout(500))
    again = change_rollout(folder, TARGET, lambda rollout: rollout, keys, NOW, 90, again=True)
    assert again.attempt > before.attempt
    assert again.rollout == Rollout(500)
