"""What is wrong with a node, and the command that mends it: a look at each thing that serving and updates stand on.

An error is something that does not work; a warning is something that will not, one day. Nothing is changed.
"""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from torpor.knative.quantities import memory

from .contents import time_text
from .disk import Disk
from .generations import Generation
from .machine import Machine
from .node import SPARE_BYTES, Node
from .profiles.profile import Profile, profile_of
from .profiles.sizing import visible_bytes
from .refused import Refused
from .trust import ends

LEAST_KERNEL = (4, 15)
"""gVisor's is 4.14.77; nobody ships the few between."""

_CONTROLLERS = ("cpu", "memory", "pids")
_K3S_PORTS = (6443, 10250)
PORT = 8080
_LISTENS = "0A"
_BOOT_S = 600
"""A clock may be wrong for so long after a start."""


@dataclass(frozen=True)
class Finding:
    """subject: one word. command: what mends it, in a shell."""

    subject: str
    level: Literal["error", "warning"]
    text: str
    command: str


def findings(node: Node, machine: Machine, now: datetime, disk: Disk | None = None) -> Iterator[Finding]:
    """Of the bundles, then of the machine. disk: that says how much is free."""
    current: Generation | None = None
    try:
        current = node.current()
    except Refused as refused:
        yield Finding("bundle", "error", str(refused), _again(node))
    yield from _bundle(node, current, now)
    profile = _profile(node, current)
    yield from _kernel(machine, profile)
    yield from _cgroups(machine)
    if profile is None or profile.is_sandboxed:
        yield from _sandbox(machine, is_needed=profile is not None)
    if profile is not None and profile.accelerator == "cuda":
        yield from _driver(machine, profile)
    yield from _memory(machine, profile)
    yield from _space(node, current, disk or Disk())
    yield from _clock(machine)
    yield from _network(machine, profile)
    yield from _ports(machine, current)


def _again(node: Node) -> str:
    return f"torpor edge install BUNDLE --node {node.root}"


def _bundle(node: Node, current: Generation | None, now: datetime) -> Iterator[Finding]:
    if current is None:
        if not (node.root / "current").is_symlink():
            yield Finding("bundle", "warning", "nothing is served yet", f"{_again(node)} --root 1.root.json")
    else:
        try:
            node.generations.check(current)
        except Refused as refused:
            yield Finding("bundle", "error", str(refused), _again(node))
        if current.before is not None:
            try:
                node.generations.check(node.generations.read(current.before))
            except Refused as refused:
                yield Finding("rollback", "warning", f"no rollback: {refused}", _again(node))
    try:
        state = node.state()
    except Refused as refused:
        away = f"mv {node.root / 'node.json'} {node.root / 'node.json.damaged'}"
        yield Finding("state", "error", f"no update: {refused}", f"{away} && {_again(node)} --root 1.root.json")
        return
    if state is None:
        return
    if state.trust.time > now:
        text = f"the clock is behind the last accepted time, {time_text(state.trust.time)}"
        yield Finding("clock", "error", text, "timedatectl set-ntp true")
    time = max(now, state.trust.time)
    if expired := [role for role, end in ends(state.trust).items() if end <= time]:
        text = f"the last accepted metadata has expired ({', '.join(expired)}); a newer bundle brings its own"
        yield Finding("metadata", "warning", text, _again(node))


def _profile(node: Node, current: Generation | None) -> Profile | None:
    """Of the bundle that is served."""
    try:
        return profile_of(node.root / "current", current.files) if current else None
    except (OSError, Refused):  # said already: it is one of the generation's files
        return None


def _kernel(machine: Machine, profile: Profile | None) -> Iterator[Finding]:
    release = machine.text("proc/sys/kernel/osrelease").strip()
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None or (int(found[1]), int(found[2])) < LEAST_KERNEL:
        text = f"kernel = {release or 'unknown'}, must be at least {LEAST_KERNEL[0]}.{LEAST_KERNEL[1]}"
        is_needed = profile is None or profile.is_sandboxed
        yield Finding("kernel", "error" if is_needed else "warning", text, "apt-get dist-upgrade && reboot")


def _cgroups(machine: Machine) -> Iterator[Finding]:
    controllers = machine.text("sys/fs/cgroup/cgroup.controllers").split()
    if not controllers:
        option = "systemd.unified_cgroup_hierarchy=1"
        yield Finding(
            "cgroups", "error", "cgroups are not version 2, which Kubernetes needs", _boot_option(machine, option)
        )
    elif lacking := [name for name in _CONTROLLERS if name not in controllers]:
        text = f"cgroups have no controller for {', '.join(lacking)}: limits hold nobody"
        option = " ".join(f"cgroup_enable={name}" for name in lacking)
        yield Finding("cgroups", "error", text, _boot_option(machine, option))


def _boot_option(machine: Machine, option: str) -> str:
    """For a Raspberry Pi's firmware, or for GRUB."""
    for file in ("boot/firmware/cmdline.txt", "boot/cmdline.txt"):
        if machine.has(file):
            return f"sed -i '1 s/$/ {option}/' /{file} && reboot"
    line = r"s/^GRUB_CMDLINE_LINUX=\"/&" + option + " /"
    return f'sed -i "{line}" /etc/default/grub && update-grub && reboot'


