"""A node's bundles: what it serves, what it served before, and how one becomes the other.

    ROOT/lock             held by who changes anything
    ROOT/node.json        name, trusted metadata, the last accepted time, what was installed when
    ROOT/staging/         the next generation, while it grows; what is right in it already is not moved again
    ROOT/generations/8/   a whole one: KIND/NAME/PATH, and seal.json, which says what must be in it
    ROOT/current          a link to the generation that is served

A generation is complete on the disk before it gets its number, and `current` moves by one rename: there is always one that
works, and after a power cut the same installation goes on. Files are never written in place, since a process may have them
mapped. The generation before stays for `roll_back`.
"""

import errno
import os
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from .contents import Blob, Contents, time_text
from .disk import Disk
from .generations import Generation, Generations, Place
from .layout import Layout
from .lock import held
from .machine import Machine
from .profiles.profile import read_profile
from .refused import Refused
from .staging import Bytes, Staging
from .state import State
from .trust import Accepted, InForce, Trust, accept, first_trust, refresh

SPARE_BYTES = 1 << 20
"""What an installation needs beside the files: folders, seal and state."""

LARGEST_PROFILE_BYTES = 64 << 10


@dataclass(frozen=True)
class Installed:
    """is_new: whether something else was served before, or nothing."""

    generation: Generation
    accepted: Accepted
    is_new: bool
    bytes: Bytes = field(default_factory=Bytes)


