"""What a bundle holds: components of files, each file a row of parts that are known by their digests.

In the layout a component is an OCI image manifest. Its config lists the files with their parts; its layers are the parts,
each once, so that registries and their tools carry them too. A file is its parts one after the other, nothing else.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .refused import Refused

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
FILES = "application/vnd.torpor.files.v1+json"
PART = "application/octet-stream"
BUNDLE = "application/vnd.torpor.bundle.v1"

KINDS = ("image", "manifest", "model", "profile", "provenance", "sbom")
PLATFORMS = ("any", "linux/amd64", "linux/arm", "linux/arm64")

VERSION, CREATED = "org.opencontainers.image.version", "org.opencontainers.image.created"
NAME, PLATFORM, TITLE = "dev.torpor.bundle.name", "dev.torpor.bundle.platform", "org.opencontainers.image.title"

LARGEST_PART_BYTES = 1 << 30
"""A larger part is cut: so a size fits the archive's octal field, and a broken copy is begun again from near its end."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes by their content. digest: `sha256:` and 64 hexadecimal digits."""

    digest: str
    size: int

    @classmethod
    def of(cls, data: bytes) -> "Blob":
        return cls("sha256:" + hashlib.sha256(data).hexdigest(), len(data))

    @property
    def path(self) -> str:
        """Where an OCI image layout has it."""
        return "blobs/" + self.digest.replace(":", "/")


@dataclass(frozen=True, slots=True)
class File:
    """path: below its component, with slashes."""

    path: str
    parts: tuple[Blob, ...]
    executable: bool = False

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


@dataclass(frozen=True, slots=True)
class Component:
    """kind: of KINDS. name: unique within its kind."""

    kind: str
    name: str
    files: tuple[File, ...]

    def placed(self) -> Iterator[File]:
        """The files by their paths on a node: KIND/NAME/PATH."""
        for file in self.files:
            yield File(f"{self.kind}/{self.name}/{file.path}", file.parts, file.executable)


def of_kind(files: Iterable[File], kind: str) -> list[File]:
    """Of files by their paths on a node, those of the components of a kind."""
    return [file for file in files if file.path.startswith(f"{kind}/")]


@dataclass(frozen=True, slots=True)
class Contents:
    """A bundle's name, version, platform (of PLATFORMS), build time, and components."""

    name: str
    version: str
    platform: str
    built: datetime
    components: tuple[Component, ...]

    def files(self) -> list[File]:
        return [file for component in self.components for file in component.placed()]

    def profile_files(self) -> list[File]:
        """What says for which nodes it is."""
        return of_kind(self.files(), "profile")

    def parts(self) -> dict[str, Blob]:
        """By digest."""
        return {part.digest: part for file in self.files() for part in file.parts}


def canonical(value: Any) -> bytes:
    """JSON that is the same for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def time_text(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def time_of(text: Any, what: str) -> datetime:
    """Raises Refused."""
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except (TypeError, ValueError):
        raise Refused("malformed", f"{what} = {text!r}, must be a time such as 2026-01-31T12:00:00Z") from None


def target_of(name: str, platform: str) -> str:
    """The name of a bundle in TUF's metadata: each platform is a target of its own."""
    return f"{name}/{platform.replace('/', '-')}"


def described(blob: Blob, media_type: str, **fields: Any) -> dict[str, Any]:
    """An OCI descriptor."""
    return {"mediaType": media_type, "digest": blob.digest, "size": blob.size, **fields}


def write_contents(contents: Contents) -> tuple[bytes, list[bytes]]:
    """The index, and the blobs of manifests and their configs."""
    blobs: list[bytes] = []
    entries = []
    for component in sorted(contents.components, key=lambda each: (each.kind, each.name)):
        config = canonical({"files": [_file_entry(file) for file in sorted(component.files, key=lambda f: f.path)]})
        parts = {part.digest: part for file in component.files for part in file.parts}
        manifest = canonical(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "artifactType": f"application/vnd.torpor.{component.kind}.v1",
                "config": described(Blob.of(config), FILES),
                "layers": [described(parts[digest], PART) for digest in sorted(parts)],
            }
        )
        blobs += [config, manifest]
        title = {TITLE: f"{component.kind}/{component.name}"}
        entries.append(described(Blob.of(manifest), MANIFEST, annotations=title))
    annotations = {
        NAME: contents.name,
        VERSION: contents.version,
        PLATFORM: contents.platform,
        CREATED: time_text(contents.built),
    }
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "artifactType": BUNDLE,
        "manifests": entries,
        "annotations": annotations,
    }
    return canonical(index), blobs


