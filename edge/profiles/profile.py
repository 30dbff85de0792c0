"""A node's description, in TOML: what it is like, not how it is set up.

    name = "gateway"
    architecture = "arm64"      # amd64, arm64, arm
    memory = "4Gi"              # of the machine
    cores = 4
    disk = "32Gi"               # of the file system with bundles, images and logs
    accelerator = "none"        # none, cuda
    runtime_class = "gvisor"    # gvisor, none (containerd's default)
    link = "intermittent"       # steady, intermittent, none (images come with the bundle alone)
    serving = "auto"            # knative, deployment, auto (by memory and cores)
    mirror = ""                 # a registry of the site, https://HOST:PORT

The last five have the defaults that stand here.
"""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from torpor.knative.quantities import amount

from ..contents import File, checked_name, of_kind
from ..refused import Refused

GIB = 1 << 30
KNATIVE_CORES, KNATIVE_BYTES = 6, 6 * 10**9
"""What Knative asks of a cluster of one node: https://knative.dev/docs/install/yaml-install/serving/install-serving-with-yaml/."""

_LEAST_BYTES, _MOST_BYTES = 512 << 20, 16 << 40
_WORDS = {
    "architecture": ("amd64", "arm64", "arm"),
    "accelerator": ("none", "cuda"),
    "runtime_class": ("gvisor", "none"),
    "link": ("steady", "intermittent", "none"),
    "serving": ("auto", "knative", "deployment"),
}
_DEFAULTS = {"accelerator": "none", "runtime_class": "gvisor", "link": "intermittent", "serving": "auto", "mirror": ""}
_REQUIRED = ("name", "architecture", "memory", "cores", "disk")
_MIRROR = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[\w./-]*)?")


@dataclass(frozen=True)
class Profile:
    """Words are those of the module's description. mirror: "" for none."""

    name: str
    architecture: str
    memory_bytes: int
    cores: int
    disk_bytes: int
    accelerator: str = "none"
    runtime_class: str = "gvisor"
    link: str = "intermittent"
    serving: str = "auto"
    mirror: str = ""

    @property
    def platform(self) -> str:
        """As a bundle names it."""
        return f"linux/{self.architecture}"

    @property
    def has_knative(self) -> bool:
        if self.serving == "auto":
            return self.cores >= KNATIVE_CORES and self.memory_bytes >= KNATIVE_BYTES
        return self.serving == "knative"

    @property
    def is_sandboxed(self) -> bool:
        return self.runtime_class == "gvisor"


def profile_of(folder: Path, files: Iterable[File]) -> Profile | None:
    """For which nodes what lies in a folder is; None if none of its files says so. Raises Refused, OSError."""
    for file in of_kind(files, "profile"):
        return read_profile((folder / file.path).read_bytes(), file.path)
    return None


def read_profile(data: bytes, what: str) -> Profile:
    """what: the file, for messages. Raises Refused."""
    try:
        given = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Refused("malformed", f"{what} is no TOML: {error}") from None
    known = {*_REQUIRED, *_DEFAULTS}
    if unknown := given.keys() - known:
        raise Refused("malformed", f"{what}: {min(unknown)} is unknown, must be one of {', '.join(sorted(known))}")
    for name in _REQUIRED:
        if name not in given:
            raise Refused("malformed", f"{what}: {name} is missing")
    words = {name: _word(given, name, what) for name in _WORDS}
    if words["accelerator"] == "cuda" and words["architecture"] == "arm":
        raise Refused("malformed", f"{what}: accelerator = 'cuda', must be none where architecture is arm")
    return Profile(
        name=checked_name(given["name"], f"{what}: name"),
        memory_bytes=_bytes(given, "memory", what),
        cores=_cores(given["cores"], what),
        disk_bytes=_bytes(given, "disk", what),
        mirror=_mirror(given.get("mirror", ""), what),
        **words,
    )


def _word(given: dict[str, Any], name: str, what: str) -> str:
    value = given.get(name, _DEFAULTS.get(name))
    if value not in _WORDS[name]:
        raise Refused("malformed", f"{what}: {name} = {value!r}, must be one of {', '.join(_WORDS[name])}")
    return str(value)


def _bytes(given: dict[str, Any], name: str, what: str) -> int:
    try:
        size = amount(given[name]) if isinstance(given[name], str) else Decimal(-1)
    except ValueError:
        size = Decimal(-1)
    if not _LEAST_BYTES <= size <= _MOST_BYTES:
        raise Refused("malformed", f"{what}: {name} = {given[name]!r}, must be a text such as '4Gi', in [512Mi, 16Ti]")
    return int(size)


def _cores(cores: Any, what: str) -> int:
    if not isinstance(cores, int) or isinstance(cores, bool) or not 1 <= cores <= 1024:
        raise Refused("malformed", f"{what}: cores = {cores!r}, must be an integer in [1, 1024]")
    return cores


def _mirror(mirror: Any, what: str) -> str:
    if mirror != "" and not (isinstance(mirror, str) and _MIRROR.fullmatch(mirror)):
        raise Refused("malformed", f"{what}: mirror = {mirror!r}, must be like https://registry.site:5000")
    return str(mirror)
