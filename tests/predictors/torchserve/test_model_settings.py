"""How one model of TorchServe's is served: what may be said of it, and by whom."""

import re
from typing import Any

import pytest
from torpor.predictors.settings import SettingError
from torpor.predictors.torchserve.model_settings import ModelSettings, check_snapshot
from torpor.predictors.torchserve.properties import Config

MOST = 2**31


@pytest.mark.parametrize(
    ("key", "name", "lowest"),
    [
        ("minWorkers", "workers", 0),
        ("maxWorkers", "most_workers", 0),
        ("batchSize", "batch_size", 1),
        ("maxBatchDelay", "max_batch_delay_ms", 0),
        ("responseTimeout", "response_timeout_s", 1),
        ("startupTimeout", "startup_timeout_s", 1),
        ("jobQueueSize", "job_queue_size", 1),
        ("clientTimeoutInMills", "client_timeout_ms", 0),
    ],
)
def test_a_number_is_in_its_range(key: str, name: str, lowest: int) -> None:
    """Both ends are; what is beyond them, or no integer, is named."""
    for value in (lowest, MOST):
        assert getattr(ModelSettings().changed({key: value}, "m"), name) == value
    for wrong in (lowest - 1, MOST + 1, True, 1.0, "1"):
        reason = f"m: {key} = {wrong!r}, must be an integer in [{lowest}, {MOST}]"
        with pytest.raises(SettingError, match=f"^{re.escape(reason)}$"):
            ModelSettings().changed({key: wrong}, "m")


@pytest.mark.parametrize(
    ("key", "name"), [("overlapBatches", "overlaps_batches"), ("bucketByLength", "buckets_by_length")]
)
def test_a_flag_is_true_or_false(key: str, name: str) -> None:
    """No number, and no word."""
    for value in (True, False):
        assert getattr(ModelSettings().changed({key: value}, "m"), name) is value
    for wrong in (1, 0, "true"):
        with pytest.raises(SettingError, match=f"m: {key} = {wrong!r}, must be true or false"):
            ModelSettings().changed({key: wrong}, "m")


def test_a_device_is_one_that_there_is() -> None:
    """By TorchServe's names."""
    for value in ("cpu", "gpu"):
        assert ModelSettings().changed({"deviceType": value}, "m").device_type == value
    with pytest.raises(SettingError, match="m: deviceType = 'tpu', must be one of cpu, gpu"):
        ModelSettings().changed({"deviceType": "tpu"}, "m")


def test_what_is_null_or_the_handlers_own_changes_nothing() -> None:
    """A model's YAML has both."""
    nothing = dict.fromkeys(["minWorkers", "overlapBatches", "bucketByLength", "deviceType"]) | {"handler": {"own": 1}}
    settings = ModelSettings(workers=3, overlaps_batches=True, buckets_by_length=False, device_type="cpu")
    assert settings.changed(nothing, "m") == settings


def test_what_nobody_says_is_the_configurations_and_then_torchserves() -> None:
    """A number of workers of 0 is none that is said."""

    def settings(config: Config) -> ModelSettings:
        return ModelSettings.of(config, {}, "m", None, {})

    config = Config(
        default_workers_per_model=2, default_response_timeout=3, default_startup_timeout=4, job_queue_size=5
    )
    assert settings(config) == ModelSettings(workers=2, response_timeout_s=3, startup_timeout_s=4, job_queue_size=5)
    assert settings(Config()) == ModelSettings() == ModelSettings(
        workers=None, most_workers=None, batch_size=1, max_batch_delay_ms=100, response_timeout_s=120,
        startup_timeout_s=120, job_queue_size=100, client_timeout_ms=0, device_type="", overlaps_batches=None,
        buckets_by_length=True,
    )  # fmt: skip


def test_a_registration_is_before_a_snapshot_and_that_before_the_archive() -> None:
    """And each is named in what is wrong with it."""
    said: dict[str, Any] = {"own": {"batchSize": 1}, "snapshot": {"batchSize": 2}, "asked": {"batchSize": 3}}
    of = ModelSettings.of
    assert of(Config(), where="m", **said).batch_size == 3
    assert of(Config(), where="m", **said | {"asked": {}}).batch_size == 2
    assert of(Config(), where="m", **said | {"asked": {}, "snapshot": None}).batch_size == 1
    for who, where in (("own", "m"), ("snapshot", "model_snapshot"), ("asked", "registration")):
        with pytest.raises(SettingError, match=f"^{where}: batchSize = 0, must be"):
            of(Config(), where="m", **said | {who: {"batchSize": 0}})


def test_batching_has_them_by_its_own_names() -> None:
    """And in its own units."""
    settings = ModelSettings(batch_size=2, max_batch_delay_ms=3, job_queue_size=4, client_timeout_ms=1500)
    assert settings.for_batching() == {
        "max_batch_size": 2, "batch_timeout_micros": 3000, "max_queue_rows": 4, "request_timeout_s": 1.5,
    }  # fmt: skip


ENTRY = {
    "marName": "a.mar",
    "defaultVersion": True,
    "minWorkers": 1,
    "maxWorkers": 1,
    "batchSize": 1,
    "maxBatchDelay": 1,
}


def test_a_snapshots_entry_is_whole() -> None:
    """As TorchServe has it, which would not start either."""
    assert check_snapshot(ENTRY, "m") == ENTRY
    for key in ENTRY:
        with pytest.raises(SettingError, match=f"^m: {key} is missing$"):
            check_snapshot({name: value for name, value in ENTRY.items() if name != key}, "m")
    with pytest.raises(SettingError, match=r"^m is a list, must be an object$"):
        check_snapshot([], "m")


@pytest.mark.parametrize("file", [1, "", "../a.mar", "/a.mar", "a/b.mar"])
def test_a_snapshots_archive_is_a_file_of_the_store(file: object) -> None:
    """And leads nowhere else."""
    with pytest.raises(SettingError, match=f"^m: marName = {re.escape(repr(file))}, must be a file's name$"):
        check_snapshot(ENTRY | {"marName": file}, "m")
