"""A bundle as one file: a tar of a single form, so that no two readers can see different things in it.

Members are plain files in the order of their names, with one header block each, its fields fixed but for name and size
(POSIX ustar, which every tar reads); then two blocks of zeros. The reader makes the header that must be there and compares.
So links, devices, extensions, sparse files, doubled names and paths that lead elsewhere have no way in, and no byte of the
archive is without a meaning.
"""

import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from .refused import Refused

BLOCK_BYTES = 512
MOST_MEMBERS = 200_000
"""A bundle of a thousand models has some; the list of members is held in memory."""

_TYPES = {b"1": "a hard link", b"2": "a link", b"3": "a device", b"4": "a device", b"5": "a folder", b"6": "a pipe"}


@dataclass(frozen=True, slots=True)
class Member:
    """Where the bytes of a member lie in the archive."""

    offset: int
    size: int


def header(name: str, size: int) -> bytes:
    """Of a member. The name is ASCII, below 100 bytes. Raises ValueError for a size that the field does not hold."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def write_archive(out: BinaryIO, members: Iterable[tuple[str, int, Iterable[bytes]]]) -> None:
    """members: name, size and bytes of each, by ascending names."""
    for name, size, chunks in members:
        out.write(header(name, size))
        for chunk in chunks:
            out.write(chunk)
        out.write(bytes(-size % BLOCK_BYTES))
    out.write(bytes(2 * BLOCK_BYTES))


class Archive:
    """A bundle in one file. Reading its list of members touches their headers only."""

    def __init__(self, path: Path) -> None:
        """Raises Refused, OSError."""
        self._file: BufferedReader = path.open("rb")
        self._path = path
        try:
            self.members = self._read_members(os.fstat(self._file.fileno()).st_size)
        except Refused:
            self._file.close()
            raise

    def _read_members(self, total: int) -> dict[str, Member]:
        members: dict[str, Member] = {}
        last, offset = "", 0
        while True:
            block = os.pread(self._file.fileno(), BLOCK_BYTES, offset)
            if block == bytes(BLOCK_BYTES):
                break
            name, size = self._member(block, offset)
            if name <= last:
                raise Refused("malformed", f"{self._path}: {name} after {last}, must be in ascending order, each once")
            if len(members) == MOST_MEMBERS:
                raise Refused("malformed", f"{self._path}: must have at most {MOST_MEMBERS} members")
            start = offset + BLOCK_BYTES
            offset = start + size + -size % BLOCK_BYTES
            if offset > total:
                raise Refused("malformed", f"{self._path}: ends within {name}")
            if any(os.pread(self._file.fileno(), offset - start - size, start + size)):
                raise Refused("malformed", f"{self._path}: the padding behind {name} must be zeros")
            members[name], last = Member(start, size), name
        if os.pread(self._file.fileno(), 3 * BLOCK_BYTES, offset) != bytes(2 * BLOCK_BYTES):
            raise Refused("malformed", f"{self._path}: must end with two blocks of zeros")
        return members

    def _member(self, block: bytes, offset: int) -> tuple[str, int]:
        where = f"{self._path}: at byte {offset}"
        try:
            name, size = block[:100].rstrip(b"\0").decode("ascii"), int(block[124:135], 8)
            wanted = header(name, size)
        except ValueError:
            raise Refused("malformed", f"{where}: no header of a member, or the archive is cut off") from None
        if kind := _TYPES.get(block[156:157]):
            raise Refused("link", f"{where}: {name!r} is {kind}, must be a file")
        if block != wanted:
            raise Refused("malformed", f"{where}: {name!r} has another header than torpor writes; pack the folder anew")
        return name, size

    def names(self) -> list[str]:
        return list(self.members)

    def size(self, name: str) -> int:
        """Raises KeyError."""
        return self.members[name].size

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Raises KeyError."""
        member = self.members[name]
        return os.pread(self._file.fileno(), min(size, member.size - offset), member.offset + offset)

    def close(self) -> None:
        self._file.close()
