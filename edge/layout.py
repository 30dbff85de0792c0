"""An OCI image layout, as a folder or as one file, read without trust: each blob is checked as it is read.

    oci-layout, index.json       the index's digest is what is signed
    blobs/sha256/DIGEST          manifests, lists of files, parts
    tuf/1.root.json …            TUF's metadata, once it is signed

A bundle may be thin: without parts that the node has already (`difference.py`).
"""

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, Self

from .archive import Archive, write_archive
from .contents import Blob, Component, Contents, Heading, read_files, read_manifest
from .refused import Refused

CHUNK_BYTES = 1 << 20
LARGEST_INDEX_BYTES = 4 << 20
LARGEST_METADATA_BYTES = 1 << 20
MOST_METADATA = 256 + 3
"""As many roots as python-tuf's client follows, and the other roles."""

LARGEST_LIST_BYTES = 64 << 20
"""Of a manifest, or of a list of files: some 200 000 parts."""

OCI_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_NAME = re.compile(
    r"oci-layout|index\.json|blobs/sha256/[0-9a-f]{64}|tuf/([1-9]\d{0,8}\.root|timestamp|snapshot|targets)\.json"
)


class Medium(Protocol):
    """Where a bundle's files are."""

    def names(self) -> list[str]: ...

    def size(self, name: str) -> int:
        """Raises KeyError."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Raises KeyError, OSError."""

    def close(self) -> None: ...


