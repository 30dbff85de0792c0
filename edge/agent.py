"""A node's agent: it asks mirrors what is in force, and takes it; there is no coordinator.

    poll ── newer metadata? ── wanted? ── download ── install ── bring up ── answers? ── healthy
                                                                    └── no: the version before again, and never this one

What must not be forgotten is written before it is done: a trial before the switch, a verdict before the way back. So a power
cut at any point leaves a node that knows what it was about, and a version that takes the node down with it is given up after
MOST_STARTS. What an operator installs or takes back by hand stays until the metadata names something else.

Here is neither a clock nor a wait: `round` is one look, and whoever calls it decides when.
"""

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from torpor.predictors.errors import Unavailable

from .agent_state import AgentState, Trial
from .contents import time_text
from .disk import Disk
from .download import Download
from .generations import Generation
from .layout import LARGEST_METADATA_BYTES, MOST_METADATA, Layout
from .lock import held
from .node import Node
from .origin import NotThere, Origin
from .refused import Refused
from .reports import STRUCTURED, is_for_later, written
from .rollout import Member, Offer, Offers, offer_of
from .trust import InForce, Trust, files, first_trust, named_version, next_root

MOST_STARTS = 3
"""Of a version on trial whose agent never came to a verdict."""

WRONG_CLOCK_S = 60.0

OF_THE_NODE = ("busy", "space", "state", "name", "platform", "profile")
"""Refusals that another mirror would not change."""


class Stopped(BaseException):
    """What `interruptible` raises where the agent is to end; the next one goes on from there."""


@dataclass(frozen=True)
class Identity:
    """member: who the node is. bundle: the name of the bundles that it takes, '' for those that it has. root: the first root,
    for a node that has none.
    """

    member: Member
    bundle: str = ""
    root: bytes | None = None


