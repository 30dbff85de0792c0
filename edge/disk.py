"""Every change that an installation makes to a disk, each by itself.

What is written counts after a power cut only once `sync` (bytes) and `sync_folder` (names) have returned; `rename` is all or
nothing. The rest may come back in part and in any order. Tests replace this class by one that says so at every step.
"""

import os
import shutil
import stat
from pathlib import Path


class Disk:
    """The real one. Every method raises OSError."""

    def make_folder(self, path: Path) -> None:
        path.mkdir(mode=0o755)

    def open(self, path: Path, mode: int) -> int:
        """A descriptor for reading and writing; the file is made if it is not there, and never a link's target."""
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        os.fchmod(file, mode)
        return file

    def write(self, file: int, offset: int, data: bytes) -> None:
        while data:
            done = os.pwrite(file, data, offset)
            data, offset = data[done:], offset + done

    def cut(self, file: int, size: int) -> None:
        os.ftruncate(file, size)

    def sync(self, file: int) -> None:
        os.fsync(file)

    def close(self, file: int) -> None:
        os.close(file)

    def sync_folder(self, path: Path) -> None:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def link(self, path: Path, target: str) -> None:
        path.symlink_to(target)

    def remove(self, path: Path) -> None:
        """A file, a link, or an empty folder."""
        if stat.S_ISDIR(path.lstat().st_mode):
            path.rmdir()
        else:
            path.unlink()

    def free_bytes(self, path: Path) -> int:
        return shutil.disk_usage(path).free

    # What is made of these

    def need_folder(self, path: Path) -> None:
        """Make it and the folders above it, where they are not there, so that they stay."""
        if not path.is_dir():
            self.need_folder(path.parent)
            try:
                self.make_folder(path)
            except FileExistsError:
                if not path.is_dir():  # else another process made it at this moment
                    raise
            self.sync_folder(path.parent)

    def put(self, path: Path, data: bytes) -> None:
        """The whole file or, after a power cut, the whole file before."""
        beside = path.with_name(path.name + ".new")
        file = self.open(beside, 0o644)
        try:
            self.cut(file, 0)
            self.write(file, 0, data)
            self.sync(file)
        finally:
            self.close(file)
        self.rename(beside, path)
        self.sync_folder(path.parent)

    def point(self, link: Path, target: str) -> None:
        """Let a link lead there: to the new or, after a power cut, to the old target, and always to one of them."""
        beside = link.with_name(link.name + ".new")
        if beside.is_symlink():
            self.remove(beside)
        self.link(beside, target)
        self.rename(beside, link)
        self.sync_folder(link.parent)

    def remove_tree(self, path: Path) -> None:
        """Whatever is there."""
        if path.is_dir() and not path.is_symlink():
            for inner in sorted(path.iterdir()):
                self.remove_tree(inner)
        if path.is_symlink() or path.exists():
            self.remove(path)
