"""How many cores this process may use: the scheduler's mask and the container's CPU limit (cgroups v1 and v2)."""

import os
from pathlib import Path


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
