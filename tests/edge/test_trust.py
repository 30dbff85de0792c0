"""What a node accepts: signatures, versions, times; and what an attacker may try."""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from edge_bundles import DAY, NOW, Publisher, packed
from securesystemslib.signer import CryptoSigner
from torpor.edge.layout import Layout
from torpor.edge.refused import Refused
from torpor.edge.repository import begin, replace_key, sign
from torpor.edge.trust import BEGINNING, Accepted, Trust, accept, first_trust
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    """With a second root, in which the timestamp has another key, and one bundle."""
    publisher = Publisher(tmp_path_factory.mktemp("publisher"))
    publisher.keys["timestamp"] = CryptoSigner.generate_ed25519()
    replace_key(publisher.repository, "timestamp", publisher.keys["timestamp"], publisher.keys["root"], NOW)
    publisher.bundle("1")
    return publisher


def check(bundle: Path, trust: Trust, clock: Any = NOW) -> Accepted:
    """Everything, to the last byte, as `torpor edge verify` does."""
    with Layout.at(bundle) as layout:
        index = layout.index()
        accepted = accept(trust, layout.metadata(), index, clock)
        for part in layout.contents(index).parts().values():
            for _ in layout.chunks(part):
                pass
    return accepted


def reason(bundle: Path, trust: Trust, clock: Any = NOW) -> str:
    with pytest.raises(Refused) as refused:
        check(bundle, trust, clock)
    return refused.value.reason


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each field is, lists and objects themselves too."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))


def changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1:] != "0" else "1")
    return {**value, "x": 1} if isinstance(value, dict) else [*value, "x"]


ROLE_FILES = ("1.root", "2.root", "timestamp", "snapshot", "targets")


@pytest.mark.parametrize("role", ROLE_FILES)
@pytest.mark.parametrize("how", ["changed", "left out"])
def test_every_field_of_every_role_is_protected(publisher: Publisher, tmp_path: Path, role: str, how: str) -> None:
    """Changed by one, or left out: refused, with the file named and a reason that fits."""
    trust = first_trust(publisher.root)
    bundle = shutil.copytree(publisher.folder / "sentences-1", tmp_path / "bundle")
    file = bundle / "tuf" / f"{role}.json"
    good = file.read_bytes()
    fields = list(leaves(json.loads(good)))
    assert len(fields) >= 12
    for path in fields:
        value = json.loads(good)
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        if how == "changed":
            holder[path[-1]] = changed(holder[path[-1]])
        else:
            del holder[path[-1]]
        file.write_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
        with pytest.raises(Refused, match=rf"{role}\.json") as refused:
            check(bundle, trust)
        assert refused.value.reason in ("signature", "digest", "malformed", "version"), path
    file.write_bytes(good)
    assert check(bundle, trust).expired == ()


@pytest.mark.parametrize("role", ROLE_FILES)
def test_bytes_beside_what_is_signed_are_refused_too(publisher: Publisher, tmp_path: Path, role: str) -> None:
    """White space, doubled keys, another case of a signature's digits: harmless, and none of ours."""
    bundle = shutil.copytree(publisher.folder / "sentences-1", tmp_path / "bundle")
    file = bundle / "tuf" / f"{role}.json"
    good = file.read_bytes()
    signature = json.loads(good)["signatures"][0]["sig"]
    for data in (
        good + b"\n",
        good.replace(b",", b", ", 1),
        good.replace(signature.encode(), signature.upper().encode()),
        b'{"more":1,' + good[1:],
        b"[" * 100_000,
        b"",
        b"\xff",
    ):
        file.write_bytes(data)
        assert reason(bundle, first_trust(publisher.root)) in ("malformed", "digest", "signature")


@pytest.mark.parametrize("role", ROLE_FILES)
def test_a_bundle_that_lacks_a_role_is_refused(publisher: Publisher, tmp_path: Path, role: str) -> None:
    bundle = shutil.copytree(publisher.folder / "sentences-1", tmp_path / "bundle")
    (bundle / "tuf" / f"{role}.json").unlink()
    trust = first_trust(publisher.root)
    if role == "1.root":
        assert check(bundle, trust).expired == ()  # The node has it.
    else:
        # Without the second root the timestamp's key is not the one in force.
        assert reason(bundle, trust) == ("signature" if role == "2.root" else "missing")


def test_an_unsigned_bundle_is_refused(publisher: Publisher, tmp_path: Path) -> None:
    bundle = shutil.copytree(publisher.folder / "sentences-1", tmp_path / "bundle")
    shutil.rmtree(bundle / "tuf")
    assert reason(bundle, first_trust(publisher.root)) == "signature"


