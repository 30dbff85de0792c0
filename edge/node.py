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
import fcntl
import hashlib
import os
import platform
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from .contents import Blob, Contents, File, canonical, files_of, files_value, parsed, time_of, time_text
from .disk import Disk
from .layout import CHUNK_BYTES, Layout, checked
from .refused import Refused
from .trust import Accepted, Trust, accept, first_trust

SPARE_BYTES = 1 << 20
"""What an installation needs beside the files: folders, seal and state."""

MOST_HISTORY = 100

_PLATFORMS = {"x86_64": "linux/amd64", "aarch64": "linux/arm64", "armv7l": "linux/arm", "armv6l": "linux/arm"}


def platform_here() -> str:
    return _PLATFORMS.get(platform.machine(), f"linux/{platform.machine()}")


@dataclass(frozen=True)
class Generation:
    """number: of its folder. before: the one that was current when it came, if any. index: the digest that was signed."""

    number: int
    bundle: str
    version: str
    index: str
    installed: datetime
    before: int | None
    files: tuple[File, ...]

    def seal(self) -> bytes:
        return canonical(
            {
                "bundle": self.bundle,
                "version": self.version,
                "index": self.index,
                "installed": time_text(self.installed),
                "before": self.before,
                **files_value(self.files),
            }
        )


