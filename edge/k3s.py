"""What is served, where K3s looks for it: images are imported from `agent/images`, manifests applied from `server/manifests`.

K3s watches both folders (images since 1.32, before that it reads them at its start). What is ours begins with `torpor-`; a
file comes by one rename and is never half there, and goes when it is not served any more. K3s deletes no objects for that:
what an update leaves out of its manifests is deleted by hand. The same call again mends whatever a power cut has left.

Where the bundle's profile asks for gVisor, containerd's template for runsc comes too, unless there is one; K3s reads it when it
starts again.
"""

import os
import re
from pathlib import Path

from .contents import File
from .disk import Disk
from .generations import byte_range
from .profiles.k3s_settings import containerd_template
from .profiles.profile import profile_of
from .refused import Refused

PREFIX = "torpor-"
IMAGES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.lz4")
MANIFESTS = (".yaml", ".yml", ".json")


class K3s:
    """data: K3s's own folder, /var/lib/rancher/k3s."""

    def __init__(self, data: Path, disk: Disk | None = None) -> None:
        """Raises Refused where there is no K3s."""
        if not data.is_dir():
            raise Refused("state", f"{data} does not exist, must be K3s's data folder")
        self._images = data / "agent" / "images"
        self._manifests = data / "server" / "manifests"
        self._template = data / "agent" / "etc" / "containerd" / "config-v3.toml.tmpl"
        self._disk = disk or Disk()

    def place(self, folder: Path, files: tuple[File, ...]) -> list[str]:
        """Images first, since manifests ask for them. folder: where the files lie. The names. Raises Refused, OSError."""
        wanted = {
            target: {_name(file, kind): folder / file.path for file in files if _is(file, kind, endings)}
            for target, kind, endings in ((self._images, "image", IMAGES), (self._manifests, "manifest", MANIFESTS))
        }
        taken = sum(_is(file, "image", IMAGES) or _is(file, "manifest", MANIFESTS) for file in files)
        if sum(map(len, wanted.values())) != taken:
            raise Refused("name", "two files of the bundle have one name for K3s, which takes a-z, 0-9, - and . only")
        profile = profile_of(folder, files)
        if profile is not None and profile.is_sandboxed:
            self._put_template()
        for target, sources in wanted.items():
            if sources:
                self._disk.need_folder(target)
            for name, source in sources.items():
                self._put(source, target / name)
            for path in sorted(target.glob(f"{PREFIX}*")):
                if path.name not in sources:
                    self._disk.remove(path)
            if target.is_dir():
                self._disk.sync_folder(target)
        return [name for sources in wanted.values() for name in sources]

    def _put_template(self) -> None:
        if not self._template.exists():
            self._disk.need_folder(self._template.parent)
            self._disk.put(self._template, containerd_template().encode())
        elif "runsc" not in self._template.read_text():
            raise Refused("state", f"{self._template} has no runsc; add what `torpor edge profile` writes into k3s/")

    def _put(self, source: Path, target: Path) -> None:
        beside = target.with_name(target.name + ".new")
        if beside.exists():
            self._disk.remove(beside)
        # Not a link to the generation's own file: who edits a manifest in place would change what was signed.
        size = source.stat().st_size
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        copy = self._disk.open(beside, 0o644)
        try:
            offset = 0
            for chunk in byte_range(descriptor, 0, size):
                self._disk.write(copy, offset, chunk)
                offset += len(chunk)
            self._disk.sync(copy)
        finally:
            self._disk.close(copy)
            os.close(descriptor)
        self._disk.rename(beside, target)


def _is(file: File, kind: str, endings: tuple[str, ...]) -> bool:
    return file.path.startswith(f"{kind}/") and file.path.endswith(endings)


def _name(file: File, kind: str) -> str:
    return PREFIX + re.sub(r"[^a-z0-9.]+", "-", file.path.removeprefix(f"{kind}/").lower())
