"""The cores of this process: how many it may use, by the scheduler's mask and the container's CPU limit (cgroups v1 and v2)."""

import os
from collections.abc import MutableMapping
from pathlib import Path


def share_cores(environ: MutableMapping[str, str]) -> None:
    """Let threads that wait for each other sleep, because other models want their cores; before torch is imported.

    OpenMP's threads spin by default: fastest for a model that is alone, and a core that the others do not have where it
    is not. What the user has set stays.
    """
    if "GOMP_SPINCOUNT" not in environ:
        environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def limit_threads(environ: MutableMapping[str, str], threads: int) -> None:
    """Let the libraries beneath numpy and scikit-learn start no more threads than this; before numpy is imported.

    They count the node's cores, whatever the container may use. torch is told by itself. What the user has set stays.
    OpenBLAS and MKL read OpenMP's variable where theirs is missing, and theirs would stay above a worker's own share.
    """
    environ.setdefault("OMP_NUM_THREADS", str(threads))


def usable_cores(root: Path = Path("/sys/fs/cgroup")) -> int:
    """At least 1; a limit of 1.5 cores counts as 1, since a second busy thread would only be throttled."""
    cores = len(os.sched_getaffinity(0))
    limit = _limit_v2(root) or _limit_v1(root)
    return max(1, min(cores, int(limit))) if limit else cores


def _limit_v2(root: Path) -> float | None:
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _limit_v1(root: Path) -> float | None:
    try:
        quota = int((root / "cpu/cpu.cfs_quota_us").read_text())
        period = int((root / "cpu/cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 else None
