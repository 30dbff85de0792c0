"""Keys, and the TUF repository that says which bundles are in force: a folder of files, as any TUF client reads it.

Four keys, one for each of TUF's roles. The root's is needed to begin and to replace a key, never to sign a bundle, so that it
can lie in a safe. A bundle gets a copy of the metadata, and is whole without the repository.

    1.root.json …  N.targets.json  N.snapshot.json  timestamp.json
    blobs/sha256/DIGEST             what was published for nodes that fetch it; any server of files gives it
"""

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from .contents import Blob, Heading
from .layout import Layout
from .refused import Refused
from .roles import ROLES
from .rollout import MOST_WITHDRAWN, NEXT, Offer, Rollout, offer_of

T = TypeVar("T", Snapshot, Targets, Timestamp)

ROOT_DAYS = 3650
"""A node that was away for years still follows the chain of roots; the last one alone must be valid."""


def make_key(file: Path) -> CryptoSigner:
    """A new Ed25519 key in a file that nobody else may read. Raises OSError, FileExistsError among them."""
    signer = CryptoSigner.generate_ed25519()
    file.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(signer.private_bytes)
    return signer


def read_key(file: Path) -> CryptoSigner:
    """Raises Refused."""
    try:
        return CryptoSigner(load_pem_private_key(file.read_bytes(), None))
    except FileNotFoundError:
        raise Refused("missing", f"{file} does not exist, must be a private key") from None
    except (ValueError, TypeError) as error:
        raise Refused("malformed", f"{file} must be a private key in PEM without a password: {error}") from None


def begin(folder: Path, keys: Mapping[str, CryptoSigner], now: datetime) -> bytes:
    """The first root, by the keys of all roles; nodes get it by a way of its own. Raises Refused, OSError."""
    if _roots(folder):
        raise Refused("state", f"{folder} has a root already; replace its keys one by one")
    root = Root(expires=now + timedelta(days=ROOT_DAYS), consistent_snapshot=True)
    for role in ROLES:
        root.add_key(keys[role].public_key, role)
    metadata = Metadata(root)
    metadata.sign(keys["root"])
    folder.mkdir(parents=True, exist_ok=True)
    return _write(folder / "1.root.json", metadata)


def replace_key(folder: Path, role: str, new: CryptoSigner, root_key: CryptoSigner, now: datetime) -> bytes:
    """The next root, in which a role has this key alone. Signed by the old root's key, and a new root's key too.

    What the old key has signed is in force no longer, so the next bundle must be signed before nodes get this root.
    Raises Refused, OSError.
    """
    metadata = _last_root(folder)
    root = metadata.signed
    _check_key(root, "root", root_key)
    for keyid in list(root.roles[role].keyids):
        root.revoke_key(keyid, role)
    root.add_key(new.public_key, role)
    root.version += 1
    root.expires = now + timedelta(days=ROOT_DAYS)
    metadata.sign(root_key)
    if role == "root":
        metadata.sign(new, append=True)
    return _write(folder / f"{root.version}.root.json", metadata)


def sign(folder: Path, index: bytes, keys: Mapping[str, CryptoSigner], now: datetime, days: int) -> dict[str, bytes]:
    """Put a bundle in force in place of the one of its name and platform, and of its candidate; the metadata that goes into it.

    days: until targets, snapshot and timestamp expire. Raises Refused, OSError.
    """
    heading = Heading(index)

    def change(offers: Offered, version: int) -> None:
        offers.pop(heading.target + NEXT, None)
        offers[heading.target] = Offer(heading.target, Blob.of(index), heading.version, version)

    return change_offers(folder, keys, now, days, change)


