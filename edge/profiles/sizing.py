"""Sizes of a pod from a node's memory and cores. Each is a guess with a reason; `torpor plan` measures instead."""

from dataclasses import dataclass

from torpor.knative.quantities import memory

from ..refused import Refused
from .profile import Profile

MIB = 1 << 20
SYSTEM_BYTES = 1024 * MIB
"""K3s's server, containerd and the system. K3s measured 1.6 GB for a server together with Prometheus and Grafana:
https://docs.k3s.io/reference/resource-profiling."""

K3S_PODS_BYTES = 128 * MIB
"""CoreDNS and the local-path provisioner."""

EVICTION_BYTES = 100 * MIB
"""What the kubelet keeps free by ending pods; it counts as nobody's."""

SMALL_SYSTEM_BYTES = 256 * MIB
"""Of a node without Kubernetes: systemd, sshd, journald, and page cache to start from."""

OVERHEAD_BYTES = 64 * MIB
"""gVisor's own kernel and file server for a pod, which lie outside the container's memory."""

BASE_BYTES = 300 * MIB
"""Python and torch before a model is loaded."""

SLEEPER_BYTES = 64 * MIB
"""`torpor up`, which stays awake before the model's process."""

UNSEEN_WEIGHTS_BYTES = 128 * MIB
"""Of a model whose folder shows none: it makes them, or the image has them."""

ROW_BYTES = 4 * MIB
"""Activations of a row, for want of a measurement."""

ROWS_A_CORE = 8
"""A batch holds its core, and whoever waits for it, as long as all of its rows take."""


@dataclass(frozen=True)
class Sizes:
    """instances: of the model, each with so many threads. why_…: the reason of each, in one line."""

    memory_bytes: int
    cpu: int
    cpu_request: str
    instances: int
    threads: int
    max_batch_size: int
    why_memory: str
    why_cpu: str
    why_request: str
    why_instances: str
    why_threads: str
    why_batch: str

    @property
    def device(self) -> str:
        """Of the setting `device`: the CPU as many times as there are instances."""
        return ",".join(["cpu"] * self.instances)


def visible_bytes(profile: Profile) -> int:
    """Of a machine's memory what its kernel shows at least: firmware, kernel and graphics keep up to an eighth."""
    return profile.memory_bytes * 7 // 8


def sizes(
    profile: Profile, weights_bytes: int, max_batch_size: int, has_kubernetes: bool = True, may_repeat: bool = True
) -> Sizes:
    """Of one model's pod or unit. max_batch_size: the model's own. Raises Refused where it does not fit.

    may_repeat: in a sandbox the model may have several instances.
    """
    sleeper = SLEEPER_BYTES if has_kubernetes and not profile.has_knative else 0
    overhead = OVERHEAD_BYTES if profile.is_sandboxed else 0
    others = SYSTEM_BYTES + K3S_PODS_BYTES + EVICTION_BYTES if has_kubernetes else SMALL_SYSTEM_BYTES
    free = visible_bytes(profile) - others - overhead
    weights = weights_bytes or UNSEEN_WEIGHTS_BYTES
    least = 2 * weights + BASE_BYTES + sleeper + ROW_BYTES
    if least > free:
        raise Refused(
            "profile",
            f"{profile.name}: the model needs {memory(least)}, must be at most {memory(max(free, 0))}: what is left of "
            f"memory = {memory(profile.memory_bytes)}",
        )
    cpu = max(1, profile.cores - 1)
    instances, more = 1, 2 * weights + ROW_BYTES
    if may_repeat and profile.is_sandboxed and profile.accelerator == "none":
        # In half of what is free: the node may have other models.
        instances = min(cpu, 1 + max(0, free // 2 - least) // more)
    threads = cpu // instances
    least += (instances - 1) * more
    rows = min(max_batch_size, ROWS_A_CORE * threads, (free - least) // (instances * ROW_BYTES) + 1)
    rows = 1 << (rows.bit_length() - 1)
    size = min(free, -(-(least + (rows - 1) * instances * ROW_BYTES) // (64 * MIB)) * 64 * MIB)
    seen = "of weights" if weights_bytes else "assumed, since the folder shows no weights"
    parts = f"2 × {weights / MIB:.0f} MiB {seen} (once more while they are read)"
    if instances > 1:
        parts += f" for each of {instances} instances"
    parts += f", {BASE_BYTES // MIB} MiB of torch"
    if sleeper:
        parts += f", {sleeper // MIB} MiB of torpor up"
    return Sizes(
        memory_bytes=size,
        cpu=cpu,
        cpu_request=f"{min(500, 250 * cpu)}m",
        instances=instances,
        threads=threads,
        max_batch_size=rows,
        why_memory=f"{parts}, {ROW_BYTES // MIB} MiB a row; {memory(free)} of the node's are free",
        why_cpu=f"as many as threads: {profile.cores} cores, of which one is K3s's and the event loop's"
        if profile.cores > 1
        else "the node's only core",
        why_request="half a core keeps the rest of the node schedulable; asleep it uses none"
        if cpu > 1
        else "a quarter of the core, since K3s's own pods ask for the rest",
        why_instances="threads of one operation wait for each other by calls of gVisor's kernel, instances do not",
        why_threads="more threads than cores would wait for each other",
        why_batch=f"at most {max_batch_size} by the model, {ROWS_A_CORE} rows a thread, and what {memory(size)} hold",
    )
