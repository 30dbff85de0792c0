"""How TorchServe's management API describes a version: its settings, its workers, its queue."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .process import WorkerProcess
from .served import ServedArchive

_RETRIES_S = 300
"""TorchServe gives a model up after that; here it goes on trying."""


def describe(served: ServedArchive) -> dict[str, Any]:
    """By TorchServe's keys, in its order; what torpor does not have is off, as it is there unless asked for."""
    origin, policy = served.origin, served.batcher.policy
    settings = origin.settings
    return {
        "modelName": served.name,
        "modelVersion": served.version,
        "modelUrl": origin.file,
        "runtime": origin.runtime,
        "minWorkers": served.least_workers,
        "maxWorkers": served.most_workers,
        "batchSize": settings.batch_size,
        "maxBatchDelay": settings.max_batch_delay_ms,
        "responseTimeout": settings.response_timeout_s,
        "startupTimeout": settings.startup_timeout_s,
        "maxRetryTimeoutInSec": _RETRIES_S,
        "clientTimeoutInMills": settings.client_timeout_ms,
        "parallelType": "",
        "parallelLevel": 0,
        "deviceType": "gpu" if origin.has_gpus else "cpu",
        "continuousBatching": False,
        "useJobTicket": False,
        "useVenv": False,
        "stateful": False,
        "sequenceMaxIdleMSec": 0,
        "sequenceTimeoutMSec": 0,
        "maxNumSequence": 0,
        "maxSequenceJobQueueSize": 0,
        "loadedAtStartup": origin.is_from_start,
        "workers": [_worker(process, origin.has_gpus) for process in served.workers()],
        "jobQueueStatus": {
            "remainingCapacity": max(0, policy.settings.max_queue_rows - policy.queued_rows),
            "pendingRequests": policy.queued_rows,
        },
    }


def _worker(process: WorkerProcess, has_gpu: bool) -> dict[str, Any]:
    began = datetime.fromtimestamp(time.time() - (time.monotonic() - process.began_s), UTC)
    return {
        "id": str(process.number),
        "startTime": began.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "status": "READY",
        "memoryUsage": _memory_bytes(process.pid),
        "pid": process.pid,
        "gpu": has_gpu,
        "gpuUsage": "N/A",
    }


def _memory_bytes(pid: int) -> int:
    """What is resident; 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
