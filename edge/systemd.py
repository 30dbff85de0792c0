"""What is served, by systemd and without Kubernetes: a unit for each model, as the bundle's profile sizes it.

A unit runs `torpor serve` as a process with systemd's hardening, or, where the profile's RuntimeClass is gvisor, in a sandbox
of runsc whose root has nothing but the interpreter, torpor and the model, read-only. Both read `current`, so that a start
after a power cut serves what is served; placing restarts a unit, which is when a new generation is seen. Units begin with
`torpor-`, come by one rename, and go when their model is not served any more.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torpor.knative.render import WEIGHTS

from .contents import of_kind
from .disk import Disk
from .generations import Generation
from .machine import Machine
from .profiles.profile import Profile, profile_of
from .profiles.sandbox import VARIABLES
from .profiles.sizing import Sizes, sizes
from .refused import Refused

PREFIX = "torpor-"
PORT = 8080
"""Of the first model; the others take those behind it, by their names' order."""

_SANDBOX = "/mnt/model"
_SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache")
_USER = 65532


class Systemd:
    """folder: of units, /etc/systemd/system. root: of the node's bundles. say: gets each systemctl that is run."""

    def __init__(
        self, folder: Path, root: Path, machine: Machine, say: Callable[[str], None], disk: Disk | None = None
    ) -> None:
        """Raises Refused where there is no such folder."""
        if not folder.is_dir():
            raise Refused("state", f"{folder} does not exist, must be systemd's folder of units")
        self._folder = folder
        self._root = root.absolute()
        self._machine = machine
        self._say = say
        self._disk = disk or Disk()

    def place(self, generation: Generation) -> list[str]:
        """Write, start and restart; the units. Nothing is started where systemd does not run. Raises Refused, OSError."""
        profile = self._profile(generation)
        wanted = {}
        for number, model in enumerate(generation.models):
            files = of_kind(generation.files, f"model/{model}")
            fit = sizes(profile, sum(f.size for f in files if f.path.endswith(WEIGHTS)), 65536, has_kubernetes=False)
            wanted[f"{PREFIX}{model}.service"] = self._unit(generation, profile, fit, model, PORT + number)
        for path in sorted(self._folder.glob(f"{PREFIX}*.service")):
            if path.name not in wanted:
                self._systemctl("disable", "--now", path.name)
                self._disk.remove(path)
        for name, text in wanted.items():
            self._disk.put(self._folder / name, text.encode())
        self._disk.sync_folder(self._folder)
        self._systemctl("daemon-reload")
        for name in wanted:
            self._systemctl("enable", name)
            self._systemctl("restart", name)
        return list(wanted)

    def _profile(self, generation: Generation) -> Profile:
        profile = profile_of(self._root / "current", generation.files)
        if profile is None:
            what = f"{generation.bundle} {generation.version}"
            raise Refused("profile", f"{what} has no profile, which says how large its units are")
        return profile

    def _systemctl(self, *arguments: str) -> None:
        # As sd_booted(3) has it: units may be written into an image, where nothing runs them yet.
        if not self._machine.has("run/systemd/system"):
            return
        command = [self._machine.program("systemctl") or "systemctl", *arguments]
        self._say(" ".join(["systemctl", *arguments]))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Refused("state", f"systemctl {' '.join(arguments)}: {done.stderr.strip() or done.returncode}")

    def _unit(self, generation: Generation, profile: Profile, fit: Sizes, model: str, port: int) -> str:
        torpor = str(Path(sys.executable).with_name("torpor"))
        variables: dict[str, Any] = {
            "TORPOR_THREADS": fit.threads,
            "TORPOR_MODEL_NAME": model,
            "PYTHONUNBUFFERED": 1,
            "PYTHONSAFEPATH": 1,
        }
        if profile.is_sandboxed:
            variables |= {name: value for name, (value, _) in VARIABLES.items()}
            if fit.instances > 1:
                variables["TORPOR_DEVICE"] = fit.device
            start = self._sandbox(model, [torpor, "serve", _SANDBOX, "--port", str(port)], variables)
            hardening = _AROUND_RUNSC
        else:
            environment = "".join(f"Environment={name}={value}\n" for name, value in variables.items())
            served = self._root / "current" / "model" / model
            start = f"{environment}ExecStart={torpor} serve {served} --port {port}\n"
            # A GPU is a device beyond those that everybody has.
            hardening = _HARDENING + f"PrivateDevices={'no' if profile.accelerator == 'cuda' else 'yes'}\n"
        return f"""\
# By `torpor edge`: the next installation writes it anew. Additions belong into {PREFIX}{model}.service.d/.
[Unit]
Description=torpor: {model} of {generation.bundle} {generation.version}
# A model is asked for as long as the node runs: never give up.
StartLimitIntervalSec=0

[Service]
Type=exec
{start}\
Restart=always
RestartSec=2
# torpor answers what is under way, then ends.
KillMode=mixed
TimeoutStopSec=60
# {fit.why_memory}
MemoryMax={fit.memory_bytes}
# {fit.why_cpu}
CPUQuota={fit.cpu * 100}%
TasksMax=512
{hardening}
[Install]
WantedBy=multi-user.target
"""

    def _sandbox(self, model: str, arguments: list[str], variables: dict[str, Any]) -> str:
        """Write the OCI bundle; the lines that run it."""
        runsc = self._machine.program("runsc")
        if not runsc:
            raise Refused("profile", "runtime_class = 'gvisor', this node has no runsc on its path")
        folder = self._root / "sandboxes" / model
        self._disk.need_folder(folder / "root")
        config = sandbox_config(self._root / "current" / "model" / model, arguments, variables)
        self._disk.put(folder / "config.json", json.dumps(config, indent=2).encode())
        base = f"{runsc} --root=/run/torpor-runsc --platform=systrap --network=host --ignore-cgroups"
        return f"""\
# What a power cut or a kill has left of it.
ExecStartPre=-{base} delete --force {PREFIX}{model}
ExecStart={base} run --bundle={folder} {PREFIX}{model}
# runsc passes no signal on to what it runs; torpor ends when it has answered what is under way.
ExecStop=-{base} kill {PREFIX}{model} TERM
ExecStop=-{base} wait {PREFIX}{model}
ExecStopPost=-{base} delete --force {PREFIX}{model}
"""


