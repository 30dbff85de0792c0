"""Making a bundle: the same inputs and the same build time give the same bytes.

Beside what it is given it writes what it holds (`sbom`, CycloneDX) and where that came from (`provenance`, an in-toto
statement with SLSA's predicate).
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, BinaryIO

from .contents import (
    KINDS,
    Blob,
    Component,
    Contents,
    File,
    canonical,
    checked_name,
    checked_path,
    checked_platform,
    checked_version,
    time_text,
    write_contents,
)
from .layout import CHUNK_BYTES, OCI_LAYOUT
from .pieces import pieces
from .profiles.profile import read_profile
from .refused import Refused

_CYCLONEDX = {"image": "container", "model": "machine-learning-model"}


@dataclass(frozen=True)
class Input:
    """A file, or a folder with all that is in it. kind: of KINDS."""

    kind: str
    name: str
    path: Path


@dataclass(frozen=True)
class _Read:
    """A file with the digest of the whole, which SBOM and provenance name."""

    file: File
    digest: str


def make_bundle(
    out: Path, name: str, version: str, platform: str, built: datetime, inputs: Sequence[Input]
) -> tuple[Blob, Contents]:
    """Write a bundle's folder, which must not exist; the blob is its index. Raises Refused, OSError."""
    checked_name(name, "the bundle's name")
    checked_version(version)
    checked_platform(platform)
    names = [(each.kind, checked_name(each.name, f"the name of a {each.kind}")) for each in inputs]
    names += [("sbom", name), ("provenance", name)]
    if twice := {each for each in names if names.count(each) > 1}:
        raise Refused(
            "malformed",
            f"{'/'.join(min(twice))} is there twice; torpor writes an SBOM and a provenance of the bundle's name",
        )
    if unknown := {kind for kind, _ in names} - set(KINDS):
        raise Refused("malformed", f"kind = {min(unknown)!r}, must be one of {', '.join(KINDS)}")
    profiles = [each for each in inputs if each.kind == "profile"]
    if len(profiles) > 1:
        raise Refused("malformed", f"{len(profiles)} profiles, must be one at most: a bundle is for one kind of node")
    for each in profiles:
        if not each.path.is_file():
            raise Refused("malformed", f"profile = {each.path}, must be a file")
        needed = read_profile(each.path.read_bytes(), str(each.path)).platform
        if platform not in ("any", needed):
            raise Refused(
                "platform", f"the bundle is for {platform}, must be for {needed}, as {each.path} says, or any"
            )
    blobs = out / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    read = [(each, [_store_file(path, place, blobs) for place, path in _files(each)]) for each in inputs]
    components = [Component(each.kind, each.name, tuple(item.file for item in items)) for each, items in read]
    sbom = _sbom(name, version, built, read)
    provenance = _provenance(name, version, platform, built, read)
    for kind, file, data in (("sbom", "bom.cdx.json", sbom), ("provenance", "statement.json", provenance)):
        components.append(Component(kind, name, (File(file, (_store(data, blobs),)),)))
    contents = Contents(name, version, platform, built, tuple(components))
    index, lists = write_contents(contents)
    for data in lists:
        _store(data, blobs)
    (out / "index.json").write_bytes(index)
    (out / "oci-layout").write_bytes(OCI_LAYOUT)
    return Blob.of(index), contents


def _files(given: Input) -> Iterator[tuple[str, Path]]:
    """Paths within the component, and files. Links to files are followed: a bundle has none."""
    if given.path.is_file():
        yield checked_path(given.path.name, str(given.path)), given.path
        return
    files = []
    for path in sorted(given.path.rglob("*")):
        # Compiled code appears when a model was once served from the folder.
        if "__pycache__" in path.parts or (path.is_dir() and not path.is_symlink()):
            continue
        if not path.is_file():
            raise Refused("link", f"{path} must be a file, or a link to one")
        files.append((checked_path(path.relative_to(given.path).as_posix(), str(path)), path))
    if not files:
        raise Refused("missing", f"{given.path} has no files")
    yield from files


def _store_file(path: Path, place: str, blobs: Path) -> _Read:
    whole = hashlib.sha256()
    with path.open("rb") as file:
        parts = tuple(_store_part(file, size, whole, blobs) for size in pieces(path))
    return _Read(File(place, parts, bool(path.stat().st_mode & 0o100)), whole.hexdigest())


def _store_part(file: BinaryIO, size: int, whole: "hashlib._Hash", blobs: Path) -> Blob:
    digest = hashlib.sha256()
    new = blobs / "new"
    with new.open("wb") as out:
        left = size
        while left:
            chunk = file.read(min(left, CHUNK_BYTES))
            if not chunk:
                raise Refused("malformed", f"{file.name} became shorter while it was read")
            digest.update(chunk)
            whole.update(chunk)
            out.write(chunk)
            left -= len(chunk)
    new.rename(blobs / digest.hexdigest())
    return Blob("sha256:" + digest.hexdigest(), size)


def _store(data: bytes, blobs: Path) -> Blob:
    blob = Blob.of(data)
    (blobs / blob.digest.removeprefix("sha256:")).write_bytes(data)
    return blob


def _sbom(name: str, version: str, built: datetime, read: "Iterable[tuple[Input, list[_Read]]]") -> bytes:
    """CycloneDX 1.6."""

    def entry(kind: str, title: str, digest: str | None, inner: list[dict[str, Any]]) -> dict[str, Any]:
        hashes = {"hashes": [{"alg": "SHA-256", "content": digest}]} if digest else {"components": inner}
        return {"type": kind, "bom-ref": title, "name": title, **hashes}

    components = [
        entry(
            _CYCLONEDX.get(each.kind, "data"),
            f"{each.kind}/{each.name}",
            None,
            [entry("file", f"{each.kind}/{each.name}/{item.file.path}", item.digest, []) for item in items],
        )
        for each, items in read
    ]
    subject = {"type": "application", "bom-ref": name, "name": name, "version": version}
    return canonical(
        {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {"timestamp": time_text(built), "component": subject},
            "components": components,
        }
    )


def _provenance(
    name: str, version: str, platform: str, built: datetime, read: "Iterable[tuple[Input, list[_Read]]]"
) -> bytes:
    """An in-toto statement, SLSA 1.0. It names no path of the machine that built it."""
    subjects = [
        {"name": f"{each.kind}/{each.name}/{item.file.path}", "digest": {"sha256": item.digest}}
        for each, items in read
        for item in items
    ]
    definition = {
        "buildType": "https://torpor.dev/bundle/v1",
        "externalParameters": {"name": name, "version": version, "platform": platform, "built": time_text(built)},
    }
    builder = {"id": "https://torpor.dev", "version": {"torpor": installed_version("torpor")}}
    return canonical(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": subjects,
            "predicateType": "https://slsa.dev/provenance/v1",
            "predicate": {"buildDefinition": definition, "runDetails": {"builder": builder}},
        }
    )
