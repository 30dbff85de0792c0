"""What a node accepts: TUF's client workflow (python-tuf) with the bundle as the repository, and a time of its own.

The target is the bundle's index: its digest is signed, and all that it refers to is known by digest. TUF's order of loading
refuses what is older than what was accepted (roll-back), what does not belong together (mix-and-match), and keys that were
replaced; what has expired (freeze) is told apart from it, since there the operator may know better.

**The time** is the latest of the clock, the last accepted time and the bundle's build time: a clock that stands in 1970 makes
nothing valid that was not. Signatures and versions are checked as of before all time, so that an expired file still protects
from an older one; then each role's end is compared with the time.

python-tuf's `Updater` takes the time from the clock and writes files one by one, so the set of rules beneath it is used, and
what it accepted is kept as one value.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from tuf.api.exceptions import (
    BadVersionNumberError,
    EqualVersionNumberError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, Timestamp
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from .contents import Blob, Heading
from .refused import Refused
from .rollout import NEXT

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Trust:
    """What was accepted so far: the files of TUF as they came, and the time. None: not yet."""

    root: bytes
    timestamp: bytes | None = None
    snapshot: bytes | None = None
    targets: bytes | None = None
    time: datetime = BEGINNING


@dataclass(frozen=True)
class InForce:
    """What the metadata names. trust: what to keep. time: the latest of the three. ends: when each role expires. expired:
    those that have. targets: index and custom metadata of each, by its name.
    """

    trust: Trust
    time: datetime
    ends: dict[str, datetime]
    expired: tuple[str, ...]
    targets: dict[str, tuple[Blob, Any]]


@dataclass(frozen=True)
class Accepted:
    """A bundle whose index is signed.

    trust: what to keep, once it is installed. time: the latest of the three. ends: when each role expires. expired: those
    that have.
    """

    heading: Heading
    trust: Trust
    time: datetime
    ends: dict[str, datetime]
    expired: tuple[str, ...]


def accept(trust: Trust, metadata: dict[str, bytes], index: bytes, clock: datetime) -> Accepted:
    """A bundle by the metadata that it brings. Raises Refused, but not for what has only expired."""
    if not metadata:
        raise Refused("signature", "the bundle is not signed")
    trusted, trust = _load(trust, metadata)
    heading = _signed_heading(trusted, index)
    found = _judge(trusted, trust, max(clock, heading.built), heading.built)
    return Accepted(heading, found.trust, found.time, found.ends, found.expired)


def refresh(trust: Trust, metadata: dict[str, bytes], clock: datetime) -> InForce:
    """What newer metadata names; without any, what is kept. Raises Refused, but not for what has only expired."""
    if not metadata:
        kept = {"timestamp": trust.timestamp, "snapshot": trust.snapshot, "targets": trust.targets}
        metadata = {f"{role}.json": data for role, data in kept.items() if data is not None}
    trusted, trust = _load(trust, metadata)
    return _judge(trusted, trust, clock, BEGINNING)


def files(trust: Trust) -> dict[str, bytes]:
    """What is kept, as a bundle has it that is installed by it."""
    with _role("root"):
        root = Metadata[Root].from_bytes(trust.root).signed.version
    roles = {f"{root}.root": trust.root, "timestamp": trust.timestamp, "snapshot": trust.snapshot}
    return {f"{role}.json": data for role, data in (roles | {"targets": trust.targets}).items() if data is not None}


def next_root(trust: Trust) -> int:
    """The version of the root that would follow."""
    with _role("root"):
        return Metadata[Root].from_bytes(trust.root).signed.version + 1


def named_version(data: bytes, role: Literal["timestamp", "snapshot"]) -> int:
    """The version of the role below that this file names: where to look for that. It is not trusted. Raises Refused."""
    with _role(role):
        signed = Metadata.from_bytes(data).signed
        below = signed.snapshot_meta if isinstance(signed, Timestamp) else signed.meta["targets.json"]  # type: ignore[attr-defined]
        return int(below.version)


def _load(trust: Trust, metadata: dict[str, bytes]) -> tuple[TrustedMetadataSet, Trust]:
    """Signatures and versions, as of before all time. What to keep has the time that it had."""
    trusted, root = _newest_root(trust.root, metadata)
    with suppress(RepositoryError):  # The keys were replaced since: with them goes what they have signed.
        if trust.timestamp:
            trusted.update_timestamp(trust.timestamp)
    data = _given(metadata, "timestamp")
    timestamp = data
    with _role("timestamp"):
        try:
            trusted.update_timestamp(data)
        except EqualVersionNumberError:
            # The one that is kept stays in force, so that two of one version cannot be told apart by an attacker.
            timestamp = trust.timestamp or data
            if timestamp != data:
                raise Refused(
                    "version", f"timestamp.json: another one of version {trusted.timestamp.version}"
                ) from None
    with suppress(RepositoryError):
        if trust.snapshot:
            trusted.update_snapshot(trust.snapshot, trusted=True)
    snapshot = _given(metadata, "snapshot")
    with _role("snapshot"):
        trusted.update_snapshot(snapshot)
    targets = _given(metadata, "targets")
    with _role("targets"):
        trusted.update_targets(targets)
    return trusted, Trust(root, timestamp, snapshot, targets, trust.time)


def _judge(trusted: TrustedMetadataSet, trust: Trust, time: datetime, built: datetime) -> InForce:
    time = max(time, trust.time)
    ends = {role: trusted[role].expires for role in ("root", "timestamp", "snapshot", "targets")}
    expired = tuple(role for role, end in ends.items() if trusted[role].is_expired(time))
    # A clock that runs ahead is believed only by what is valid at its time: else it would forbid all to come.
    kept_time = max(trust.time, built) if expired else time
    targets = {
        name: (Blob("sha256:" + target.hashes["sha256"], target.length), target.custom)
        for name, target in trusted.targets.targets.items()
        if "sha256" in target.hashes
    }
    return InForce(replace(trust, time=kept_time), time, ends, expired, targets)


def ends(trust: Trust) -> dict[str, datetime]:
    """When each role that was accepted expires."""
    files = {"root": trust.root, "timestamp": trust.timestamp, "snapshot": trust.snapshot, "targets": trust.targets}
    return {role: Metadata.from_bytes(data).signed.expires for role, data in files.items() if data}


def first_trust(root: bytes) -> Trust:
    """Begin with a root that came by a way of its own. Raises Refused."""
    with _role("root"):
        TrustedMetadataSet(root, EnvelopeType.METADATA)
    return Trust(root)


def _newest_root(root: bytes, metadata: dict[str, bytes]) -> tuple[TrustedMetadataSet, bytes]:
    """Follow the chain of roots from the first one in the bundle, by way of the trusted one, to the last."""
    chain = {int(name.split(".")[0]): data for name, data in metadata.items() if name.endswith(".root.json")}
    with _role("root"):
        here = Metadata[Root].from_bytes(root).signed.version
    if sorted(chain) != list(range(min(chain, default=1), max(chain, default=0) + 1)):
        raise Refused("malformed", "root.json: the bundle's versions must be in a row")
    chain.setdefault(here, root)
    # The older ones are not needed; yet a bundle in which one is forged is none of ours.
    if chain[here] != root:
        raise Refused("signature", f"{here}.root.json is not the root that is trusted")
    first, *later = sorted(chain)
    with _role(f"{first}.root"):
        _check_form(chain[first])
        trusted = TrustedMetadataSet(chain[first], EnvelopeType.METADATA)
    trusted.reference_time = BEGINNING
    for version in later:
        with _role(f"{version}.root"):
            _check_form(chain[version])
            trusted.update_root(chain[version])
    return trusted, chain[max(chain)]


def _signed_heading(trusted: TrustedMetadataSet, index: bytes) -> Heading:
    """The index, if its digest is a target, and the target its own."""
    digest = Blob.of(index).digest.removeprefix("sha256:")
    signed = {name: target.hashes.get("sha256") for name, target in trusted.targets.targets.items()}
    names = [name for name, of in signed.items() if of == digest]
    if not names:
        raise Refused("digest", f"index.json: sha256:{digest} is not among the signed targets ({', '.join(signed)})")
    heading = Heading(index)
    if heading.target not in names and heading.target + NEXT not in names:
        raise Refused("name", f"index.json: says that it is {heading.target}, is signed as {', '.join(names)}")
    return heading


def _given(metadata: dict[str, bytes], role: str) -> bytes:
    data = metadata.get(f"{role}.json")
    if data is None:
        raise Refused("missing", f"{role}.json is not in the bundle")
    with _role(role):
        _check_form(data)
    return data


def _check_form(data: bytes) -> None:
    """As python-tuf writes it, to the byte: what is beside the signed part would be free to change otherwise."""
    metadata = Metadata.from_bytes(data)
    is_plain = metadata.to_bytes() == data and not metadata.unrecognized_fields
    for signature in metadata.signatures.values():
        text = signature.signature
        is_plain = is_plain and text == text.lower() and not signature.unrecognized_fields
    if not is_plain:
        raise RepositoryError("is not in the form that python-tuf writes")


@contextmanager
def _role(role: str) -> Iterator[None]:
    """python-tuf's errors as ours, with the file's name."""
    try:
        yield
    except UnsignedMetadataError as error:
        raise Refused("signature", f"{role}.json: {error}") from None
    except BadVersionNumberError as error:
        raise Refused("version", f"{role}.json: {error}") from None
    except LengthOrHashMismatchError as error:
        raise Refused("digest", f"{role}.json: {error}") from None
    except (RepositoryError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused("malformed", f"{role}.json: {error}") from None
