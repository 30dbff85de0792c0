"""What an update moves: the parts of the new bundle that the old one does not have, and the lists of everything."""

from dataclasses import dataclass

from .contents import Blob, Contents, File
from .layout import Layout


@dataclass(frozen=True)
class Difference:
    """added, removed: paths. changed: paths, with the bytes of the parts that are new in each. moved: the parts, each once;
    shared: those that the old bundle has.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: dict[str, int]
    moved: tuple[Blob, ...]
    shared: tuple[Blob, ...]

    @property
    def moved_bytes(self) -> int:
        return sum(part.size for part in self.moved)


def difference(old: Contents, new: Contents) -> Difference:
    had = old.parts()
    before: dict[str, File] = {file.path: file for file in old.files()}
    after: dict[str, File] = {file.path: file for file in new.files()}
    changed = {
        path: sum(part.size for part in file.parts if part.digest not in had)
        for path, file in sorted(after.items())
        if path in before and before[path] != file
    }
    parts = new.parts()
    return Difference(
        tuple(sorted(after.keys() - before.keys())),
        tuple(sorted(before.keys() - after.keys())),
        changed,
        tuple(parts[digest] for digest in sorted(parts.keys() - had.keys())),
        tuple(parts[digest] for digest in sorted(parts.keys() & had.keys())),
    )


def unneeded(bundle: Layout, found: Difference) -> list[Blob]:
    """What a thin bundle leaves out: parts that the node has, but never what it reads before it takes any. Raises Refused."""
    index = bundle.index()
    kept = {*bundle.lists(index), *(part for file in bundle.contents(index).profile_files() for part in file.parts)}
    return [blob for blob in found.shared if blob not in kept]
