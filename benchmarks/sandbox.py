"""A command in a container on this machine, by gVisor's runsc or by runc: the same OCI bundle, the other runtime.

The root is this machine's under an overlay that is thrown away, as containerd makes one of an image; /tmp is empty and
in memory. The network is a pod's: a pair of virtual Ethernet devices, one end in the container's network namespace.
All of that takes root.
"""

import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments import UnavailableError

CAPABILITIES = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID",
]  # fmt: skip
"""What a container has by default, and tests that are run by root need."""

NETWORK = "198.18.{}.{}"
"""Of the range that is kept for benchmarks (RFC 2544)."""


@dataclass(frozen=True)
class Network:
    namespace: Path
    address: str
    """Where this machine reaches the container."""


@dataclass(frozen=True)
class Container:
    """What starts it, and ends with it."""

    command: list[str]
    name: str
    """Also of its cgroup."""

    def memory_mib(self) -> float:
        """Anonymous and shared memory of all its processes, the runtime's own among them.

        Without the page cache of files: that is charged to whoever read them first.
        """
        version_1 = Path("/sys/fs/cgroup/memory") / self.name
        is_v1 = version_1.is_dir()
        folder = version_1 if is_v1 else Path("/sys/fs/cgroup") / self.name
        lines = (folder / "memory.stat").read_text().splitlines()
        stat = {name: int(value) for name, value in (line.split() for line in lines)}
        return (stat["rss" if is_v1 else "anon"] + stat["shmem"]) / 2**20


def runtime(name: str) -> Path:
    """The runtime's program: `$RUNSC` or `$RUNC`, or that of this name on the PATH."""
    variable = name.upper()
    given = os.environ.get(variable)
    found = shutil.which(given or name)
    if found is None:
        what = f"${variable} is {given}, which is no program" if given else f"{name} is not on the PATH"
        raise UnavailableError(f"{what}; install {name}, or set ${variable} to where it lies")
    if os.geteuid():
        raise UnavailableError("a container's root and network take root, and this is another user")
    return Path(found).resolve()


@contextmanager
def contained(
    name: str, flags: Sequence[str], command: Sequence[str], environment: Mapping[str, str], folder: Path,
    network: Network | None = None,
) -> Iterator[Container]:  # fmt: skip
    """A container that is ready to be started, by the runtime of that name; what is left of it goes afterwards.

    flags: the runtime's own. folder: where the command works. network: None is loopback alone.
    """
    program = runtime(name)
    title = f"torpor-{uuid.uuid4().hex[:8]}"
    with ExitStack() as stack:
        bundle = stack.enter_context(_root())
        config = _config(command, environment, folder, network, title)
        (bundle / "config.json").write_text(json.dumps(config))
        base = [str(program), "--root", str(bundle / "state"), *flags]
        stack.callback(subprocess.run, [*base, "delete", "--force", title], capture_output=True, check=False)
        yield Container([*base, "run", "--bundle", str(bundle), title], title)


@contextmanager
def _root() -> Iterator[Path]:
    """A bundle's folder with `rootfs`."""
    folder = Path(tempfile.mkdtemp(prefix="torpor-bundle-"))
    with ExitStack() as stack:
        stack.callback(folder.rmdir)
        # The overlay's own layer may not lie in the one below it.
        _succeed("mount", "-t", "tmpfs", "tmpfs", str(folder))
        # Recursively: runsc mounts a network namespace in the folder of its state.
        stack.callback(_succeed, "umount", "--recursive", str(folder))
        for name in ("upper", "work", "rootfs"):
            (folder / name).mkdir()
        layers = f"lowerdir=/,upperdir={folder / 'upper'},workdir={folder / 'work'}"
        _succeed("mount", "-t", "overlay", "overlay", "-o", layers, str(folder / "rootfs"))
        yield folder


@contextmanager
def network() -> Iterator[Network]:
    """For one container: gVisor takes the addresses out of the namespace."""
    name = f"torpor-{uuid.uuid4().hex[:8]}"
    outside = name.replace("torpor", "tp")
    ours, theirs = (NETWORK.format(os.getpid() % 256, last) for last in (1, 2))
    with ExitStack() as stack:
        _succeed("ip", "netns", "add", name)
        stack.callback(_succeed, "ip", "netns", "delete", name)
        _succeed("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
        stack.callback(_succeed, "ip", "link", "delete", outside)
        _succeed("ip", "address", "add", f"{ours}/30", "dev", outside)
        _succeed("ip", "link", "set", outside, "up")
        _succeed("ip", "-netns", name, "address", "add", f"{theirs}/30", "dev", "eth0")
        _succeed("ip", "-netns", name, "link", "set", "lo", "up")
        _succeed("ip", "-netns", name, "link", "set", "eth0", "up")
        yield Network(Path("/run/netns") / name, theirs)


def _config(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, network: Network | None, title: str
) -> dict[str, Any]:  # fmt: skip
    namespaces: list[dict[str, str]] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
    namespaces.append({"type": "network"} | ({"path": str(network.namespace)} if network else {}))
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": os.getuid(), "gid": os.getgid()},
            "args": list(command),
            "env": [f"{name}={value}" for name, value in environment.items()],
            "cwd": str(folder),
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs"},
        "hostname": title,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["mode=1777", "size=64m"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]},
        ],
        "linux": {"namespaces": namespaces, "cgroupsPath": f"/{title}"},
    }


def _succeed(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"{' '.join(command)}: {done.stdout.strip() or done.returncode}")