@dataclass(frozen=True)
class State:
    """node.json. name: of the bundles that the node takes. history: the installations, the last ones at the end."""

    name: str
    trust: Trust
    history: tuple[dict[str, Any], ...] = ()

    def data(self) -> bytes:
        trust = self.trust
        files = {"root": trust.root, "timestamp": trust.timestamp, "snapshot": trust.snapshot, "targets": trust.targets}
        return canonical(
            {
                "name": self.name,
                "trust": {role: data.decode() for role, data in files.items() if data is not None},
                "time": time_text(trust.time),
                "history": list(self.history[-MOST_HISTORY:]),
            }
        )

    @classmethod
    def of(cls, data: bytes) -> "State":
        """Raises Refused."""
        value = parsed(data, "node.json")
        trust = value.get("trust", {})
        try:
            files = {
                role: trust[role].encode() for role in ("root", "timestamp", "snapshot", "targets") if role in trust
            }
            return cls(
                value["name"], Trust(**files, time=time_of(value["time"], "node.json: time")), tuple(value["history"])
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise Refused("state", f"node.json is damaged: {error!r}") from None


@dataclass
class Installed:
    """What an installation did. moved_bytes: read from the bundle; found_bytes: taken from the node's own generations;
    kept_bytes: left in staging by an installation that was broken off.
    """

    generation: Generation
    accepted: Accepted
    is_new: bool = True
    moved_bytes: int = 0
    found_bytes: int = 0
    kept_bytes: int = 0


@dataclass(frozen=True)
class _Place:
    """Where the node has a part's bytes."""

    path: Path
    offset: int


@dataclass
class _Work:
    """Of one installation."""

    layout: Layout
    places: dict[str, list[_Place]]


class Node:
    """The bundles under one folder."""

    def __init__(self, root: Path, disk: Disk | None = None, platform: str = "") -> None:
        self.root = root
        self._disk = disk or Disk()
        self._platform = platform or platform_here()
        self._generations = root / "generations"
        self._staging = root / "staging"

    # Reading: by nobody's leave, also while an installation runs.

    def state(self) -> State | None:
        """Raises Refused."""
        try:
            return State.of((self.root / "node.json").read_bytes())
        except FileNotFoundError:
            return None

    def current(self) -> Generation | None:
        """Raises Refused."""
        try:
            target = os.readlink(self.root / "current")
        except FileNotFoundError:
            return None
        name = Path(target).name
        if not name.isdecimal():
            raise Refused("state", f"{self.root / 'current'} leads to {target}, must lead to a generation")
        return self.generation(int(name))

    def generation(self, number: int) -> Generation:
        """Raises Refused."""
        what = f"generation {number}: its seal"
        try:
            value = parsed((self._generations / str(number) / "seal.json").read_bytes(), what)
        except OSError as error:
            raise Refused("state", f"{what} cannot be read: {error.strerror}") from None
        try:
            before = value["before"]
            installed = time_of(value["installed"], what)
            names = value["bundle"], value["version"], value["index"]
            return Generation(number, *names, installed, before, files_of(value, what))
        except KeyError as error:
            raise Refused("state", f"{what} has no {error}") from None

    def numbers(self) -> list[int]:
        """Of the generations that are there."""
        if not self._generations.is_dir():
            return []
        return sorted(int(path.name) for path in self._generations.iterdir() if path.name.isdecimal())

    def check(self, generation: Generation) -> None:
        """Read all of its files. Raises Refused for the first that is not what it was."""
        for file in generation.files:
            path = self._generations / str(generation.number) / file.path
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError as error:
                raise Refused("state", f"{path} cannot be read: {error.strerror}") from None
            try:
                if os.fstat(descriptor).st_size != file.size:
                    raise Refused("digest", f"{path} must have {file.size} bytes")
                offset = 0
                for part in file.parts:
                    if not _holds(descriptor, offset, part):
                        raise Refused("digest", f"{path} is not what was installed, from byte {offset} on")
                    offset += part.size
            finally:
                os.close(descriptor)

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

    def roll_back(self) -> Generation:
        """Serve the generation before. Raises Refused."""
        if self.current() is None:
            raise Refused("state", f"{self.root} serves nothing")
        with self._alone():
            current = self.current()
            if current is None or current.before is None:
                raise Refused("state", f"{self.root} has no generation before the current one")
            before = self.generation(current.before)
            self.check(before)
            self._disk.point(self.root / "current", f"generations/{before.number}")
            return before

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The lock goes with the process, however that ends."""
        lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused("busy", f"{self.root}: another installation runs") from None
            yield
        finally:
            os.close(lock)

    def _install(self, layout: Layout, clock: datetime, root: bytes | None, word: str) -> Installed:
        state = self.state()
        if state is None:
            if root is None:
                raise Refused("state", f"{self.root} trusts no root yet; give the first one")
            trust = first_trust(root)
        else:
            trust = state.trust
        index = layout.index()
        accepted = accept(trust, layout.metadata(), index, clock)
        heading = accepted.heading
        if state is not None and heading.name != state.name:
            raise Refused("name", f"the bundle is {heading.name}, must be {state.name}, which this node has")
        if heading.platform not in ("any", self._platform):
            raise Refused("platform", f"the bundle is for {heading.platform}, must be for {self._platform}")
        if accepted.expired and not word:
            ends = ", ".join(f"{role} {time_text(accepted.ends[role])}" for role in accepted.expired)
            raise Refused("expired", f"at {time_text(accepted.time)} there has expired: {ends}")
        contents = layout.contents(index)
        current = self.current()
        work = _Work(layout, self._places())
        self._check_parts(work, contents)
        generation = Generation(
            max(self.numbers(), default=0) + 1,
            heading.name,
            heading.version,
            Blob.of(index).digest,
            clock,
            current.number if current else None,
            tuple(contents.files()),
        )
        # Before anything is served by it, so that nothing older is accepted from here on.
        history = state.history if state else ()
        record = {
            "at": time_text(clock),
            "version": heading.version,
            "index": generation.index,
            **({"expired": list(accepted.expired), "word": word} if accepted.expired else {}),
        }
        if not history or {**history[-1], "at": None} != {**record, "at": None}:
            history = (*history, record)
        state = State(heading.name, accepted.trust, history)
        if (there := self._there(generation, current)) is not None:
            self._save(state)
            self._serve(there)
            return Installed(there, accepted, is_new=there is not current)
        self._check_space(contents)
        self._save(state)
        installed = Installed(generation, accepted)
        self._build(work, installed)
        self._serve(generation)
        return installed

    def _there(self, wanted: Generation, current: Generation | None) -> Generation | None:
        """The same generation, whole: current, or left by an installation that was broken off just before its end."""
        for number in reversed(self.numbers()):
            with suppress(Refused):
                found = self.generation(number)
                is_current = current is not None and found.number == current.number
                if found.index == wanted.index and (is_current or found.before == wanted.before):
                    self.check(found)
                    return current if is_current else found
        return None

    def _save(self, state: State) -> None:
        self._disk.put(self.root / "node.json", state.data())

    def _serve(self, generation: Generation) -> None:
        target = f"generations/{generation.number}"
        link = self.root / "current"
        if not link.is_symlink() or os.readlink(link) != target:
            self._disk.point(link, target)
        for number in self.numbers():
            if number not in (generation.number, generation.before):
                self._disk.remove_tree(self._generations / str(number))

    def _check_parts(self, work: _Work, contents: Contents) -> None:
        missing = [
            part for part in contents.parts().values() if not work.layout.has(part) and part.digest not in work.places
        ]
        if missing:
            raise Refused(
                "missing",
                f"{len(missing)} parts, {missing[0].digest} among them, are neither in the bundle nor on this node: "
                "it was made for a node that has another version",
            )

    def _check_space(self, contents: Contents) -> None:
        staged = sum(path.lstat().st_size for path in self._staging.rglob("*") if path.is_file())
        need = sum(file.size for file in contents.files()) + SPARE_BYTES - staged
        free = self._disk.free_bytes(self.root)
        if need > free:
            raise Refused("space", f"{self.root} has {free} bytes free, must have {need}")

    def _places(self) -> dict[str, list[_Place]]:
        """Where the whole generations have which part; whoever reads there checks it."""
        places: dict[str, list[_Place]] = {}
        for number in self.numbers():
            with suppress(Refused):
                for file in self.generation(number).files:
                    offset = 0
                    for part in file.parts:
                        place = _Place(self._generations / str(number) / file.path, offset)
                        places.setdefault(part.digest, []).append(place)
                        offset += part.size
        return places

    def _build(self, work: _Work, installed: Installed) -> None:
        generation = installed.generation
        disk = self._disk
        wanted = {self._staging / file.path for file in generation.files}
        folders = {
            self._staging,
            *(folder for path in wanted for folder in path.parents if self._staging in folder.parents),
        }
        if self._staging.is_dir():
            self._clear(self._staging, wanted, folders)
        for folder in sorted(folders):
            if not folder.is_dir():
                disk.make_folder(folder)
        for file in generation.files:
            self._stage(work, installed, file)
        disk.put(self._staging / "seal.json", generation.seal())
        for folder in sorted(folders, reverse=True):
            disk.sync_folder(folder)
        disk.need_folder(self._generations)
        disk.rename(self._staging, self._generations / str(generation.number))
        disk.sync_folder(self._generations)
        disk.sync_folder(self.root)

    def _clear(self, folder: Path, wanted: set[Path], folders: set[Path]) -> None:
        """What an installation that was broken off has left, and this one does not want."""
        for path in sorted(folder.iterdir()):
            mode = path.lstat().st_mode
            if path in folders and stat.S_ISDIR(mode):
                self._clear(path, wanted, folders)
            elif path not in wanted or not stat.S_ISREG(mode):
                self._disk.remove_tree(path)

    def _stage(self, work: _Work, installed: Installed, file: File) -> None:
        disk = self._disk
        target = disk.open(self._staging / file.path, 0o755 if file.executable else 0o644)
        try:
            size = os.fstat(target).st_size
            offset = 0
            for part in file.parts:
                if part.size and offset + part.size <= size and _holds(target, offset, part):
                    installed.kept_bytes += part.size
                elif any(self._found(place, target, offset, part) for place in work.places.get(part.digest, ())):
                    installed.found_bytes += part.size
                else:
                    self._write(target, offset, work.layout.chunks(part))
                    installed.moved_bytes += part.size
                offset += part.size
            if size > offset:
                disk.cut(target, offset)
            disk.sync(target)
        finally:
            disk.close(target)

    def _found(self, place: _Place, target: int, offset: int, part: Blob) -> bool:
        """Whether a generation has given the part; one whose file is damaged has not."""
        try:
            source = os.open(place.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            chunks = checked(_range(source, place.offset, part.size), part, str(place.path))
            self._write(target, offset, chunks)
        except Refused:
            return False
        finally:
            os.close(source)
        return True

    def _write(self, target: int, offset: int, chunks: Iterator[bytes]) -> None:
        for chunk in chunks:
            self._disk.write(target, offset, chunk)
            offset += len(chunk)


def _holds(file: int, offset: int, part: Blob) -> bool:
    digest = hashlib.sha256()
    for chunk in _range(file, offset, part.size):
        digest.update(chunk)
    return "sha256:" + digest.hexdigest() == part.digest


def _range(file: int, offset: int, size: int) -> Iterator[bytes]:
    for start in range(0, size, CHUNK_BYTES):
        yield os.pread(file, min(CHUNK_BYTES, size - start), offset + start)