def test_another_publishers_bundle_is_refused(publisher: Publisher, tmp_path: Path) -> None:
    stranger = Publisher(tmp_path)
    assert reason(stranger.bundle("1"), first_trust(publisher.root)) == "signature"


def test_every_blob_is_protected(publisher: Publisher, tmp_path: Path) -> None:
    """Parts of each kind, manifests, lists of files: one bit, one byte less, one more, none."""
    trust = first_trust(publisher.root)
    bundle = shutil.copytree(publisher.folder / "sentences-1", tmp_path / "bundle")
    blobs = sorted((bundle / "blobs" / "sha256").iterdir())
    assert len(blobs) > 20
    for blob in blobs:
        good = blob.read_bytes()
        for data in (bytes([good[0] ^ 1]) + good[1:], good[:-1], good + b"\0"):
            blob.write_bytes(data)
            assert reason(bundle, trust) == "digest"
        blob.unlink()
        assert reason(bundle, trust) == "missing"
        blob.write_bytes(good)
    for name, data in (("index.json", b"{}"), ("index.json", b""), ("oci-layout", b"{}")):
        good = (bundle / name).read_bytes()
        (bundle / name).write_bytes(data)
        assert reason(bundle, trust) == ("digest" if name == "index.json" else "malformed")
        (bundle / name).write_bytes(good)
    check(bundle, trust)


def mutated(data: bytes, chance: random.Random) -> bytes:
    at, length = chance.randrange(len(data)), chance.choice((1, 2, 16, 512, 4096))
    other = chance.randrange(len(data))
    return chance.choice(
        (
            lambda: data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :],
            lambda: data[:at] + chance.randbytes(length) + data[at + length :],
            lambda: data[:at] + data[at + length :],
            lambda: data[:at] + chance.randbytes(length) + data[at:],
            lambda: data[:at] + bytes(length) + data[at + length :],
            lambda: data[:at] + data[other : other + length] + data[at + length :],
            lambda: data[:at],
            lambda: data[:at] + data[at : at + length] + data[at:],
        )
    )()


def test_a_thousand_mutations_of_an_archive_are_refused(publisher: Publisher, tmp_path: Path) -> None:
    """Of any of its bytes, padding and headers among them; each with a reason, none with a crash."""
    trust = first_trust(publisher.root)
    archive = packed(publisher.folder / "sentences-1", tmp_path / "b.tar")
    check(archive, trust)
    good, chance = archive.read_bytes(), random.Random(9)
    done = 0
    while done < 1000:
        data = mutated(good, chance)
        if data == good:
            continue
        archive.write_bytes(data)
        with pytest.raises(Refused):
            check(archive, trust)
        done += 1


def test_what_is_older_than_what_was_accepted_is_refused(tmp_path: Path) -> None:
    """A roll-back by whoever carries the medium: the old bundle was signed just as well."""
    publisher = Publisher(tmp_path)
    old = publisher.bundle("1")
    trust = check(publisher.bundle("2", last=1.0), first_trust(publisher.root)).trust
    assert reason(old, trust) == "version"


def in_force(
    publisher: Publisher, index: bytes, target: str = "sentences/any", *, timestamp: int, snapshot: int, targets: int
) -> dict[str, bytes]:
    """Metadata of these versions, rightly signed."""
    end = NOW + 90 * DAY
    files = {"1.root.json": publisher.root}
    entry = TargetFile.from_data(target, index, ["sha256"])
    bottom = Metadata(Targets(targets, expires=end, targets={target: entry}))
    bottom.sign(publisher.keys["targets"])
    files["targets.json"] = bottom.to_bytes()
    meta = {"targets.json": MetaFile.from_data(targets, files["targets.json"], ["sha256"])}
    middle = Metadata(Snapshot(snapshot, expires=end, meta=meta))
    middle.sign(publisher.keys["snapshot"])
    files["snapshot.json"] = middle.to_bytes()
    top = Metadata(Timestamp(timestamp, expires=end))
    top.signed.snapshot_meta = MetaFile.from_data(snapshot, files["snapshot.json"], ["sha256"])
    top.sign(publisher.keys["timestamp"])
    files["timestamp.json"] = top.to_bytes()
    return files