def begin_rollout(
    folder: Path, index: bytes, rollout: Rollout, keys: Mapping[str, CryptoSigner], now: datetime, days: int
) -> Offer:
    """Name a bundle as the candidate. One that every node takes is in force from here on. Raises Refused, OSError."""
    heading, blob = Heading(index), Blob.of(index)

    def change(offers: Offered, version: int) -> None:
        before = offers.get(heading.target + NEXT)
        stable = offers.get(heading.target)
        if blob in [offer.index for offer in (before, stable) if offer]:
            raise Refused("state", f"{heading.target}: {heading.version} is named already")
        if before and before.rollout:
            if not before.rollout.is_whole:
                raise Refused(
                    "state",
                    f"{heading.target}: the roll-out of {before.version} is not at its end; raise it to 100 %, or withdraw it",
                )
            withdrawn = stable.withdrawn if stable else ()
            stable = replace(before, target=heading.target, rollout=None, withdrawn=withdrawn)
        if stable:
            withdrawn = tuple(digest for digest in stable.withdrawn if digest != blob.digest)
            offers[heading.target] = replace(stable, withdrawn=withdrawn)
        offer = Offer(heading.target + NEXT, blob, heading.version, version, rollout)
        offers[offer.target] = offer

    change_offers(folder, keys, now, days, change)
    return offers_of(folder)[heading.target + NEXT]


def change_rollout(
    folder: Path,
    target: str,
    change: Callable[[Rollout], Rollout],
    keys: Mapping[str, CryptoSigner],
    now: datetime,
    days: int,
    *,
    again: bool = False,
) -> Offer:
    """again: nodes on which the candidate has failed try it once more. Raises Refused, OSError."""

    def changed(offers: Offered, version: int) -> None:
        offer = _candidate(offers, target)
        attempt = version if again else offer.attempt
        offers[offer.target] = replace(offer, rollout=change(offer.rollout or Rollout()), attempt=attempt)

    change_offers(folder, keys, now, days, changed)
    return _candidate(offers_of(folder), target)


def withdraw(folder: Path, target: str, keys: Mapping[str, CryptoSigner], now: datetime, days: int) -> Offer | None:
    """Name the candidate no longer; what nodes go back to, if anything. Raises Refused, OSError."""

    def change(offers: Offered, version: int) -> None:
        offer = _candidate(offers, target)
        del offers[offer.target]
        if stable := offers.get(target):
            withdrawn = (*stable.withdrawn, offer.index.digest)[-MOST_WITHDRAWN:]
            offers[target] = replace(stable, withdrawn=withdrawn)

    change_offers(folder, keys, now, days, change)
    return offers_of(folder).get(target)


Offered = dict[str, Offer]


def change_offers(
    folder: Path,
    keys: Mapping[str, CryptoSigner],
    now: datetime,
    days: int,
    change: Callable[[Offered, int], None] = lambda offers, version: None,
) -> dict[str, bytes]:
    """Sign targets, snapshot and timestamp anew; without a change only their ends move. change: gets what is named, by target,
    and the version that targets.json will have. Raises Refused, OSError.
    """
    root = _last_root(folder).signed
    for role in ROLES[1:]:
        _check_key(root, role, keys[role])
    with _alone(folder):
        targets = _next(folder, "targets", Targets())
        offers = _offers(targets)
        change(offers, targets.version)
        targets.targets = {name: _target(offer) for name, offer in offers.items()}
        return _write_roles(folder, targets, keys, now + timedelta(days=days))


def offers_of(folder: Path) -> Offered:
    """What is named, by target. Raises Refused, OSError."""
    _last_root(folder)
    numbers = _numbers(folder, "targets")
    if not numbers:
        return {}
    return _offers(Metadata[Targets].from_bytes((folder / f"{max(numbers)}.targets.json").read_bytes()).signed)