def _sandbox(machine: Machine, is_needed: bool) -> Iterator[Finding]:
    level: Literal["error", "warning"] = "error" if is_needed else "warning"
    for program in ("runsc", "containerd-shim-runsc-v1"):
        if not machine.program(program):
            text = f"{program} is not on the path ({machine.path}): no pod with RuntimeClass gvisor starts"
            yield Finding("runsc", level, text, f"install -m 755 {program} /usr/local/bin/ && systemctl restart k3s")
            return
    if re.search(r'^\s*platform\s*=\s*"kvm"', machine.text("etc/containerd/runsc.toml"), re.M) and not machine.has(
        "dev/kvm"
    ):
        text = "runsc's platform = kvm, and there is no /dev/kvm"
        yield Finding("runsc", "error", text, """sed -i 's/"kvm"/"systrap"/' /etc/containerd/runsc.toml""")


def _driver(machine: Machine, profile: Profile) -> Iterator[Finding]:
    version = machine.driver
    if not version:
        text = "accelerator = 'cuda', and no NVIDIA driver is loaded"
        yield Finding("driver", "error", text, "modprobe nvidia || apt-get install nvidia-driver")
        return
    runsc = machine.program("runsc")
    if profile.is_sandboxed and runsc:
        listed = _supported(runsc)
        if listed and version not in listed:
            text = f"driver = {version}, must be one that runsc knows: {', '.join(sorted(listed)[-3:])} are the last"
            yield Finding("driver", "error", text, "runsc nvproxy list-supported-drivers")


def _supported(runsc: str) -> set[str]:
    """The drivers that gVisor can pass through; empty where it does not say."""
    try:
        command = [runsc, "nvproxy", "list-supported-drivers"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return set(re.findall(r"\d+\.\d+(?:\.\d+)?", done.stdout))


def _memory(machine: Machine, profile: Profile | None) -> Iterator[Finding]:
    total = machine.memory_bytes
    if profile is not None and total < visible_bytes(profile):
        text = f"memory = {memory(total)}, must be {memory(profile.memory_bytes)} as {profile.name}'s profile says"
        yield Finding(
            "memory", "error", text, f"torpor edge profile {profile.name}.toml --out FILES # with the true memory"
        )
    available = machine.meminfo("MemAvailable")
    if available * 20 < total:
        text = f"{memory(available)} of {memory(total)} are available: the next model may be killed as it loads"
        yield Finding("memory", "warning", text, "ps -eo rss,pid,args --sort=-rss | head")


def _space(node: Node, current: Generation | None, disk: Disk) -> Iterator[Finding]:
    there = next(folder for folder in (node.root, *node.root.absolute().parents) if folder.is_dir())
    free = disk.free_bytes(there)
    need = sum(file.size for file in current.files) + SPARE_BYTES if current else SPARE_BYTES
    if free < need:
        text = f"{node.root} has {memory(free)} free, an update of what is served may need {memory(need)}"
        yield Finding("disk", "warning", text, "journalctl --vacuum-size=50M; k3s crictl rmi --prune")


def _clock(machine: Machine) -> Iterator[Finding]:
    """As systemd-timesyncd and chrony say it; who has neither hears of it too."""
    told = ("run/systemd/timesync/synchronized", "run/chrony/chronyd.pid", "run/chronyd.pid", "run/ntpd.pid")
    up_s = float((machine.text("proc/uptime").split() or ["0"])[0])
    if up_s > _BOOT_S and not any(machine.has(name) for name in told):
        yield Finding(
            "clock", "warning", "nothing sets the clock: no update expires where it stands", "timedatectl set-ntp true"
        )


def _network(machine: Machine, profile: Profile | None) -> Iterator[Finding]:
    routes = [line.split() for line in machine.text("proc/net/route").splitlines()[1:]]
    if not any(len(route) > 1 and route[1] == "00000000" for route in routes):
        dummy = "ip link add dummy0 type dummy && ip addr add 203.0.113.254/31 dev dummy0 && ip link set dummy0 up"
        command = f"{dummy} && ip route add default via 203.0.113.255 dev dummy0 metric 1000"
        yield Finding("route", "error", "there is no default route, without which K3s does not start", command)
    if profile is not None and profile.link == "none":
        return
    if not re.search(r"^\s*nameserver\s+\S", machine.text("etc/resolv.conf"), re.M):
        text = "/etc/resolv.conf names no server: no name of the site is found"
        yield Finding("dns", "error", text, "systemctl enable --now systemd-resolved")


def _ports(machine: Machine, current: Generation | None) -> Iterator[Finding]:
    """Of others, where nothing of ours runs yet that would hold them."""
    taken = {
        int(fields[1].rpartition(":")[2], 16)
        for name in ("proc/net/tcp", "proc/net/tcp6")
        for fields in (line.split() for line in machine.text(name).splitlines()[1:])
        if len(fields) > 3 and fields[3] == _LISTENS
    }
    wanted = [(port, "K3s") for port in _K3S_PORTS if not machine.has("var/lib/rancher/k3s")]
    wanted += [(PORT, "the model's unit")] if current is None else []
    for port, whose in wanted:
        if port in taken:
            text = f"port {port}, which {whose} needs, is taken"
            yield Finding("ports", "error", text, f"ss -ltnp 'sport = :{port}'")