@pytest.mark.parametrize(("timestamp", "snapshot", "targets"), [(2, 4, 4), (4, 2, 3), (4, 4, 2)])
def test_no_role_goes_back_by_itself(tmp_path: Path, timestamp: int, snapshot: int, targets: int) -> None:
    """Who has some of the keys, such as the timestamp's, which lies on a machine that is online, brings nothing old back."""
    publisher = Publisher(tmp_path)
    index = (publisher.bundle("1") / "index.json").read_bytes()
    three = in_force(publisher, index, timestamp=3, snapshot=3, targets=3)
    trust = accept(first_trust(publisher.root), three, index, NOW).trust
    older = in_force(publisher, index, timestamp=timestamp, snapshot=snapshot, targets=targets)
    with pytest.raises(Refused) as refused:
        accept(trust, older, index, NOW)
    assert refused.value.reason == "version"
    newer = in_force(publisher, index, timestamp=4, snapshot=4, targets=3)
    assert accept(trust, newer, index, NOW).expired == ()


def test_files_of_two_states_do_not_mix(tmp_path: Path) -> None:
    """Each is signed; together they were never in force."""
    publisher = Publisher(tmp_path)
    old = publisher.bundle("1")
    new = publisher.bundle("2", last=1.0)
    for role, reasons in (("snapshot", ("digest",)), ("targets", ("digest",))):
        mixed = shutil.copytree(new, tmp_path / f"mixed-{role}")
        shutil.copy(old / "tuf" / f"{role}.json", mixed / "tuf")
        assert reason(mixed, first_trust(publisher.root)) in reasons
    mixed = tmp_path / "mixed-index"
    shutil.copytree(old, mixed)
    shutil.rmtree(mixed / "tuf")
    shutil.copytree(new / "tuf", mixed / "tuf")
    assert reason(mixed, first_trust(publisher.root)) == "digest"


def test_two_timestamps_of_one_version_are_refused(tmp_path: Path) -> None:
    """The first one stays in force."""
    publisher = Publisher(tmp_path)
    shutil.copytree(publisher.repository, tmp_path / "before")
    trust = check(publisher.bundle("1"), first_trust(publisher.root)).trust
    publisher.repository = tmp_path / "before"
    assert reason(publisher.bundle("2", last=1.0), trust) == "version"


def test_a_bundle_signed_under_anothers_name_is_refused(tmp_path: Path) -> None:
    """The name in the index is the one that counts, and it is the target's."""
    publisher = Publisher(tmp_path)
    index = (publisher.bundle("1") / "index.json").read_bytes()
    files = in_force(publisher, index, "other/any", timestamp=1, snapshot=1, targets=1)
    with pytest.raises(Refused) as refused:
        accept(first_trust(publisher.root), files, index, NOW)
    assert refused.value.reason == "name"


# Keys


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_a_replaced_key_signs_nothing_any_more(tmp_path: Path, role: str) -> None:
    """And the nodes that trust the first root follow the chain to the new one."""
    publisher = Publisher(tmp_path)
    first = publisher.bundle("1")
    trust = check(first, first_trust(publisher.root)).trust
    stolen = publisher.keys[role]
    publisher.keys[role] = CryptoSigner.generate_ed25519()
    replace_key(publisher.repository, role, publisher.keys[role], publisher.keys["root"], NOW)
    trust = check(publisher.bundle("2", last=1.0), trust).trust
    assert json.loads(trust.root)["signed"]["version"] == 2
    assert reason(first, Trust(trust.root)) == "signature"
    thief = {**publisher.keys, role: stolen}
    with Layout.at(first) as layout, pytest.raises(Refused, match="not the one that the root names"):
        sign(publisher.repository, layout.index(), thief, NOW, 90)


def test_numbers_that_a_thief_has_driven_up_go_with_the_keys(tmp_path: Path) -> None:
    """Or nothing of the publisher's would be new enough ever after."""
    publisher = Publisher(tmp_path)
    bundle = publisher.bundle("1")
    index = (bundle / "index.json").read_bytes()
    driven = in_force(publisher, index, timestamp=9000, snapshot=9000, targets=9000)
    trust = accept(first_trust(publisher.root), driven, index, NOW).trust
    assert reason(bundle, trust) == "version"
    for role in ("timestamp", "snapshot"):
        publisher.keys[role] = CryptoSigner.generate_ed25519()
        replace_key(publisher.repository, role, publisher.keys[role], publisher.keys["root"], NOW)
    check(publisher.sign(bundle), trust)


def test_the_roots_own_key_is_replaced_by_both_hands(tmp_path: Path) -> None:
    """A root that its predecessor has not signed is a stranger's."""
    publisher = Publisher(tmp_path)
    old_key, publisher.keys["root"] = publisher.keys["root"], CryptoSigner.generate_ed25519()
    replace_key(publisher.repository, "root", publisher.keys["root"], old_key, NOW)
    bundle = publisher.bundle("1")
    check(bundle, first_trust(publisher.root))
    with pytest.raises(Refused, match="not the one that the root names"):
        replace_key(publisher.repository, "targets", publisher.keys["targets"], old_key, NOW)
    for key in (old_key, CryptoSigner.generate_ed25519()):
        third = Metadata[Root].from_bytes((bundle / "tuf" / "2.root.json").read_bytes())
        third.signed.version = 3
        third.sign(key)
        (bundle / "tuf" / "3.root.json").write_bytes(third.to_bytes())
        assert reason(bundle, first_trust(publisher.root)) == "signature"


