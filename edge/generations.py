"""What was installed: each generation is a folder of files, with a seal that says what must be in it."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from .contents import Blob, File, canonical, files_of, files_value, of_kind, parsed, time_of, time_text
from .layout import CHUNK_BYTES
from .refused import Refused

SEAL = "seal.json"


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

    @property
    def models(self) -> list[str]:
        """Their names, in order."""
        return sorted({file.path.split("/")[1] for file in of_kind(self.files, "model")})

    def described(self) -> dict[str, Any]:
        """For people and programs: all but its files."""
        return {"generation": self.number, **self._named()}

    def seal(self) -> bytes:
        return canonical({"before": self.before, **self._named(), **files_value(self.files)})

    def _named(self) -> dict[str, Any]:
        installed = time_text(self.installed)
        return {"bundle": self.bundle, "version": self.version, "index": self.index, "installed": installed}


@dataclass(frozen=True)
class Place:
    """Where the bytes of a part lie."""

    path: Path
    offset: int


class Generations:
    """Those under a folder, which need not be there yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, number: int) -> Path:
        return self.folder / str(number)

    def numbers(self) -> list[int]:
        """Of the generations that are there."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def read(self, number: int) -> Generation:
        """Raises Refused."""
        what = f"generation {number}: its seal"
        try:
            value = parsed((self.path(number) / SEAL).read_bytes(), what)
        except OSError as error:
            raise Refused("state", f"{what} cannot be read: {error.strerror}") from None
        try:
            before = value["before"]
            installed = time_of(value["installed"], what)
            names = value["bundle"], value["version"], value["index"]
            return Generation(number, *names, installed, before, files_of(value, what))
        except KeyError as error:
            raise Refused("state", f"{what} has no {error}") from None

    def check(self, generation: Generation) -> None:
        """Read all of its files. Raises Refused for the first that is not what it was."""
        for file in generation.files:
            path = self.path(generation.number) / file.path
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError as error:
                raise Refused("state", f"{path} cannot be read: {error.strerror}") from None
            try:
                if os.fstat(descriptor).st_size != file.size:
                    raise Refused("digest", f"{path} must have {file.size} bytes")
                offset = 0
                for part in file.parts:
                    if not holds(descriptor, offset, part):
                        raise Refused("digest", f"{path} is not what was installed, from byte {offset} on")
                    offset += part.size
            finally:
                os.close(descriptor)

    def places(self) -> dict[str, list[Place]]:
        """Where the whole generations have which part; whoever reads there checks it."""
        places: dict[str, list[Place]] = {}
        for number in self.numbers():
            with suppress(Refused):
                for file in self.read(number).files:
                    offset = 0
                    for part in file.parts:
                        place = Place(self.path(number) / file.path, offset)
                        places.setdefault(part.digest, []).append(place)
                        offset += part.size
        return places


def holds(file: int, offset: int, part: Blob) -> bool:
    digest = hashlib.sha256()
    for chunk in byte_range(file, offset, part.size):
        digest.update(chunk)
    return "sha256:" + digest.hexdigest() == part.digest


def byte_range(file: int, offset: int, size: int) -> Iterator[bytes]:
    for start in range(0, size, CHUNK_BYTES):
        yield os.pread(file, min(CHUNK_BYTES, size - start), offset + start)
