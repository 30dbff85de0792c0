"""A machine for tests: /proc, /sys and /etc in a folder, programs on a path of its own."""

from pathlib import Path

from torpor.edge.machine import Machine

_FILES = {
    "proc/sys/kernel/osrelease": "6.1.0-18-amd64\n",
    "proc/meminfo": "MemTotal: 3900000 kB\nMemAvailable: 2900000 kB\n",
    "proc/uptime": "500000.0 900000.0\n",
    "proc/net/route": "Iface\tDestination\tGateway\neth0\t00000000\t0100000A\n",
    "proc/net/tcp": "  sl  local_address rem_address   st\n",
    "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
    "run/systemd/timesync/synchronized": "",
    "etc/resolv.conf": "nameserver 10.0.0.1\n",
    "etc/containerd/runsc.toml": '[runsc_config]\n  platform = "systrap"\n',
}


def make_machine(
    folder: Path, architecture: str = "amd64", programs: tuple[str, ...] = (), **files: str | None
) -> Machine:
    """A healthy one of 4 GiB. files: instead of its own, by paths with __ for a slash; None for one that is not there."""
    wanted: dict[str, str | None] = {**_FILES, **{path.replace("__", "/"): text for path, text in files.items()}}
    for path, text in wanted.items():
        if text is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
    (folder / "bin").mkdir()
    for name in programs:
        add_program(folder, name)
    return Machine(folder, str(folder / "bin"), architecture)


def add_program(folder: Path, name: str, script: str = "#!/bin/sh\n") -> None:
    """To the machine's path."""
    (folder / "bin" / name).write_text(script)
    (folder / "bin" / name).chmod(0o755)
