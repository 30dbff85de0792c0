"""Disks that fail: one that records every change, so that a power cut can be put between any two, and one that is full.

What a cut leaves: whatever was synced, and of the rest any part in any order, bytes torn. A rename is whole or not there.
"""

import errno
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from torpor.edge.disk import Disk

SECTOR_BYTES = 512


class Unsynced(Disk):
    """For what happens after the cut, which a test does hundreds of times."""

    def sync(self, file: int) -> None: ...

    def sync_folder(self, path: Path) -> None: ...


@dataclass
class Inode:
    """A file's bytes, a folder's entries, or a link's target; after a cut these are built anew from the changes."""

    kind: str
    data: bytearray = field(default_factory=bytearray)
    entries: dict[str, int] = field(default_factory=dict)
    target: str = ""
    mode: int = 0o644


@dataclass(frozen=True)
class Change:
    """of: the inode that must be synced for it to stay. what: entry, rename, bytes, cut or sync."""

    what: str
    of: int
    name: str = ""
    inode: int | None = None
    source: int = 0
    source_name: str = ""
    offset: int = 0
    data: bytes = b""


class RecordedDisk(Unsynced):
    """Works on the real one, below `root`, and writes down what it does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.inodes: dict[int, Inode] = {}
        self.changes: list[Change] = []
        self._numbers = count()
        self._open: dict[int, int] = {}
        self._top = self._scan(root)
        self._live = {number: dict(inode.entries) for number, inode in self.inodes.items()}

    def _scan(self, path: Path) -> int:
        number = next(self._numbers)
        if path.is_symlink():
            self.inodes[number] = Inode("link", target=os.readlink(path))
        elif path.is_dir():
            self.inodes[number] = Inode("folder")
            self.inodes[number].entries = {inner.name: self._scan(inner) for inner in sorted(path.iterdir())}
        else:
            self.inodes[number] = Inode("file", bytearray(path.read_bytes()))
        return number

    def _number(self, path: Path) -> int | None:
        number: int | None = self._top
        for step in path.relative_to(self.root).parts:
            number = self._live.get(number, {}).get(step) if number is not None else None
        return number

    def _enter(self, path: Path, inode: Inode | None) -> int:
        folder = self._number(path.parent)
        assert folder is not None, path
        number = next(self._numbers) if inode else None
        if inode is not None and number is not None:
            self.inodes[number] = inode
            self._live[folder][path.name] = number
            self._live[number] = {}
        else:
            del self._live[folder][path.name]
        self.changes.append(Change("entry", folder, path.name, number))
        return -1 if number is None else number

    def make_folder(self, path: Path) -> None:
        super().make_folder(path)
        self._enter(path, Inode("folder"))

    def open(self, path: Path, mode: int) -> int:
        is_new = not path.exists()
        file = super().open(path, mode)
        number = self._enter(path, Inode("file", mode=mode)) if is_new else self._number(path)
        assert number is not None
        self._open[file] = number
        return file

    def write(self, file: int, offset: int, data: bytes) -> None:
        super().write(file, offset, data)
        self.changes.append(Change("bytes", self._open[file], offset=offset, data=bytes(data)))

    def cut(self, file: int, size: int) -> None:
        super().cut(file, size)
        self.changes.append(Change("cut", self._open[file], offset=size))

    def sync(self, file: int) -> None:
        self.changes.append(Change("sync", self._open[file]))

    def sync_folder(self, path: Path) -> None:
        number = self._number(path)
        assert number is not None
        self.changes.append(Change("sync", number))

    def rename(self, source: Path, target: Path) -> None:
        number, old, new = self._number(source), self._number(source.parent), self._number(target.parent)
        assert number is not None
        assert old is not None
        assert new is not None
        super().rename(source, target)
        del self._live[old][source.name]
        self._live[new][target.name] = number
        self.changes.append(Change("rename", new, target.name, number, old, source.name))

    def link(self, path: Path, target: str) -> None:
        super().link(path, target)
        self._enter(path, Inode("link", target=target))

    def remove(self, path: Path) -> None:
        super().remove(path)
        self._enter(path, None)

    # Cuts

    def after_cut(self, at: int, chance: random.Random | None, share: float, place: Path) -> None:
        """What is there if the power goes before change `at`: write it to `place`. share: of what was not synced that has
        come through, chosen by `chance`.
        """
        changes = self.changes[:at]
        last_sync: dict[int, int] = {}
        for number, change in enumerate(changes):
            if change.what == "sync":
                last_sync[change.of] = number
        inodes = {
            number: Inode(inode.kind, bytearray(inode.data), dict(inode.entries), inode.target, inode.mode)
            for number, inode in self.inodes.items()
        }
        for number, change in enumerate(changes):
            if change.what == "sync":
                continue
            is_synced = last_sync.get(change.of, -1) > number
            if is_synced or (chance.random() < share if chance else share == 1):
                _apply(inodes, change, None if is_synced else chance)
        _write_out(inodes, 0, place)


def _apply(inodes: dict[int, Inode], change: Change, chance: random.Random | None) -> None:
    inode = inodes[change.of]
    if change.what == "entry":
        if change.inode is None:
            inode.entries.pop(change.name, None)
        else:
            inode.entries[change.name] = change.inode
    elif change.what == "rename":
        assert change.inode is not None
        if inodes[change.source].entries.get(change.source_name) == change.inode:
            del inodes[change.source].entries[change.source_name]
        inode.entries[change.name] = change.inode
    elif change.what == "cut":
        del inode.data[change.offset :]
    else:
        end = change.offset + len(change.data)
        inode.data.extend(bytes(max(0, end - len(inode.data))))
        for start in range(0, len(change.data), SECTOR_BYTES):
            if chance is None or chance.random() < 0.5:
                sector = change.data[start : start + SECTOR_BYTES]
                inode.data[change.offset + start : change.offset + start + len(sector)] = sector


def _write_out(inodes: dict[int, Inode], number: int, place: Path) -> None:
    inode = inodes[number]
    if inode.kind == "folder":
        place.mkdir(exist_ok=True)
        for name, inner in inode.entries.items():
            _write_out(inodes, inner, place / name)
    elif inode.kind == "link":
        place.symlink_to(inode.target)
    else:
        place.write_bytes(inode.data)
        place.chmod(inode.mode)


class FullDisk(Unsynced):
    """Full from the change number `at` on."""

    def __init__(self, at: int) -> None:
        self._left = at

    def _step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def make_folder(self, path: Path) -> None:
        self._step()
        super().make_folder(path)

    def open(self, path: Path, mode: int) -> int:
        self._step()
        return super().open(path, mode)

    def write(self, file: int, offset: int, data: bytes) -> None:
        try:
            self._step()
        except OSError:
            # As a real one: some of it is written.
            super().write(file, offset, data[: len(data) // 2])
            raise
        super().write(file, offset, data)

    def sync(self, file: int) -> None:
        self._step()

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    def link(self, path: Path, target: str) -> None:
        self._step()
        super().link(path, target)


def steps(disk: RecordedDisk) -> Iterator[int]:
    """Where the power may go: before each change, and after the last."""
    return iter(range(len(disk.changes) + 1))