class Folder:
    """A bundle in a folder, which has nothing but plain files in folders."""

    def __init__(self, path: Path) -> None:
        """Raises Refused, OSError."""
        self._path = path
        self._sizes: dict[str, int] = {}
        for folder, folders, files in os.walk(path):
            for name in (*folders, *files):
                found = Path(folder, name)
                mode = found.lstat()
                if stat.S_ISREG(mode.st_mode):
                    self._sizes[found.relative_to(path).as_posix()] = mode.st_size
                elif not stat.S_ISDIR(mode.st_mode):
                    raise Refused("link", f"{found} must be a file or a folder")

    def names(self) -> list[str]:
        return list(self._sizes)

    def size(self, name: str) -> int:
        return self._sizes[name]

    def read(self, name: str, offset: int, size: int) -> bytes:
        # The folder may be another's meanwhile; a link in it still leads nowhere, and a pipe keeps nobody waiting.
        file = os.open(self._path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.pread(file, size, offset)
        finally:
            os.close(file)

    def close(self) -> None: ...


class Layout:
    """A bundle on its medium. `with` closes it."""

    def __init__(self, medium: Medium) -> None:
        """Raises Refused."""
        self._medium = medium
        self._names = set(medium.names())
        try:
            self._check_names()
        except Refused:
            medium.close()
            raise

    def _check_names(self) -> None:
        for name in self._names:
            if not _NAME.fullmatch(name):
                raise Refused("unexpected", f"{name!r} has no place in a bundle")
        if self._small("oci-layout", len(OCI_LAYOUT)) != OCI_LAYOUT:
            raise Refused("malformed", f"oci-layout must be {OCI_LAYOUT.decode()}")

    @classmethod
    def at(cls, path: Path) -> Self:
        """Raises Refused, OSError."""
        if path.is_dir():
            return cls(Folder(path))
        if not path.exists():
            raise Refused("missing", f"{path} does not exist")
        return cls(Archive(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._medium.close()

    def index(self) -> bytes:
        """Not trusted before its digest was compared. Raises Refused."""
        return self._small("index.json", LARGEST_INDEX_BYTES)

    def metadata(self) -> dict[str, bytes]:
        """TUF's files by their names without the folder. Raises Refused."""
        names = sorted(name for name in self._names if name.startswith("tuf/"))
        if len(names) > MOST_METADATA:
            raise Refused("malformed", f"tuf has {len(names)} files, must have at most {MOST_METADATA}")
        return {name.removeprefix("tuf/"): self._small(name, LARGEST_METADATA_BYTES) for name in names}

    def contents(self, index: bytes) -> Contents:
        """What the index refers to. Raises Refused, also for blobs that it does not."""
        heading = Heading(index)
        components = []
        known = set()
        for (kind, name), blob in heading.manifests.items():
            what = f"{kind}/{name}"
            config, layers = read_manifest(self._listing(blob, what), f"{what}: its manifest")
            files = read_files(self._listing(config, what), layers, f"{what}: its files")
            components.append(Component(kind, name, files))
            known |= {blob.path, config.path, *(layer.path for layer in layers.values())}
        if extra := {name for name in self._names if name.startswith("blobs/")} - known:
            raise Refused("unexpected", f"{min(extra)} is of no component")
        return heading.contents(components)

    def lists(self, index: bytes) -> list[Blob]:
        """Manifests and their configs, without which nothing can be read. Raises Refused."""
        found = []
        for (kind, name), blob in Heading(index).manifests.items():
            config, _ = read_manifest(self._listing(blob, f"{kind}/{name}"), f"{kind}/{name}: its manifest")
            found += [blob, config]
        return found

    def has(self, blob: Blob) -> bool:
        return blob.path in self._names

    def chunks(self, blob: Blob) -> Iterator[bytes]:
        """A blob's bytes; with the last of them Refused, if they were others than its digest says."""
        if not self.has(blob):
            raise Refused("missing", f"{blob.digest} is not in the bundle")
        size = self._medium.size(blob.path)
        if size != blob.size:
            raise Refused("digest", f"{blob.path} of the bundle has {size} bytes, must have {blob.size}")
        return checked(self._read(blob.path, blob.size), blob, f"{blob.path} of the bundle")

    def _listing(self, blob: Blob, what: str) -> bytes:
        if blob.size > LARGEST_LIST_BYTES:
            raise Refused("malformed", f"{what}: a list has {blob.size} bytes, must have at most {LARGEST_LIST_BYTES}")
        return b"".join(self.chunks(blob))

    def _small(self, name: str, most: int) -> bytes:
        if name not in self._names:
            raise Refused("missing", f"{name} is not in the bundle")
        size = self._medium.size(name)
        if size > most:
            raise Refused("malformed", f"{name} has {size} bytes, must have at most {most}")
        return b"".join(self._read(name, size))

    def _read(self, name: str, size: int) -> Iterator[bytes]:
        for offset in range(0, size, CHUNK_BYTES):
            yield self._medium.read(name, offset, min(CHUNK_BYTES, size - offset))

    def pack(self, out: Path, metadata: dict[str, bytes], without: Iterable[Blob] = ()) -> None:
        """Write it as one file, with these files of TUF in place of its own, and without some blobs."""
        left_out = {blob.path for blob in without}
        names = {name for name in self._names if not name.startswith("tuf/")} - left_out
        given = {f"tuf/{name}": data for name, data in metadata.items()}
        beside = out.with_name(out.name + ".new")
        with beside.open("wb") as file:
            write_archive(
                file,
                (
                    (name, len(given[name]), [given[name]])
                    if name in given
                    else (name, self._medium.size(name), self._read(name, self._medium.size(name)))
                    for name in sorted(names | given.keys())
                ),
            )
        beside.replace(out)


def put_metadata(bundle: Path, metadata: dict[str, bytes]) -> None:
    """Have a bundle, a folder or a file, carry these files of TUF in place of its own. Raises Refused, OSError."""
    if not bundle.is_dir():
        with Layout.at(bundle) as layout:
            layout.pack(bundle, metadata)
        return
    folder = bundle / "tuf"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in metadata.items():
        (folder / name).write_bytes(data)


def checked(chunks: Iterable[bytes], blob: Blob, what: str) -> Iterator[bytes]:
    """The same chunks; after the last of them Refused, unless they were the blob's bytes."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    if "sha256:" + digest.hexdigest() != blob.digest:
        raise Refused("digest", f"{what} does not have the digest {blob.digest}")
