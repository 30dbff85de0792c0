"""Keys, and the TUF repository that says which bundles are in force: a folder of files, as any TUF client reads it.

Four keys, one for each of TUF's roles. The root's is needed to begin and to replace a key, never to sign a bundle, so that it
can lie in a safe. A bundle gets a copy of the metadata, and is whole without the repository.

    1.root.json …  N.targets.json  N.snapshot.json  timestamp.json
"""

import os
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from .contents import Blob, Heading
from .refused import Refused
from .roles import ROLES

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
    root = Root(expires=_days(now, ROOT_DAYS), consistent_snapshot=True)
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
    root.expires = _days(now, ROOT_DAYS)
    metadata.sign(root_key)
    if role == "root":
        metadata.sign(new, append=True)
    return _write(folder / f"{root.version}.root.json", metadata)


def sign(folder: Path, index: bytes, keys: Mapping[str, CryptoSigner], now: datetime, days: int) -> dict[str, bytes]:
    """Put a bundle in force in place of the one of its name and platform; the metadata that goes into it.

    days: until targets, snapshot and timestamp expire. Raises Refused, OSError.
    """
    root = _last_root(folder).signed
    for role in ROLES[1:]:
        _check_key(root, role, keys[role])
    heading, blob = Heading(index), Blob.of(index)
    end = _days(now, days)
    targets = _next(folder, "targets", Targets())
    target = TargetFile(blob.size, {"sha256": blob.digest.removeprefix("sha256:")}, heading.target)
    targets.targets[heading.target] = target
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


def _check_key(root: Root, role: str, key: CryptoSigner) -> None:
    """What another key signs, no node would take."""
    if key.public_key.keyid not in root.roles[role].keyids:
        raise Refused("signature", f"the key for {role} is not the one that the root names")


def _next(folder: Path, role: str, first: T) -> T:
    """The role's last state with the next version number."""
    numbers = [int(path.name.split(".")[0]) for path in folder.glob(f"*.{role}.json")]
    file = folder / (f"{max(numbers, default=0)}.{role}.json" if role != "timestamp" else "timestamp.json")
    if not file.exists():
        return first
    signed = Metadata[T].from_bytes(file.read_bytes()).signed
    signed.version += 1
    return signed


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


def _days(now: datetime, days: int) -> datetime:
    # TUF's times have no fraction of a second.
    return (now + timedelta(days=days)).replace(microsecond=0)
