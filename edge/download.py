"""What a node lacks of a bundle, fetched from mirrors and laid out as a thin bundle, which is then installed as any other.

    ROOT/download/partial/DIGEST    what has come of a blob; it goes on from there, also from another mirror
    ROOT/download/bundle/           the bundle's index, lists, parts and metadata

A blob enters the bundle by its digest only. Nothing is synced here: what a power cut spoils does not have its digest any more.
"""

import os
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from torpor.predictors.errors import Unavailable

from .contents import Blob, Heading, read_files, read_manifest
from .disk import Disk
from .generations import holds
from .layout import LARGEST_INDEX_BYTES, LARGEST_LIST_BYTES, OCI_LAYOUT
from .node import SPARE_BYTES
from .origin import Origin
from .refused import Refused

Tell = Callable[[Origin, str], None]


class Download:
    """interruptible: held while it waits for a server. on_tampered: gets the mirror that gave other bytes than the digest's."""

    def __init__(
        self,
        folder: Path,
        disk: Disk,
        on_tampered: Tell,
        interruptible: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._folder = folder
        self._bundle = folder / "bundle"
        self._disk = disk
        self._on_tampered = on_tampered
        self._interruptible = interruptible

    def clear(self) -> None:
        """Give the room back."""
        self._disk.remove_tree(self._folder)

    def bundle(
        self, index: Blob, held: Container[str], metadata: dict[str, bytes], mirrors: Sequence[Origin]
    ) -> tuple[Path, int]:
        """The thin bundle's folder, and the bytes that have come for it. held: the digests that the node has elsewhere.
        mirrors: are tried in turn. Raises Refused, Unavailable, OSError.
        """
        blobs = self._bundle / "blobs" / "sha256"
        for folder in (blobs, self._folder / "partial"):
            self._disk.need_folder(folder)
        wanted = {index.digest}
        came = self._fetch(index, LARGEST_INDEX_BYTES, mirrors)
        data = self._path(index).read_bytes()
        parts: dict[str, Blob] = {}
        profiles: set[str] = set()
        size = 0
        for (kind, name), blob in Heading(data).manifests.items():
            came += self._fetch(blob, LARGEST_LIST_BYTES, mirrors)
            config, layers = read_manifest(self._path(blob).read_bytes(), f"{kind}/{name}: its manifest")
            came += self._fetch(config, LARGEST_LIST_BYTES, mirrors)
            wanted |= {blob.digest, config.digest}
            parts |= layers
            if kind == "profile":  # It is read from the bundle, before anything is installed.
                profiles |= layers.keys()
            size += sum(file.size for file in read_files(self._path(config).read_bytes(), layers, f"{kind}/{name}"))
        missing = [part for digest, part in sorted(parts.items()) if digest in profiles or digest not in held]
        wanted |= {part.digest for part in missing}
        self._remove_others(wanted)
        self._check_space(size, missing)
        for part in missing:
            came += self._fetch(part, part.size, mirrors)
        self._put(self._bundle / "oci-layout", OCI_LAYOUT)
        self._put(self._bundle / "index.json", data)
        self._disk.remove(self._path(index))
        self._disk.need_folder(self._bundle / "tuf")
        for name, text in metadata.items():
            self._put(self._bundle / "tuf" / name, text)
        return self._bundle, came

    def _path(self, blob: Blob) -> Path:
        return self._bundle / blob.path

    def _remove_others(self, wanted: set[str]) -> None:
        """What an update has left that was broken off, and this one does not want."""
        for folder in (self._bundle / "blobs" / "sha256", self._folder / "partial"):
            for path in folder.iterdir():
                if "sha256:" + path.name not in wanted:
                    self._disk.remove_tree(path)
        self._disk.remove_tree(self._bundle / "tuf")

    def _check_space(self, size: int, missing: list[Blob]) -> None:
        """The parts lie here and then in the generation as well."""
        need = size + sum(part.size for part in missing if not self._path(part).exists()) + SPARE_BYTES
        free = self._disk.free_bytes(self._folder)
        if need > free:
            raise Refused("space", f"{self._folder} has {free} bytes free, must have {need}")

    def _fetch(self, blob: Blob, most: int, mirrors: Sequence[Origin]) -> int:
        """Have a blob in the bundle; the bytes that came."""
        if blob.size > most:
            raise Refused("malformed", f"{blob.digest} has {blob.size} bytes, must have at most {most}")
        path = self._path(blob)
        if path.exists():
            if self._is(path, blob):
                return 0
            self._disk.remove(path)
        came, troubles = 0, []
        for mirror in mirrors:
            try:
                for _ in range(2):  # What another mirror has begun is none of this one's fault.
                    is_fresh, more = self._fetch_from(mirror, blob)
                    came += more
                    partial = self._partial(blob)
                    if self._is(partial, blob):
                        self._disk.rename(partial, path)
                        return came
                    self._disk.remove(partial)
                    if is_fresh:
                        break
                self._on_tampered(mirror, blob.digest)
                troubles.append(f"{mirror}: other bytes than {blob.digest}")
            except Unavailable as error:
                troubles.append(str(error))
        raise Unavailable("; ".join(troubles))

    def _fetch_from(self, mirror: Origin, blob: Blob) -> tuple[bool, int]:
        """Whether all of it came from this mirror, and how many bytes."""
        file = self._disk.open(self._partial(blob), 0o644)
        try:
            had = os.fstat(file).st_size
            if had > blob.size:
                self._disk.cut(file, 0)
                had = 0
            if had == blob.size:
                return False, 0
            with self._interruptible(), mirror.opened(blob.path, had, blob.size) as (offset, chunks):
                if offset < had:
                    self._disk.cut(file, offset)
                return offset == 0, self._write(file, offset, chunks)
        finally:
            self._disk.close(file)

    def _write(self, file: int, offset: int, chunks: Iterator[bytes]) -> int:
        begin = offset
        for chunk in chunks:
            self._disk.write(file, offset, chunk)
            offset += len(chunk)
        return offset - begin

    def _partial(self, blob: Blob) -> Path:
        return self._folder / "partial" / blob.digest.removeprefix("sha256:")

    def _is(self, path: Path, blob: Blob) -> bool:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return os.fstat(file).st_size == blob.size and holds(file, 0, blob)
        finally:
            os.close(file)

    def _put(self, path: Path, data: bytes) -> None:
        file = self._disk.open(path, 0o644)
        try:
            self._disk.cut(file, 0)
            self._disk.write(file, 0, data)
        finally:
            self._disk.close(file)