class Agent:
    """bring_up: serves what is current; '' or what was wrong. receiver: of reports, None for nowhere. log: gets a line for
    whatever happens. interruptible: held while it only waits for others.
    """

    def __init__(
        self,
        root: Path,
        identity: Identity,
        mirrors: Sequence[Origin],
        bring_up: Callable[[Generation], str],
        now: Callable[[], datetime],
        receiver: Origin | None = None,
        log: Callable[[str], None] = lambda line: None,
        disk: Disk | None = None,
        interruptible: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._root = root
        self._node = Node(root, disk)
        self._disk = disk or Disk()
        self._identity = identity
        self._mirrors = list(mirrors)
        self._bring_up = bring_up
        self._now = now
        self._receiver = receiver
        self._log = log
        self._interruptible = interruptible
        self._download = Download(root / "download", self._disk, self._tampered, interruptible)
        self._state = AgentState()
        self._is_new = True
        self._about = ("", "")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the node's only agent, which goes on from what the last one has left. Raises Refused, OSError."""
        self._disk.need_folder(self._root)
        with held(self._root / "agent.lock", "agent"):
            try:
                self._state = self._read_state()
                yield
            finally:
                self._close()

    def round(self) -> str:
        """One look at a mirror, and what follows from it; '' or what stood in the way, which is said as well."""
        trouble = self._look()
        self._send()
        self._mirrors.append(self._mirrors.pop(0))  # One that stands still is noticed by way of the others.
        self._close()
        return trouble

    def _look(self) -> str:
        try:
            self._settle()
            if self._is_new:
                self._is_new = False
                self._say_serving()
            self._about = ("", "")
            self._take(self._offers(self._follow()))
            self._may_say_again("waiting")
            return ""
        except Refused as refused:
            if refused.reason == "space":
                self._make_room()
            waits = refused.reason in (*OF_THE_NODE, "expired")
            return self._say("waiting" if waits else "refused", refused.reason, str(refused))
        except Unavailable as error:
            return self._say("waiting", "unavailable", str(error))
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            if is_full:
                self._make_room()
            return self._say(
                "waiting", "space" if is_full else "state", f"{error.filename or self._root}: {error.strerror}"
            )

    # What is in force

    def _follow(self) -> InForce:
        """By the first mirror whose metadata is acceptable. Raises Refused, Unavailable, OSError."""
        troubles = []
        expired: Refused | None = None
        for mirror in self._mirrors:
            try:
                with self._interruptible():
                    metadata = self._newer(mirror)
                identity = self._identity
                found = self._node.follow(metadata, self._now(), identity.bundle, identity.root)
            except Unavailable as error:
                mirror.forget()
                troubles.append(str(error))
            except Refused as refused:
                mirror.forget()
                if refused.reason in OF_THE_NODE:
                    raise
                self._say("refused", refused.reason, f"{mirror}: {refused}", str(mirror))
                troubles.append(f"{mirror}: {refused}")
            else:
                if not found.expired:
                    return found
                mirror.forget()
                expired = expired or Refused("expired", self._expired(found, mirror))
        if expired:
            raise expired
        raise Unavailable("; ".join(troubles))

    def _newer(self, mirror: Origin) -> dict[str, bytes]:
        """The metadata that is newer than what the node keeps; {} if there is none. Raises Refused, Unavailable."""
        timestamp = mirror.get_changed("timestamp.json", LARGEST_METADATA_BYTES)
        trust = self._trust()
        if timestamp is None or timestamp == trust.timestamp:
            return {}
        found = {}
        with suppress(NotThere):
            for version in range(next_root(trust), next_root(trust) + MOST_METADATA):
                found[f"{version}.root.json"] = mirror.get(f"{version}.root.json", LARGEST_METADATA_BYTES)
        version = named_version(timestamp, "timestamp")
        snapshot = mirror.get(f"{version}.snapshot.json", LARGEST_METADATA_BYTES)
        version = named_version(snapshot, "snapshot")
        targets = mirror.get(f"{version}.targets.json", LARGEST_METADATA_BYTES)
        return found | {"timestamp.json": timestamp, "snapshot.json": snapshot, "targets.json": targets}

    def _trust(self) -> Trust:
        state = self._node.state()
        if state:
            return state.trust
        if self._identity.root is None:
            raise Refused("state", f"{self._root} trusts no root yet; give the first one")
        return first_trust(self._identity.root)

    def _offers(self, found: InForce) -> Offers:
        offers = {name: offer_of(name, index, custom) for name, (index, custom) in found.targets.items()}
        state = self._node.state()
        return Offers.among(offers, state.name if state else self._identity.bundle, self._node.platform)

    def _expired(self, found: InForce, mirror: Origin) -> str:
        ends = ", ".join(f"{role} {time_text(found.ends[role])}" for role in found.expired)
        text = f"at {time_text(found.time)} there has expired: {ends}"
        ahead_s = (self._now() - mirror.date).total_seconds() if mirror.date else 0.0
        return f"{text}; the clock is {ahead_s / 3600:.1f} h ahead of {mirror}'s" if ahead_s > WRONG_CLOCK_S else text

    # Taking

    def _take(self, offers: Offers) -> None:
        """What is wanted, if anything is. Raises Refused, Unavailable, OSError."""
        current = self._current()
        named = {offer.index.digest: offer.attempt for offer in offers.all()}
        declined = {digest: attempt for digest, attempt in self._state.declined.items() if digest in named}
        digest = current.index if current else ""
        if digest not in ("", self._state.left):
            if self._state.left:
                # Somebody has chosen this one: nothing that is named now is taken instead.
                declined = {each: attempt for each, attempt in named.items() if each != digest}
                self._say_serving()
            self._put(replace(self._state, left=digest, declined=declined))
        elif declined != self._state.declined:
            self._put(replace(self._state, declined=declined))
        offer = offers.wanted(self._identity.member, digest or None, declined)
        if offer is None:
            if offers.candidate is None:  # Else a roll-out that is paused goes on with what has come.
                self._download.clear()
            return
        self._about = (offer.version, offer.index.digest)
        self._log(f"taking {offer.version}")
        withdrawn = offers.stable.withdrawn if offers.stable else ()
        trial = Trial(offer.index.digest, offer.version, offer.attempt, has_way_back=digest not in withdrawn)
        if not self._switch_back(current, trial):
            self._switch(offer, trial)
        self._judge()

    def _switch_back(self, current: Generation | None, trial: Trial) -> bool:
        """To the generation before, if it is what is wanted: that needs neither room nor a mirror."""
        try:
            if current is None or current.before is None:
                return False
            if self._node.generations.read(current.before).index != trial.index:
                return False
            self._put(replace(self._state, trial=trial))
            self._node.roll_back()
        except Refused:
            return False  # It is damaged.
        return True

    def _switch(self, offer: Offer, trial: Trial) -> None:
        metadata = files(self._trust())
        places = self._node.generations.places()
        for have in (places, {}):
            folder, came = self._download.bundle(offer.index, have, metadata, self._mirrors)
            self._log(f"{came} bytes came for {offer.version}")
            self._put(replace(self._state, trial=trial))
            try:
                with Layout.at(folder) as layout:
                    self._node.install(layout, self._now())
                break
            except Refused as refused:
                # A part that a generation should have is damaged there, so that it must come after all.
                if refused.reason != "missing" or not have:
                    raise
        self._download.clear()

    # The verdict

    def _settle(self) -> None:
        """Bring a trial to its end that was broken off."""
        trial = self._state.trial
        if trial is None:
            return
        self._about = (trial.version, trial.index)
        if self._serves() == trial.index or trial.wrong:
            self._judge()
            self._download.clear()
        else:
            self._put(replace(self._state, trial=None))

    def _judge(self) -> None:
        trial = self._state.trial
        assert trial is not None
        if not trial.wrong:
            trial = replace(trial, wrong=self._try(trial))
        if not trial.wrong:
            self._end_trial(replace(self._state, left=trial.index), "healthy")
            return
        self._log(f"{trial.version} failed: {trial.wrong}")
        self._put(replace(self._state, trial=trial))
        text = f"{trial.wrong}; {self._go_back(trial)}"
        declined = {**self._state.declined, trial.index: trial.attempt}
        self._end_trial(replace(self._state, left=self._serves(), declined=declined), "failed", text)

    def _try(self, trial: Trial) -> str:
        """'' if the version answers."""
        current = self._current()
        if current is None:
            return "it cannot be read"
        if trial.starts == MOST_STARTS:
            return f"it was brought up {trial.starts} times without a verdict"
        self._put(replace(self._state, trial=replace(trial, starts=trial.starts + 1)))
        try:
            return self._bring_up(current)
        except Stopped:
            self._put(replace(self._state, trial=trial))
            raise

    def _go_back(self, trial: Trial) -> str:
        """What became of it, for the report."""
        if self._serves() == trial.index:
            if not trial.has_way_back:
                return "it stays, since the version before was withdrawn"
            try:
                self._node.roll_back()
            except Refused as refused:
                if refused.reason == "busy":
                    raise
                return f"it stays: {refused}"
        current = self._current()
        if current is None:
            return "nothing is served"
        wrong = self._bring_up(current)
        return f"{current.version} is served again" + (f", and fails too: {wrong}" if wrong else "")

    def _end_trial(self, state: AgentState, outcome: str, text: str = "") -> None:
        self._put(self._with_report(replace(state, trial=None, said=()), outcome, text=text))

    def _current(self) -> Generation | None:
        with suppress(Refused):
            return self._node.current()
        return None

    def _serves(self) -> str:
        current = self._current()
        return current.index if current else ""

    def _make_room(self) -> None:
        with suppress(Refused, OSError):
            self._download.clear()
            self._node.make_room()

    # What is said

    def _say_serving(self) -> None:
        if current := self._current():
            self._about = (current.version, current.index)
            self._keep(self._with_report(self._state, "serving"))

    def _say(self, outcome: str, reason: str, text: str, mirror: str = "") -> str:
        """The text; it is reported once, until something changes."""
        gist = " ".join((outcome, reason, self._about[1], mirror))
        if gist not in self._state.said:
            self._keep(self._with_report(self._state.having_said(gist), outcome, reason, text))
        return text

    def _may_say_again(self, outcome: str) -> None:
        said = tuple(gist for gist in self._state.said if not gist.startswith(outcome))
        if said != self._state.said:
            self._keep(replace(self._state, said=said))

    def _tampered(self, mirror: Origin, digest: str) -> None:
        self._say("refused", "digest", f"{mirror} gives other bytes than {digest}", str(mirror))

    def _with_report(self, state: AgentState, outcome: str, reason: str = "", text: str = "") -> AgentState:
        version, index = self._about
        self._log(" ".join(filter(None, (outcome, version, text))))
        if self._receiver is None:
            return state
        member, more = self._identity.member, {"version": version, "index": index, "reason": reason, "text": text}
        return state.with_report(written(member, self._identity.bundle, outcome, self._now(), **more))

    def _send(self) -> None:
        """What is received, or will never be, is forgotten; the rest is sent in the next round."""
        left = list(self._state.reports)
        while left and self._receiver:
            try:
                with self._interruptible():
                    status = self._receiver.post(left[0].encode(), STRUCTURED)
            except Unavailable as error:
                self._log(str(error))
                break
            if not 200 <= status < 300:
                self._log(f"{self._receiver} answered a report with {status}")
            if is_for_later(status):
                break
            left.pop(0)
        if len(left) != len(self._state.reports):
            self._keep(replace(self._state, reports=tuple(left)))

    # What is remembered

    def _read_state(self) -> AgentState:
        try:
            return AgentState.of((self._root / "agent.json").read_bytes())
        except FileNotFoundError:
            return AgentState()
        except Refused as refused:
            self._log(f"{refused}; it is begun anew")
            return AgentState()

    def _put(self, state: AgentState) -> None:
        """On the disk before anything that follows. Raises OSError."""
        self._disk.put(self._root / "agent.json", state.data())
        self._state = state

    def _keep(self, state: AgentState) -> None:
        """On the disk if there is room; nothing depends on it."""
        try:
            self._put(state)
        except OSError as error:
            self._log(f"agent.json: {error.strerror}")
            self._state = state

    def _close(self) -> None:
        for origin in (*self._mirrors, *([self._receiver] if self._receiver else [])):
            origin.close()
