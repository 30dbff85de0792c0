"""From an archive and its settings to a model that serves: unpacked, its workers started, its rows batched."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from ..batching.policy import BatchingPolicy, BatchingSettings
from ..batching.run_times import RunTimes
from ..errors import HandlerFailed, ModelFailed
from ..serving.batcher import Batcher
from ..serving.data_plane import DataPlane
from ..serving.metrics import ModelMetrics
from ..signature import Bound
from .archive import Archive
from .beginning import Begun, environment_of
from .handler_metrics import HandlerMetrics
from .manifest import ArchiveError
from .model_settings import ModelSettings
from .process import OnEnd, WorkerProcess
from .properties import Config
from .served import Origin, ServedArchive
from .workers import Start, Workers

logger = logging.getLogger("torpor.torchserve")

SERVER_VERSION = "0.12.0"
"""What handlers read as the server's: the TorchServe whose contract this is."""

_GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class AssembledArchive:
    """A version of an archive, not loaded yet.

    settings: torpor's own, resolved with the model's. cores: that all of its workers may use. is_from_start: nobody has
    registered it. begun: workers that wait for what they are to load.
    """

    archive: Archive
    config: Config
    model: ModelSettings
    settings: Mapping[str, Any]
    cores: int
    is_from_start: bool = True
    begun: list[Begun] = field(default_factory=list)

    @property
    def origin(self) -> Origin:
        """What the served model tells of itself."""
        runtime = self.archive.manifest.raw.get("runtime") or "python"
        return Origin(self.archive.path.name, str(runtime), self.model, self._gpus() > 0, self.is_from_start)

    async def load(self, data_plane: DataPlane, name: str, version: str) -> ServedArchive:
        """Unpack it and start its workers. Raises ArchiveError."""
        manifest = self.archive.manifest
        if manifest.requirements_file:
            logger.warning("%s: %s is not installed", self.archive.path.name, manifest.requirements_file)
        with ExitStack() as kept:
            with data_plane.metrics.phase("unpack"):
                folder = await asyncio.to_thread(kept.enter_context, self.archive.unpacked())
            if not (folder / manifest.serialized_file).exists():
                # A handler may do without, as TorchServe's base handler does for an eager model.
                logger.warning("%s: serializedFile = %r is not in it", self.archive.path.name, manifest.serialized_file)
            number = self.model.workers_on(self.cores)
            counted = HandlerMetrics(name)
            start = self._start(folder, name, version, number, counted)
            failed = HandlerFailed if self.settings["handler_failure_status"] == "503" else ModelFailed
            workers = Workers(name, number, start, self.model.response_timeout_s, failed)
            with data_plane.metrics.phase("load"):
                await workers.open()
            policy: BatchingPolicy[Bound] = BatchingPolicy(BatchingSettings.of(self.settings), RunTimes())
            metrics = ModelMetrics(name, version, policy, families=counted.families)
            batcher = Batcher(policy, workers, data_plane.observer(metrics))
            timeout_s = self.settings["request_timeout_s"]
            return ServedArchive(name, version, self.origin, batcher, workers, metrics, kept.pop_all(), timeout_s)

    def _start(self, folder: Path, name: str, version: str, workers_count: int, counted: HandlerMetrics) -> Start:
        """What gives one loaded worker."""
        manifest = self.archive.manifest
        gpus = self._gpus()
        numbers = count()
        options = {
            "name": name,
            "version": version,
            "folder": str(folder),
            "handler": manifest.handler,
            "manifest": manifest.raw,
            "config_file": manifest.config_file,
            "batch_size": self.settings["max_batch_size"],
            "server_version": SERVER_VERSION,
            "envelope": self.config.service_envelope,
            "decode_input_request": self.config.decode_input_request,
            "limit_max_image_pixels": self.config.limit_max_image_pixels,
            "log_level": self.settings["log_level"],
            "overlaps_batches": self.model.overlaps_batches,
        }
        environment = environment_of(workers_count, self.cores, self.settings)

        async def start(on_end: OnEnd) -> WorkerProcess:
            number = next(numbers)
            worker = WorkerProcess(name, number, on_end, counted.take)
            gpu = number % gpus if gpus else None
            try:
                own = {**options, "gpu_id": gpu}
                await worker.load(own, environment, self.model.startup_timeout_s, self._begun(environment))
            except ArchiveError as error:
                raise ArchiveError(f"{self.archive.path.name}: {error}") from None
            return worker

        return start

    def _begun(self, environment: Mapping[str, str]) -> Begun | None:
        """One that has begun as this one would."""
        for begun in self.begun:
            if begun.environment == environment:
                self.begun.remove(begun)
                return begun
        return None

    def _gpus(self) -> int:
        """How many the workers are spread over."""
        if self.model.device_type == "cpu" or self.settings["device"].startswith("cpu"):
            return 0
        if self.config.number_of_gpu is not None:
            return self.config.number_of_gpu
        return len([*_GPUS.iterdir()]) if _GPUS.is_dir() else 0