def test_a_root_may_not_be_skipped(tmp_path: Path) -> None:
    """Nor may a node be led back behind the root that it trusts."""
    publisher = Publisher(tmp_path)
    for _ in range(2):
        publisher.keys["timestamp"] = CryptoSigner.generate_ed25519()
        replace_key(publisher.repository, "timestamp", publisher.keys["timestamp"], publisher.keys["root"], NOW)
    bundle = publisher.bundle("1")
    latest = check(bundle, first_trust(publisher.root)).trust
    (bundle / "tuf" / "1.root.json").write_bytes(publisher.root + b"\n")
    assert reason(bundle, latest) == "malformed"
    (bundle / "tuf" / "1.root.json").write_bytes(publisher.root)
    (bundle / "tuf" / "2.root.json").unlink()
    assert reason(bundle, first_trust(publisher.root)) == "malformed"
    (bundle / "tuf" / "1.root.json").unlink()
    assert reason(bundle, first_trust(publisher.root)) == "version"
    check(bundle, latest)


def test_a_first_root_must_be_signed_by_itself(tmp_path: Path) -> None:
    value = json.loads(Publisher(tmp_path).root)
    value["signed"]["version"] = 7
    with pytest.raises(Refused) as refused:
        first_trust(json.dumps(value).encode())
    assert refused.value.reason == "signature"


def test_a_repository_begins_once(tmp_path: Path) -> None:
    """A second first root would be another publisher."""
    publisher = Publisher(tmp_path)
    with pytest.raises(Refused) as refused:
        begin(publisher.repository, publisher.keys, NOW)
    assert refused.value.reason == "state"


# Time


def test_expired_metadata_is_told_apart_from_forged(tmp_path: Path) -> None:
    """It may be installed by the operator's word; nothing else may."""
    publisher = Publisher(tmp_path)
    bundle = publisher.bundle("1", days=30)
    trust = first_trust(publisher.root)
    assert check(bundle, trust, NOW + 30 * DAY - timedelta(seconds=1)).expired == ()
    assert check(bundle, trust, NOW + 30 * DAY).expired == ("timestamp", "snapshot", "targets")
    assert check(bundle, trust, NOW + 4000 * DAY).expired == ("root", "timestamp", "snapshot", "targets")


def test_a_clock_in_1970_makes_nothing_valid(tmp_path: Path) -> None:
    """The last accepted time counts, and the time at which the bundle was built."""
    publisher = Publisher(tmp_path)
    frozen = publisher.bundle("1", days=30)
    assert check(frozen, first_trust(publisher.root), BEGINNING).time == NOW
    trust = replace(first_trust(publisher.root), time=NOW + 31 * DAY)
    assert "timestamp" in check(frozen, trust, BEGINNING).expired
    built_later = publisher.bundle("2", last=1.0, days=30, built=NOW + 31 * DAY)
    assert "timestamp" in check(built_later, first_trust(publisher.root), BEGINNING).expired


def test_the_time_never_goes_back(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path)
    trust = check(publisher.bundle("1"), first_trust(publisher.root), NOW + 5 * DAY).trust
    assert trust.time == NOW + 5 * DAY
    assert check(publisher.bundle("2", last=1.0), trust, BEGINNING).trust.time == NOW + 5 * DAY


def test_a_clock_that_once_ran_ahead_does_not_forbid_all_updates(tmp_path: Path) -> None:
    """At its time the metadata had expired, so it is not what was accepted."""
    publisher = Publisher(tmp_path)
    accepted = check(publisher.bundle("1"), first_trust(publisher.root), NOW + 20_000 * DAY)
    assert accepted.expired
    assert accepted.trust.time == NOW
    assert check(publisher.bundle("2", last=1.0), accepted.trust).expired == ()


def test_an_expired_file_still_protects_from_older_ones(tmp_path: Path) -> None:
    """Or a node that was away for long could be led back."""
    publisher = Publisher(tmp_path)
    old = publisher.bundle("1", days=1000)
    trust = check(publisher.bundle("2", last=1.0, days=1), first_trust(publisher.root)).trust
    assert reason(old, trust, NOW + 100 * DAY) == "version"
