"""Archives as files: a zip (`.mar`), a gzipped tar with a top folder, or a folder of the same content.

An archive is untrusted: what is unpacked lies inside of its folder, and is nothing but files and folders, each named once
and all of them together no larger than `_MOST_BYTES`, or for large archives `_MOST_RATIO` times the archive. What is not
so is refused by member and reason; nothing is repaired or passed over.
"""

import gzip
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from .manifest import LARGEST_BYTES, PLACE, ArchiveError, Manifest
from .place import SUFFIXES

_MOST_MEMBERS = 100_000
_MOST_BYTES = 1 << 30
_MOST_RATIO = 20
"""Weights hardly become smaller, texts to a quarter; a bomb's zeros to a thousandth."""

_MOST_READ_BYTES = 1 << 20

_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)
"""What the standard library raises for files that are none, or that are encrypted."""


@dataclass(frozen=True)
class Archive:
    """An archive whose manifest has been read."""

    path: Path
    manifest: Manifest

    @classmethod
    def read(cls, path: Path) -> "Archive":
        """Raises ArchiveError."""
        text = read_member(path, PLACE, LARGEST_BYTES)
        return cls(path, Manifest() if text is None else Manifest.read(text, path.name))

    @property
    def name(self) -> str:
        """The model's name where nobody gives another."""
        return self.manifest.name or stem(self.path)

    @contextmanager
    def unpacked(self) -> Iterator[Path]:
        """A folder with its content while the context lasts; one that is a folder is used as it stands. Raises ArchiveError."""
        if self.path.is_dir():
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="torpor-archive-", ignore_cleanup_errors=True) as name:
            root = Path(name)
            with _opened(self.path) as members:
                for member in _checked(self.path, members):
                    target = root / member.name
                    if member.is_folder:
                        target.mkdir(parents=True, exist_ok=True)
                        continue
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with member.open() as source, target.open("xb") as copy:
                        shutil.copyfileobj(source, copy, _MOST_READ_BYTES)
            yield root


def read_member(path: Path, name: str, most_bytes: int) -> bytes | None:
    """A small file of an archive, None if it has none of that name. Raises ArchiveError for a larger one."""

    def check(size: int) -> None:
        if size > most_bytes:
            raise ArchiveError(f"{path.name}: {name}: size = {size} bytes, must be at most {most_bytes}")

    if path.is_dir():
        place = path / name
        if not place.is_file():
            return None
        check(place.stat().st_size)
        return place.read_bytes()
    with _opened(path) as members:
        for member in _checked(path, members):
            if member.name == name:
                check(member.size)
                with member.open() as file:
                    return file.read(most_bytes)
    return None


def stem(path: Path) -> str:
    """A file's name without the ending that makes it an archive."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix) and path.name != suffix:
            return path.name.removesuffix(suffix)
    return path.name


class _Member(Protocol):
    """An entry. name: as the archive has it at first, checked and normal afterwards. kind: of what is no file or folder."""

    name: str
    size: int
    is_folder: bool
    kind: str

    def open(self) -> IO[bytes]: ...


class _ZipMember:
    def __init__(self, file: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        self.name, self.size = info.orig_filename, info.file_size
        self.is_folder = self.name.endswith("/")
        mode = info.external_attr >> 16
        self.kind = _kind(stat.S_IFMT(mode) in (0, stat.S_IFREG, stat.S_IFDIR), stat.S_ISLNK(mode))
        self._file, self._info = file, info

    def open(self) -> IO[bytes]:
        return self._file.open(self._info)


class _TarMember:
    def __init__(self, file: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        self.size, self.is_folder = info.size, info.isdir()
        # The first folder is the archive's name.
        top, slash, rest = info.name.removeprefix("./").partition("/")
        self.name = rest if slash else ("" if info.isdir() else top)
        self.kind = _kind(info.isreg() or info.isdir(), info.issym() or info.islnk())
        self._file, self._info = file, info

    def open(self) -> IO[bytes]:
        source = self._file.extractfile(self._info)
        assert source is not None
        return source


class _BoundedGzip(gzip.GzipFile):
    """Of which nobody reads much at once: tarfile reads a header that says it is of gigabytes whole, into memory."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MOST_READ_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes, must be at most {_MOST_READ_BYTES}")
        return super().read(size)


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[_Member]]:
    """The members of a file. Raises ArchiveError for one that is no archive, or is damaged."""
    try:
        with path.open("rb") as start:
            magic = start.read(4)
        if magic[:2] == b"PK":
            with zipfile.ZipFile(path) as zipped:
                yield (_ZipMember(zipped, info) for info in zipped.infolist())
        elif magic[:2] == b"\x1f\x8b":
            with _BoundedGzip(path) as inflated, tarfile.open(fileobj=inflated, mode="r:") as tarred:
                yield (_TarMember(tarred, info) for info in tarred)
        else:
            raise ArchiveError(f"{path.name}: is neither a zip nor a gzipped tar")
    except ArchiveError:
        raise
    except _DAMAGED as error:
        raise ArchiveError(f"{path.name}: cannot be read: {error}") from None


def _checked(path: Path, members: Iterator[_Member]) -> Iterator[_Member]:
    """The members, each checked before anything after it is read, with normal names. Raises ArchiveError."""
    most_bytes = max(_MOST_BYTES, _MOST_RATIO * path.stat().st_size)
    files: set[str] = set()
    folders: set[str] = set()
    total = count = 0

    def refused(member: _Member, reason: str) -> ArchiveError:
        return ArchiveError(f"{path.name}: member {member.name[:200]!r} {reason}")

    for member in members:
        count += 1
        if count > _MOST_MEMBERS:
            raise ArchiveError(f"{path.name}: has more than {_MOST_MEMBERS} members")
        if member.kind:
            raise refused(member, f"is {member.kind}, must be a file or a folder")
        total += member.size
        if total > most_bytes:
            raise refused(member, f"makes {total} bytes when unpacked, must be at most {most_bytes}")
        if not member.name and member.is_folder:  # a tar's top folder
            continue
        parts = member.name.removesuffix("/").split("/")
        if any(part in ("", ".", "..") for part in parts) or "\\" in member.name or "\0" in member.name:
            raise refused(member, "is not a path inside of the archive")
        name = str(PurePosixPath(*parts))
        above = {str(folder) for folder in PurePosixPath(name).parents}
        if name in files or above & files or (not member.is_folder and name in folders):
            raise refused(member, "is there twice")
        folders |= above
        (folders if member.is_folder else files).add(name)
        member.name = name
        yield member


def _kind(is_plain: bool, is_link: bool) -> str:
    return "" if is_plain else "a link" if is_link else "a device"
