"""The next generation while it grows. It may be broken off at any point, and goes on with what is right in it already."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .contents import Blob, File
from .disk import Disk
from .generations import SEAL, Generation, Place, byte_range, holds
from .layout import Layout, checked
from .refused import Refused


@dataclass
class Bytes:
    """Where a generation's bytes came from. moved: from the bundle; found: from the node's own generations; kept: they were
    in staging, from an installation that was broken off.
    """

    moved: int = 0
    found: int = 0
    kept: int = 0


class Staging:
    """places: where the node has which parts, by digest."""

    def __init__(self, folder: Path, disk: Disk, layout: Layout, places: dict[str, list[Place]]) -> None:
        self._folder = folder
        self._disk = disk
        self._layout = layout
        self._places = places
        self._bytes = Bytes()

    def build(self, generation: Generation) -> Bytes:
        """All of its files, and the seal, on the disk. Raises Refused, OSError."""
        wanted = {self._folder / file.path for file in generation.files}
        folders = {
            self._folder,
            *(folder for path in wanted for folder in path.parents if self._folder in folder.parents),
        }
        if self._folder.is_dir():
            self._clear(self._folder, wanted, folders)
        for folder in sorted(folders):
            if not folder.is_dir():
                self._disk.make_folder(folder)
        for file in generation.files:
            self._stage(file)
        self._disk.put(self._folder / SEAL, generation.seal())
        for folder in sorted(folders, reverse=True):
            self._disk.sync_folder(folder)
        return self._bytes

    def _clear(self, folder: Path, wanted: set[Path], folders: set[Path]) -> None:
        """What an installation that was broken off has left, and this one does not want."""
        for path in sorted(folder.iterdir()):
            mode = path.lstat().st_mode
            if path in folders and stat.S_ISDIR(mode):
                self._clear(path, wanted, folders)
            elif path not in wanted or not stat.S_ISREG(mode):
                self._disk.remove_tree(path)

    def _stage(self, file: File) -> None:
        disk = self._disk
        target = disk.open(self._folder / file.path, 0o755 if file.executable else 0o644)
        try:
            size = os.fstat(target).st_size
            offset = 0
            for part in file.parts:
                if part.size and offset + part.size <= size and holds(target, offset, part):
                    self._bytes.kept += part.size
                elif any(self._found(place, target, offset, part) for place in self._places.get(part.digest, ())):
                    self._bytes.found += part.size
                else:
                    self._write(target, offset, self._layout.chunks(part))
                    self._bytes.moved += part.size
                offset += part.size
            if size > offset:
                disk.cut(target, offset)
            disk.sync(target)
        finally:
            disk.close(target)

    def _found(self, place: Place, target: int, offset: int, part: Blob) -> bool:
        """Whether a generation has given the part; one whose file is damaged has not."""
        try:
            source = os.open(place.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            chunks = checked(byte_range(source, place.offset, part.size), part, str(place.path))
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
