"""A roll-out: which nodes take a version. It is said by the version's target in TUF's targets.json, as its custom metadata.

Two targets stand beside each other:

    sentences/any         the version in force, which every node takes
    sentences/any/next    the candidate with its roll-out, for the nodes that it counts in

A node is counted in when hash(node, version) lies below the share for its labels, so that raising a share only ever adds
nodes, and the next version begins with others. A node that has the candidate keeps it for as long as it is named, whatever
becomes of the share. A candidate that is withdrawn is named no longer: the metadata has moved forward, and what it names is
the older version, to which the nodes go back. Nothing here reads a clock or a file.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .contents import Blob, canonical, checked_version, target_of
from .refused import Refused

WHOLE = 10_000
"""A share is a whole number of hundredths of a percent: what TUF signs has no fractions."""

NEXT = "/next"
MOST_WITHDRAWN = 20


@dataclass(frozen=True)
class Member:
    """A node as a roll-out sees it."""

    name: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Rollout:
    """share: of all nodes, in [0, WHOLE]. by_labels: of the nodes that have these labels, `ring=canary,site=berlin`; the
    largest that fits a node counts. is_paused: nobody takes it who has it not.
    """

    share: int = 0
    by_labels: Mapping[str, int] = field(default_factory=dict)
    is_paused: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether every node is counted in."""
        return self.share == WHOLE and not self.is_paused

    def share_for(self, labels: Mapping[str, str]) -> int:
        fitting = [share for text, share in self.by_labels.items() if labels_of(text).items() <= labels.items()]
        return max([self.share, *fitting])

    def counts_in(self, member: Member, version: str) -> bool:
        """version: the digest of the bundle's index."""
        return not self.is_paused and place(member.name, version) < self.share_for(member.labels)

    def raised(self, share: int | None, by_labels: Mapping[str, int]) -> "Rollout":
        """With these shares, and not paused. Raises Refused for one that is less than before."""
        if share is None:
            share = self.share
        given: dict[str, tuple[int, int]] = {"": (share, self.share)}
        given |= {text: (each, self.by_labels.get(text, 0)) for text, each in by_labels.items()}
        for text, (new, old) in given.items():
            if new < old:
                raise Refused(
                    "state",
                    f"{text}{': ' if text else ''}{percent(new)} %, must be at least {percent(old)} %, which nodes have "
                    "been told already; `pause` stops a roll-out, `withdraw` takes it back",
                )
        return Rollout(share, {**self.by_labels, **by_labels})

    def paused(self) -> "Rollout":
        return replace(self, is_paused=True)


def place(node: str, version: str) -> int:
    """Where a node stands in the order in which it takes this version, in [0, WHOLE)."""
    digest = hashlib.sha256(canonical([node, version])).digest()
    return int.from_bytes(digest[:8]) * WHOLE >> 64


def percent(share: int) -> str:
    return f"{share / (WHOLE // 100):g}"


def labels_of(text: str) -> dict[str, str]:
    """Of `ring=canary,site=berlin`. Raises Refused."""
    labels: dict[str, str] = {}
    for part in text.split(",") if text else ():
        name, equals, value = part.partition("=")
        if not equals or not name or not part.isprintable() or " " in part or name in labels:
            raise Refused("malformed", f"labels = {text!r}, must be NAME=VALUE,… with each name once")
        labels[name] = value
    return labels


def labels_text(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))


@dataclass(frozen=True)
class Offer:
    """A target: a version that is in force or, with a roll-out, a candidate.

    attempt: a higher one than a node has failed with lets it try the same version again. withdrawn: the digests of
    candidates that were taken back, to which no node returns.
    """

    target: str
    index: Blob
    version: str
    attempt: int = 0
    rollout: Rollout | None = None
    withdrawn: tuple[str, ...] = ()

    def custom(self) -> dict[str, Any]:
        """What `offer_of` reads."""
        value: dict[str, Any] = {"version": self.version, "attempt": self.attempt}
        if self.rollout:
            shares = {"share": self.rollout.share, "by_labels": dict(self.rollout.by_labels)}
            value["rollout"] = shares | {"paused": self.rollout.is_paused}
        if self.withdrawn:
            value["withdrawn"] = list(self.withdrawn)
        return {"torpor": value}


def offer_of(target: str, index: Blob, custom: Any) -> Offer:
    """Raises Refused for custom metadata that it does not understand: who signed it meant something by it."""
    what = f"targets.json: {target}"
    value = custom.get("torpor", {}) if isinstance(custom, dict) else {}
    if not isinstance(value, dict):
        raise Refused("malformed", f"{what}: torpor must be an object")
    withdrawn = value.get("withdrawn", [])
    if not isinstance(withdrawn, list) or not all(isinstance(each, str) for each in withdrawn):
        raise Refused("malformed", f"{what}: withdrawn = {withdrawn!r}, must be a list of digests")
    rollout = _rollout_of(value.get("rollout"), what) if target.endswith(NEXT) else None
    attempt = _whole(value.get("attempt", 0), f"{what}: attempt", 1 << 53)
    version = checked_version(value["version"]) if "version" in value else ""
    return Offer(target, index, version, attempt, rollout, tuple(withdrawn))


def _rollout_of(value: Any, what: str) -> Rollout:
    by_labels = value.get("by_labels") if isinstance(value, dict) else None
    if not isinstance(by_labels, dict) or not isinstance(value.get("paused"), bool):
        raise Refused("malformed", f"{what}: rollout = {value!r}, must have share, by_labels and paused")
    shares = {}
    for text, share in by_labels.items():
        labels_of(text)
        shares[text] = _whole(share, f"{what}: the share of {text}", WHOLE)
    return Rollout(_whole(value.get("share"), f"{what}: share", WHOLE), shares, value["paused"])


def _whole(value: Any, what: str, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise Refused("malformed", f"{what} = {value!r}, must be in [0, {most}]")
    return value


@dataclass(frozen=True)
class Offers:
    """What the metadata names for nodes of one name and platform."""

    stable: Offer | None = None
    candidate: Offer | None = None

    @classmethod
    def among(cls, offers: Mapping[str, Offer], name: str, platform: str) -> "Offers":
        """Those for the platform; if there are none, those for any."""
        for target in (target_of(name, platform), target_of(name, "any")):
            if target in offers or target + NEXT in offers:
                return cls(offers.get(target), offers.get(target + NEXT))
        return cls()

    def wanted(self, member: Member, current: str | None, declined: Mapping[str, int]) -> Offer | None:
        """What the node takes; None where it stays. current: the digest that it serves. declined: by digest the attempt with
        which a version failed there, or was put aside by hand.
        """
        offer = self.stable
        if self.candidate and self.candidate.rollout and _is_open(self.candidate, declined):
            digest = self.candidate.index.digest
            if digest == current or self.candidate.rollout.counts_in(member, digest):
                offer = self.candidate
        if offer is None or offer.index.digest == current or not _is_open(offer, declined):
            return None
        return offer

    def all(self) -> list[Offer]:
        return [offer for offer in (self.stable, self.candidate) if offer]


def _is_open(offer: Offer, declined: Mapping[str, int]) -> bool:
    return declined.get(offer.index.digest, -1) < offer.attempt