def publish(folder: Path, layout: Layout, tell: Callable[[int, int], None] = lambda done, all: None) -> int:
    """Have the repository's server give a bundle's blobs, too; the bytes that are new there. tell: gets how many bytes of how
    many are there. Raises Refused, OSError.
    """
    index = layout.index()
    contents = layout.contents(index)
    (folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    blobs = {*layout.lists(index), *contents.parts().values()}
    new = [blob for blob in sorted(blobs, key=lambda each: each.digest) if not (folder / blob.path).exists()]
    done, all_bytes = 0, sum(blob.size for blob in new)
    for blob in new:
        _publish(folder, blob, layout.chunks(blob))
        done += blob.size
        tell(done, all_bytes)
    _publish(folder, Blob.of(index), [index])
    return done


def _publish(folder: Path, blob: Blob, chunks: Iterable[bytes]) -> None:
    path = folder / blob.path
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
    beside.replace(path)


def _offers(targets: Targets) -> Offered:
    return {
        name: offer_of(name, Blob("sha256:" + target.hashes["sha256"], target.length), target.custom)
        for name, target in targets.targets.items()
    }


def _target(offer: Offer) -> TargetFile:
    digest = offer.index.digest.removeprefix("sha256:")
    return TargetFile(offer.index.size, {"sha256": digest}, offer.target, {"custom": offer.custom()})


def _candidate(offers: Offered, target: str) -> Offer:
    offer = offers.get(target + NEXT)
    if offer is None:
        raise Refused("state", f"{target} has no candidate")
    return offer


def _write_roles(folder: Path, targets: Targets, keys: Mapping[str, CryptoSigner], end: datetime) -> dict[str, bytes]:
    snapshot = _next(folder, "snapshot", Snapshot())
    timestamp = _next(folder, "timestamp", Timestamp())
    targets_bytes = _signed(targets, keys["targets"], end)
    snapshot.meta["targets.json"] = MetaFile.from_data(targets.version, targets_bytes, ["sha256"])
    snapshot_bytes = _signed(snapshot, keys["snapshot"], end)
    timestamp.snapshot_meta = MetaFile.from_data(snapshot.version, snapshot_bytes, ["sha256"])
    timestamp_bytes = _signed(timestamp, keys["timestamp"], end)
    # The timestamp last: until then the old state is whole.
    (folder / f"{targets.version}.targets.json").write_bytes(targets_bytes)
    (folder / f"{snapshot.version}.snapshot.json").write_bytes(snapshot_bytes)
    beside = folder / "timestamp.json.new"
    beside.write_bytes(timestamp_bytes)
    beside.replace(folder / "timestamp.json")
    roots = {f"{version}.root.json": path.read_bytes() for version, path in _roots(folder).items()}
    return roots | {"targets.json": targets_bytes, "snapshot.json": snapshot_bytes, "timestamp.json": timestamp_bytes}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One change at a time: two would give one version number to two files, and nodes refuse the second."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _check_key(root: Root, role: str, key: CryptoSigner) -> None:
    """What another key signs, no node would take."""
    if key.public_key.keyid not in root.roles[role].keyids:
        raise Refused("signature", f"the key for {role} is not the one that the root names")


def _next(folder: Path, role: str, first: T) -> T:
    """The role's last state with the next version number."""
    numbers = _numbers(folder, role)
    file = folder / (f"{max(numbers, default=0)}.{role}.json" if role != "timestamp" else "timestamp.json")
    if not file.exists():
        return first
    signed = Metadata[T].from_bytes(file.read_bytes()).signed
    signed.version += 1
    return signed


def _numbers(folder: Path, role: str) -> list[int]:
    return [int(path.name.split(".")[0]) for path in folder.glob(f"*.{role}.json")]


def _signed(signed: T, key: CryptoSigner, end: datetime) -> bytes:
    signed.expires = end
    metadata = Metadata(signed)
    metadata.sign(key)
    return metadata.to_bytes()


def _roots(folder: Path) -> dict[int, Path]:
    return dict(sorted((int(path.name.split(".")[0]), path) for path in folder.glob("*.root.json")))


def _last_root(folder: Path) -> Metadata[Root]:
    roots = _roots(folder)
    if not roots:
        raise Refused("missing", f"{folder} has no root; `torpor edge keys` makes one")
    return Metadata[Root].from_bytes(roots[max(roots)].read_bytes())


def _write(file: Path, metadata: Metadata[Root]) -> bytes:
    data = metadata.to_bytes()
    file.write_bytes(data)
    return data