def sandbox_config(model: Path, arguments: list[str], variables: dict[str, Any]) -> dict[str, Any]:
    """An OCI runtime's config.json. The root is empty: what the process needs is mounted; /tmp and /dev alone are writable."""
    needed = dict.fromkeys([*_SYSTEM, sys.prefix, sys.base_prefix])
    inner = [
        path
        for path in needed
        if Path(path).exists() and not any(o != path and Path(path).is_relative_to(o) for o in needed)
    ]
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=64m", "mode=1777"]},
        *({"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]} for path in inner),
        {"destination": _SANDBOX, "type": "bind", "source": str(model), "options": ["rbind", "ro"]},
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": _USER, "gid": _USER},
            "args": arguments,
            "env": [
                f"PATH={Path(sys.executable).parent}:/usr/bin:/bin",
                *(f"{name}={value}" for name, value in variables.items()),
            ],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": {kind: [] for kind in ("bounding", "effective", "permitted", "inheritable")},
        },
        "root": {"path": "root", "readonly": True},
        "hostname": "torpor",
        "mounts": mounts,
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]},
    }


_HARDENING = """\
DynamicUser=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
ProtectProc=invisible
ProtectClock=yes
ProtectHostname=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
UMask=0077
"""

_AROUND_RUNSC = """\
# runsc makes namespaces and changes its root: what protects the node from the model is the sandbox, not these.
ProtectClock=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
RestrictRealtime=yes
"""