class Node:
    """The bundles under one folder. machine: what the node is, if not the one that this runs on."""

    def __init__(self, root: Path, disk: Disk | None = None, machine: Machine | None = None) -> None:
        self.root = root
        self.generations = Generations(root / "generations")
        self._disk = disk or Disk()
        self._machine = machine or Machine.here()
        self._staging = root / "staging"

    @property
    def platform(self) -> str:
        return f"linux/{self._machine.architecture}"

    # Reading: by nobody's leave, also while an installation runs.

    def state(self) -> State | None:
        """Raises Refused."""
        try:
            return State.of((self.root / "node.json").read_bytes())
        except FileNotFoundError:
            return None

    def current(self) -> Generation | None:
        """What is served. Raises Refused."""
        try:
            target = os.readlink(self.root / "current")
        except FileNotFoundError:
            return None
        name = Path(target).name
        if not name.isdecimal():
            raise Refused("state", f"{self.root / 'current'} leads to {target}, must lead to a generation")
        return self.generations.read(int(name))

    # Changing

    def install(self, layout: Layout, clock: datetime, root: bytes | None = None, word: str = "") -> Installed:
        """Serve this bundle. root: the first root, on a node that has none yet. word: why expired metadata is taken, and by
        whom; it is recorded. Raises Refused, also where the disk is full; then the same call goes on later.
        """
        try:
            self._disk.need_folder(self.root)
            with self._alone():
                return self._install(layout, clock, root, word)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Refused("space", f"{self.root}: the disk is full; what is served is unchanged") from None
            raise

    def follow(self, metadata: dict[str, bytes], clock: datetime, name: str = "", root: bytes | None = None) -> InForce:
        """Keep newer metadata without a bundle, and say what it names; without any, what the metadata names that is kept.
        Expired metadata is not kept. name, root: of the bundles and the first one, on a node that has none yet. Raises Refused.
        """
        self._disk.need_folder(self.root)
        with self._alone():
            state = self.state()
            trust = self._trust(state, root)
            if state is None and not name:
                raise Refused("state", f"{self.root} has no bundles yet; give the name of those that it takes")
            if state and name not in ("", state.name):
                raise Refused("name", f"the node takes bundles of the name {state.name}, not {name}")
            found = refresh(trust, metadata, clock)
            if not found.expired and replace(found.trust, time=trust.time) != trust:
                state = replace(state, trust=found.trust) if state else State(name, found.trust)
                self._disk.put(self.root / "node.json", state.data())
            return found

    def roll_back(self) -> Generation:
        """Serve the generation before. Raises Refused."""
        if self.current() is None:
            raise Refused("state", f"{self.root} serves nothing")
        with self._alone():
            current = self.current()
            if current is None or current.before is None:
                raise Refused("state", f"{self.root} has no generation before the current one")
            before = self.generations.read(current.before)
            self.generations.check(before)
            self._disk.point(self.root / "current", f"generations/{before.number}")
            return before

    def make_room(self) -> None:
        """Remove staging, and the generations that were taken back or never came to be served. Raises Refused."""
        with self._alone():
            self._disk.remove_tree(self._staging)
            if current := self.current():
                self._remove_others(current)

    def _alone(self) -> AbstractContextManager[None]:
        return held(self.root / "lock", "installation")

    def _install(self, layout: Layout, clock: datetime, root: bytes | None, word: str) -> Installed:
        state = self.state()
        index = layout.index()
        accepted = self._accept(state, layout, index, clock, root, word)
        contents = layout.contents(index)
        self._check_profile(layout, contents)
        current: Generation | None = None
        with suppress(Refused):  # What is served may be damaged: then nothing stands before the new one.
            current = self.current()
        before = current.number if current else None
        generation = Generation(
            max(self.generations.numbers(), default=0) + 1,
            contents.name,
            contents.version,
            Blob.of(index).digest,
            clock,
            before,
            tuple(contents.files()),
        )
        there = self._there(generation)
        if there is None:
            self._need_space(contents, current)
        places = self.generations.places()
        _check_parts(layout, contents, places)
        # Before it is served, so that nothing older is accepted from here on.
        history = state.history if state else ()
        state = State(contents.name, accepted.trust, history).with_installation(generation, accepted.expired, word)
        self._disk.put(self.root / "node.json", state.data())
        if there is not None:
            self._serve(there)
            return Installed(there, accepted, is_new=there.number != before)
        done = Staging(self._staging, self._disk, layout, places).build(generation)
        self._disk.need_folder(self.generations.folder)
        self._disk.rename(self._staging, self.generations.path(generation.number))
        self._disk.sync_folder(self.generations.folder)
        self._serve(generation)
        return Installed(generation, accepted, True, done)

    def _accept(
        self, state: State | None, layout: Layout, index: bytes, clock: datetime, root: bytes | None, word: str
    ) -> Accepted:
        accepted = accept(self._trust(state, root), layout.metadata(), index, clock)
        heading = accepted.heading
        if state is not None and heading.name != state.name:
            raise Refused("name", f"the bundle is {heading.name}, must be {state.name}, which this node has")
        if heading.platform not in ("any", self.platform):
            raise Refused("platform", f"the bundle is for {heading.platform}, must be for {self.platform}")
        if accepted.expired and not word:
            ends = ", ".join(f"{role} {time_text(accepted.ends[role])}" for role in accepted.expired)
            raise Refused("expired", f"at {time_text(accepted.time)} there has expired: {ends}")
        return accepted

    def _trust(self, state: State | None, root: bytes | None) -> Trust:
        if state is not None:
            return state.trust
        if root is not None:
            return first_trust(root)
        raise Refused("state", f"{self.root} trusts no root yet; give the first one")

    def _check_profile(self, layout: Layout, contents: Contents) -> None:
        for file in contents.profile_files():
            if file.size > LARGEST_PROFILE_BYTES:
                raise Refused(
                    "malformed", f"{file.path} has {file.size} bytes, must have {LARGEST_PROFILE_BYTES} at most"
                )
            profile = read_profile(b"".join(chunk for part in file.parts for chunk in layout.chunks(part)), file.path)
            for lack in self._machine.unmet(profile):
                raise Refused("profile", f"the bundle is for {profile.name}: {lack}")

    def _there(self, wanted: Generation) -> Generation | None:
        """The same generation, whole: what is served, or what an installation left that was broken off just before its end."""
        for number in reversed(self.generations.numbers()):
            with suppress(Refused):
                found = self.generations.read(number)
                if found.index == wanted.index and wanted.before in (found.number, found.before):
                    self.generations.check(found)
                    return found
        return None

    def _serve(self, generation: Generation) -> None:
        target = f"generations/{generation.number}"
        link = self.root / "current"
        if not link.is_symlink() or os.readlink(link) != target:
            self._disk.point(link, target)
        self._remove_others(generation)

    def _remove_others(self, generation: Generation) -> None:
        """All but this one and the one before it."""
        for number in self.generations.numbers():
            if number not in (generation.number, generation.before):
                self._disk.remove_tree(self.generations.path(number))

    def _need_space(self, contents: Contents, current: Generation | None) -> None:
        staged = sum(path.lstat().st_size for path in self._staging.rglob("*") if path.is_file())
        need = sum(file.size for file in contents.files()) + SPARE_BYTES - staged
        if current is not None and need > self._disk.free_bytes(self.root):
            self._remove_others(current)
        free = self._disk.free_bytes(self.root)
        if need > free:
            raise Refused("space", f"{self.root} has {free} bytes free, must have {need}")


def _check_parts(layout: Layout, contents: Contents, places: dict[str, list[Place]]) -> None:
    missing = [part for part in contents.parts().values() if not layout.has(part) and part.digest not in places]
    if missing:
        raise Refused(
            "missing",
            f"{len(missing)} parts, {missing[0].digest} among them, are neither in the bundle nor on this node: "
            "it was made for a node that has another version",
        )
