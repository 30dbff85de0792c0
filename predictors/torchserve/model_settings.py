"""How one model of TorchServe's is served: its snapshot's entry, else its own YAML, else `models=`, else the defaults.

Names and meaning are TorchServe's (https://docs.pytorch.org/serve/configuration.html); batches are formed by torpor's policy,
which does not wait `maxBatchDelay` out while nobody else is expected.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..settings import SettingError
from .properties import Config

_NUMBERS = {
    # key: (field, lowest)
    "minWorkers": ("workers", 0),
    "maxWorkers": ("most_workers", 0),
    "batchSize": ("batch_size", 1),
    "maxBatchDelay": ("max_batch_delay_ms", 0),
    "responseTimeout": ("response_timeout_s", 1),
    "startupTimeout": ("startup_timeout_s", 1),
    "jobQueueSize": ("job_queue_size", 1),
    "clientTimeoutInMills": ("client_timeout_ms", 0),
}
_FLAGS = {"overlapBatches": "overlaps_batches", "bucketByLength": "buckets_by_length"}
_SNAPSHOT_NEEDS = ("marName", "defaultVersion", "minWorkers", "maxWorkers", "batchSize", "maxBatchDelay")
_DEVICES = ("cpu", "gpu")


@dataclass(frozen=True)
class ModelSettings:
    """One model's settings. workers: None for as many as there are cores; 0 for none until it is scaled.

    most_workers: up to which it may have been scaled. device_type: "" for a GPU where there is one. client_timeout_ms: of
    requests without a deadline of their own; 0 for none.

    Two are torpor's own. overlaps_batches: whether pre- and postprocessing of a batch run while the device works on another;
    None: if the handler is TorchServe's. buckets_by_length: whether bodies of like length share batches first.
    """

    workers: int | None = None
    most_workers: int | None = None
    batch_size: int = 1
    max_batch_delay_ms: int = 100
    response_timeout_s: int = 120
    startup_timeout_s: int = 120
    job_queue_size: int = 100
    client_timeout_ms: int = 0
    device_type: str = ""
    overlaps_batches: bool | None = None
    buckets_by_length: bool = True

    @classmethod
    def of(
        cls,
        config: Config,
        own: Mapping[str, Any],
        where: str,
        snapshot: Mapping[str, Any] | None,
        asked: Mapping[str, Any],
    ) -> "ModelSettings":
        """own: the archive's YAML, or the entry in `models=`. asked: what its registration says.

        Raises SettingError naming `where`, key, value and range.
        """
        settings = cls(
            workers=config.default_workers_per_model or None,
            response_timeout_s=config.default_response_timeout,
            startup_timeout_s=config.default_startup_timeout,
            job_queue_size=config.job_queue_size,
        )
        return settings.changed(own, where).changed(snapshot or {}, "model_snapshot").changed(asked, "registration")

    def changed(self, said: Mapping[str, Any], where: str) -> "ModelSettings":
        """With what an object of TorchServe's keys says; its other keys are the handler's. Raises SettingError."""
        changes: dict[str, Any] = {}
        for key, (name, lowest) in _NUMBERS.items():
            value = said.get(key)
            if value is None:
                continue
            if type(value) is not int or not lowest <= value <= 1 << 31:
                raise SettingError(f"{where}: {key} = {value!r}, must be an integer in [{lowest}, {1 << 31}]")
            changes[name] = value
        for key, name in _FLAGS.items():
            value = said.get(key)
            if value is None:
                continue
            if type(value) is not bool:
                raise SettingError(f"{where}: {key} = {value!r}, must be true or false")
            changes[name] = value
        device = said.get("deviceType")
        if device is not None:
            if device not in _DEVICES:
                raise SettingError(f"{where}: deviceType = {device!r}, must be one of {', '.join(_DEVICES)}")
            changes["device_type"] = device
        return replace(self, **changes)

    def workers_on(self, cores: int) -> int:
        """How many there are to be at the start."""
        return cores if self.workers is None else self.workers

    def for_batching(self) -> dict[str, Any]:
        """By the names of torpor's settings, as a model's file would give them."""
        return {
            "max_batch_size": self.batch_size,
            "batch_timeout_micros": self.max_batch_delay_ms * 1000,
            "max_queue_rows": self.job_queue_size,
            "request_timeout_s": self.client_timeout_ms / 1e3,
        }


def check_snapshot(entry: Any, where: str) -> Mapping[str, Any]:
    """One version's entry in a snapshot. Raises SettingError."""
    if not isinstance(entry, dict):
        raise SettingError(f"{where} is a {type(entry).__name__}, must be an object")
    for key in _SNAPSHOT_NEEDS:
        if key not in entry:
            raise SettingError(f"{where}: {key} is missing")
    if not isinstance(entry["marName"], str) or "/" in entry["marName"] or not entry["marName"]:
        raise SettingError(f"{where}: marName = {entry['marName']!r}, must be a file's name")
    return entry
