"""What this machine is, as far as a profile speaks of it: read from /proc, /sys and /dev, which tests replace by a folder."""

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torpor.knative.quantities import memory

from .profiles.profile import Profile
from .profiles.sizing import visible_bytes

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm"}


@dataclass(frozen=True)
class Machine:
    """root: where /proc, /sys and /etc are. path: $PATH. architecture: as a profile names it, or the kernel's own word."""

    root: Path = Path("/")
    path: str = os.defpath
    architecture: str = ""

    @classmethod
    def here(cls) -> "Machine":
        return cls(Path("/"), os.environ.get("PATH", os.defpath), architecture_here())

    def text(self, name: str) -> str:
        """Of a file, '' if there is none."""
        try:
            return (self.root / name).read_text()
        except OSError:
            return ""

    def has(self, name: str) -> bool:
        return (self.root / name).exists()

    def program(self, name: str) -> str:
        """Where on the path it is, '' for nowhere."""
        return shutil.which(name, path=self.path) or ""

    @property
    def memory_bytes(self) -> int:
        """Without what firmware, kernel and graphics keep; 0 where it is not known."""
        return self.meminfo("MemTotal")

    def meminfo(self, name: str) -> int:
        """In bytes; 0 for what is not there."""
        for line in self.text("proc/meminfo").splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0]) * 1024
        return 0

    @property
    def has_sandbox(self) -> bool:
        return bool(self.program("runsc") and self.program("containerd-shim-runsc-v1"))

    @property
    def driver(self) -> str:
        """The version of NVIDIA's kernel module, '' for none."""
        for line in self.text("proc/driver/nvidia/version").splitlines():
            if line.startswith("NVRM version:"):
                return next((word for word in line.split() if word[0].isdigit() and "." in word), "")
        return ""

    def unmet(self, profile: Profile) -> Iterator[str]:
        """What a profile asks for and this machine has not."""
        if self.architecture != profile.architecture:
            yield f"architecture = {profile.architecture!r}, this node has {self.architecture}"
        if self.memory_bytes < visible_bytes(profile):
            yield f"memory = {memory(profile.memory_bytes)}, this node has {memory(self.memory_bytes)}"
        if profile.is_sandboxed and not self.has_sandbox:
            yield "runtime_class = 'gvisor', this node has no runsc and containerd-shim-runsc-v1 on its path"
        if profile.accelerator == "cuda" and not self.driver:
            yield "accelerator = 'cuda', this node has no NVIDIA driver"


def architecture_here() -> str:
    return _ARCHITECTURES.get(platform.machine(), platform.machine())