def _file_entry(file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": file.path, "parts": [[part.digest, part.size] for part in file.parts]}
    return entry | {"executable": True} if file.executable else entry


class Heading:
    """An index, read as far as it goes by itself: what the bundle says it is, and where its manifests are."""

    def __init__(self, data: bytes) -> None:
        """Raises Refused."""
        index = parsed(data, "index.json")
        if index.get("artifactType") != BUNDLE or index.get("schemaVersion") != 2:
            raise Refused("malformed", f"index.json: artifactType = {index.get('artifactType')!r}, must be {BUNDLE!r}")
        annotations = index.get("annotations")
        if not isinstance(annotations, dict):
            raise Refused("malformed", "index.json: annotations are missing")
        self.name = checked_name(annotations.get(NAME), "the bundle's name")
        self.version = checked_version(annotations.get(VERSION))
        self.platform = checked_platform(annotations.get(PLATFORM))
        self.built = time_of(annotations.get(CREATED), "the bundle's build time")
        self.manifests: dict[tuple[str, str], Blob] = {}
        for entry in _listed(index, "manifests", "index.json"):
            title = entry.get("annotations", {}).get(TITLE) if isinstance(entry.get("annotations"), dict) else None
            kind, _, name = title.partition("/") if isinstance(title, str) else ("", "", "")
            if kind not in KINDS:
                raise Refused("malformed", f"component {title!r}, must be KIND/NAME with a kind of {', '.join(KINDS)}")
            checked_name(name, f"the name of a {kind}")
            if (kind, name) in self.manifests:
                raise Refused("malformed", f"component {title!r} is there twice")
            self.manifests[kind, name] = blob_of(entry, f"component {title}")

    @property
    def target(self) -> str:
        """The name of this bundle in TUF's metadata."""
        return target_of(self.name, self.platform)

    def contents(self, components: Iterable[Component]) -> Contents:
        return Contents(self.name, self.version, self.platform, self.built, tuple(components))


def read_manifest(data: bytes, what: str) -> tuple[Blob, dict[str, Blob]]:
    """The config, and the layers by digest. Raises Refused."""
    manifest = parsed(data, what)
    config = manifest.get("config")
    layers = {}
    for entry in _listed(manifest, "layers", what):
        layer = blob_of(entry, f"{what}: a layer")
        layers[layer.digest] = layer
    return blob_of(config, f"{what}: config"), layers


def read_files(data: bytes, layers: dict[str, Blob], what: str) -> tuple[File, ...]:
    """Raises Refused for paths that lead elsewhere, and where parts and layers are not the same."""
    files = files_of(parsed(data, what), what)
    if {part.digest: part for file in files for part in file.parts} != layers:
        raise Refused("malformed", f"{what}: its files have other parts than its manifest has layers")
    return files


def files_of(value: dict[str, Any], what: str) -> tuple[File, ...]:
    """Raises Refused."""
    files = []
    for entry in _listed(value, "files", what):
        path = checked_path(entry.get("path"), what)
        pairs = entry.get("parts")
        if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise Refused("malformed", f"{what}: {path}: parts must be pairs of digest and size")
        parts = tuple(blob_of({"digest": digest, "size": size}, f"{what}: {path}") for digest, size in pairs)
        files.append(File(path, parts, entry.get("executable") is True))
    _check_apart([file.path for file in files], what)
    return tuple(files)


def files_value(files: Iterable[File]) -> dict[str, Any]:
    """What `files_of` reads."""
    return {"files": [_file_entry(file) for file in files]}


def _check_apart(paths: list[str], what: str) -> None:
    files = set(paths)
    if len(files) != len(paths):
        raise Refused("malformed", f"{what}: a path is there twice")
    for path in paths:
        steps = path.split("/")
        for end in range(1, len(steps)):
            if (folder := "/".join(steps[:end])) in files:
                raise Refused("malformed", f"{what}: {folder} is a file and a folder")


def parsed(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object. Raises Refused."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused("malformed", f"{what} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused("malformed", f"{what} must be a JSON object")
    return value


def _listed(value: dict[str, Any], name: str, what: str) -> list[dict[str, Any]]:
    entries = value.get(name)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Refused("malformed", f"{what}: {name} must be a list of objects")
    return entries


def blob_of(descriptor: Any, what: str) -> Blob:
    """Raises Refused."""
    entry = descriptor if isinstance(descriptor, dict) else {}
    digest, size = entry.get("digest"), entry.get("size")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise Refused("malformed", f"{what}: digest = {digest!r}, must be sha256: and 64 hexadecimal digits")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= LARGEST_PART_BYTES:
        raise Refused("malformed", f"{what}: size = {size!r}, must be in [0, {LARGEST_PART_BYTES}]")
    return Blob(digest, size)


def checked_path(path: Any, what: str) -> str:
    """A relative path that stays where it is put. Raises Refused."""
    steps = path.split("/") if isinstance(path, str) else []
    if (
        not steps
        or len(path.encode("utf-8", "replace")) > 1024
        or any(step in ("", ".", "..") or len(step.encode("utf-8", "replace")) > 255 for step in steps)
        or not path.isprintable()
        or "\\" in path
    ):
        raise Refused("malformed", f"{what}: path = {path!r}, must be relative, printable, without .. and backslashes")
    return str(path)


def checked_name(name: Any, what: str) -> str:
    """A name that also Kubernetes takes. Raises Refused."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Refused("malformed", f"{what} = {name!r}, must be at most 63 of a-z, 0-9, - and ., no - or . at its ends")
    return name


def checked_version(version: Any) -> str:
    """Raises Refused."""
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise Refused("malformed", f"the bundle's version = {version!r}, must be at most 128 of A-Z a-z 0-9 . _ + -")
    return version


def checked_platform(platform: Any) -> str:
    """Raises Refused."""
    if platform not in PLATFORMS:
        raise Refused("malformed", f"the bundle's platform = {platform!r}, must be one of {', '.join(PLATFORMS)}")
    return str(platform)
