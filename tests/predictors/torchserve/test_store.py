"""What a folder of archives serves: names, versions, and each model's settings."""

from dataclasses import replace
from pathlib import Path

import pytest
from archives import entry, manifest, write_mar, write_storage, write_tgz
from torpor.predictors.catalog import Outside
from torpor.predictors.errors import NotFound
from torpor.predictors.settings import SettingError
from torpor.predictors.torchserve.assembly import AssembledArchive
from torpor.predictors.torchserve.place import has_archives
from torpor.predictors.torchserve.store import ArchiveStore

CODE = {"handler.py": ""}


def served(root: Path, name: str | None = None) -> dict[str, list[str]]:
    """The versions by model, as the store has them."""
    assert has_archives(root)
    found = ArchiveStore.of(root, Outside({}, {}), 4, name)
    return {model: found.model(model).versions() for model in found.names()}


def assembled(root: Path, name: str, **flags: object) -> AssembledArchive:
    model = ArchiveStore.of(root, Outside(flags, {}), 4, None).model(name)
    return model.assemble(model.versions()[0])


def test_one_archive_has_its_own_name(tmp_path: Path) -> None:
    """The manifest's, unless the command gives another."""
    path = write_mar(tmp_path / "file.mar", CODE, manifest("mlp", version="3"))
    assert served(path) == {"mlp": ["3"]}
    assert served(path, "other") == {"other": ["3"]}


def test_a_folder_of_archives_has_them_all(tmp_path: Path) -> None:
    """Of every kind; two of one name are its versions, the first of the files its default."""
    write_mar(tmp_path / "a.mar", CODE, manifest("m", version="1.0"))
    write_mar(tmp_path / "b.mar", CODE, manifest("m", version="2.0"))
    write_tgz(tmp_path / "c.tar.gz", CODE, manifest("c"), "c")
    (tmp_path / "d/MAR-INF").mkdir(parents=True)
    (tmp_path / "README").write_text("")
    assert served(tmp_path) == {"m": ["1.0", "2.0"], "c": ["1.0"], "d": ["1.0"]}
    with pytest.raises(SettingError, match=r"--model-name: 'x', but .* has several models: m, c, d"):
        served(tmp_path, "x")


def test_a_folders_archives_are_in_the_order_of_their_files(tmp_path: Path) -> None:
    """Whatever order the disk has them in: the first is the default."""
    for number in (3, 1, 6, 2, 5, 4):
        write_mar(tmp_path / f"{number}.mar", CODE, manifest("m", version=str(number)))
    assert served(tmp_path) == {"m": ["1", "2", "3", "4", "5", "6"]}


def test_archives_may_come_later(tmp_path: Path) -> None:
    """Where there is management; then there may be none, also under a name for the only one."""
    outside = Outside({}, {})
    assert ArchiveStore.of(tmp_path, outside, 4, "m", may_be_empty=True).names() == []
    with pytest.raises(SettingError, match="no archive to serve in it"):
        ArchiveStore.of(tmp_path, outside, 4, None)


def test_a_model_that_there_is_not_is_named(tmp_path: Path) -> None:
    """With those that there are."""
    for name in ("a", "b"):
        write_mar(tmp_path / f"{name}.mar", CODE, manifest(name))
    with pytest.raises(NotFound, match="model 'c' is unknown, must be one of a, b"):
        ArchiveStore.of(tmp_path, Outside({}, {}), 4, None).model("c")
    with pytest.raises(SettingError, match=r"--model-name: 'c', but .* has several models: a, b"):
        ArchiveStore.of(tmp_path, Outside({}, {}), 4, "c")


def test_a_configuration_says_how_large_a_request_may_be(tmp_path: Path) -> None:
    """Of torpor's own settings nothing else."""
    write_mar(tmp_path / "model-store/a.mar", CODE)
    for more, expected in (("", {}), ("max_request_size=7", {"max_body_bytes": 7})):
        store = ArchiveStore.of(write_storage(tmp_path, None, more), Outside({}, {}), 4, None)
        assert store.settings == expected


@pytest.mark.parametrize(("processes", "cores"), [(1, 4), (2, 2), (8, 1)])
def test_processes_share_the_cores(tmp_path: Path, processes: int, cores: int) -> None:
    """Each has one at least."""
    write_mar(tmp_path / "a.mar", CODE)
    assert assembled(tmp_path / "a.mar", "a", processes=processes).cores == cores


def test_what_models_says_of_an_archive_may_be_nothing(tmp_path: Path) -> None:
    """Of another one, of another version, or no object."""
    write_mar(tmp_path / "model-store/a.mar", CODE)
    for models in ("null", "{}", '{"a": 1}', '{"a": {"1.0": 1}}', '{"a": {"2.0": {"batchSize": 2}}}'):
        more = "" if models == "null" else f"models={models}"
        assert assembled(write_storage(tmp_path, None, more), "a").model.batch_size == 1


def test_two_archives_of_one_name_and_version_are_refused(tmp_path: Path) -> None:
    """Both files are named."""
    for file in ("a.mar", "b.mar"):
        write_mar(tmp_path / file, CODE, manifest("m"))
    with pytest.raises(SettingError, match=r"a\.mar and b\.mar are both version 1\.0 of model 'm'"):
        served(tmp_path)


def test_a_folder_of_anything_else_is_not_archives(tmp_path: Path) -> None:
    """It is looked at no further."""
    (tmp_path / "model").mkdir()
    (tmp_path / "weights.pt").write_text("")
    assert not has_archives(tmp_path)
    assert not has_archives(tmp_path / "weights.pt")
    assert not has_archives(tmp_path / "nothing")


def test_kserves_storage_is_served_by_its_snapshot(tmp_path: Path) -> None:
    """Names are the snapshot's, versions the archives'; the default version comes first."""
    write_mar(tmp_path / "model-store/one.mar", CODE, manifest("m", version="1.0"))
    write_mar(tmp_path / "model-store/two.mar", CODE, manifest("m", version="2.0"))
    write_mar(tmp_path / "model-store/unused.mar", CODE)
    versions = {"1.0": entry("one.mar", defaultVersion=False), "7": entry("two.mar")}
    write_storage(tmp_path, {"alias": versions})
    assert served(tmp_path) == {"alias": ["2.0", "1.0"]}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"marName": "none.mar"}, r"marName = 'none\.mar', must be an archive in "),
        ({"marName": "../a.mar"}, r"marName = '\.\./a\.mar', must be a file's name"),
        ({"batchSize": "four"}, r"batchSize = 'four', must be an integer in \[1, 2147483648\]"),
        ({"minWorkers": -1}, r"minWorkers = -1, must be an integer in \[0, 2147483648\]"),
    ],
)
def test_a_wrong_snapshot_is_named(tmp_path: Path, said: dict[str, object], reason: str) -> None:
    """Model, key, value and range."""
    write_mar(tmp_path / "model-store/a.mar", CODE)
    write_storage(tmp_path, {"m": {"1.0": entry("a.mar") | said}})
    with pytest.raises(SettingError, match=reason):
        assembled(tmp_path, "m")


def test_a_snapshots_model_has_versions(tmp_path: Path) -> None:
    """By name, as an object."""
    write_mar(tmp_path / "model-store/a.mar", CODE)
    write_storage(tmp_path, {"m": [entry("a.mar")]})
    with pytest.raises(SettingError, match="model_snapshot: m must be an object of versions"):
        served(tmp_path)


def test_a_snapshot_that_lacks_a_key_is_refused(tmp_path: Path) -> None:
    """TorchServe does not start then either."""
    write_mar(tmp_path / "model-store/a.mar", CODE)
    said = entry("a.mar")
    del said["batchSize"]
    write_storage(tmp_path, {"m": {"1.0": said}})
    with pytest.raises(SettingError, match=r"model_snapshot: m 1\.0: batchSize is missing"):
        served(tmp_path)


def test_without_a_snapshot_load_models_says(tmp_path: Path) -> None:
    """All of them, or files, under a name or their own."""
    for name in ("a", "b"):
        write_mar(tmp_path / f"model-store/{name}.mar", CODE)
    assert served(write_storage(tmp_path, None)) == {"a": ["1.0"], "b": ["1.0"]}
    assert served(write_storage(tmp_path, None, "load_models=all")) == {"a": ["1.0"], "b": ["1.0"]}
    assert served(write_storage(tmp_path, None, "load_models=x=a.mar, b.mar")) == {"x": ["1.0"], "b": ["1.0"]}
    assert served(write_storage(tmp_path, None, "load_models= all ")) == {"a": ["1.0"], "b": ["1.0"]}
    write_mar(tmp_path / "c.mar", CODE)
    for wrong in ("c.mar", "../c.mar", "a.mar,,b.mar"):
        with pytest.raises(SettingError, match=r"load_models: '.*' is no archive in "):
            served(write_storage(tmp_path, None, f"load_models={wrong}"))
    none = ArchiveStore.of(
        write_storage(tmp_path, None, "load_models= none "), Outside({}, {}), 4, None, may_be_empty=True
    )
    assert none.names() == []


def test_the_folder_beside_the_configuration_is_the_store(tmp_path: Path) -> None:
    """A configuration names where it was in the pod; without that folder what it names counts."""
    write_mar(tmp_path / "elsewhere/a.mar", CODE)
    root = write_storage(tmp_path / "kserve", None, f"model_store={tmp_path}/elsewhere")
    with pytest.raises(SettingError, match="no archive to serve in it"):
        served(root)
    (root / "model-store").rmdir()
    assert served(root) == {"a": ["1.0"]}
    for store, more in (("", ""), ("/nowhere", "model_store=/nowhere")):
        (root / "config/config.properties").write_text(more)
        with pytest.raises(SettingError, match=f"model_store = '{store}', must be a folder"):
            served(root)


def test_settings_come_from_flags_snapshot_yaml_models_and_defaults(tmp_path: Path) -> None:
    """In this order; TorchServe has no flags of torpor's."""
    pytest.importorskip("yaml")
    yaml = "batchSize: 8\nresponseTimeout: 9\nmaxBatchDelay: 70\nminWorkers: 3\nhandler:\n  own: 1\n"
    said = manifest("a", configFile="config.yaml")
    write_mar(tmp_path / "model-store/a.mar", {**CODE, "config.yaml": yaml}, said)
    more = 'job_queue_size=7\ndefault_startup_timeout=5\nmodels={"a":{"1.0":{"batchSize":3,"startupTimeout":6}}}'
    found = assembled(write_storage(tmp_path, None, more), "a")
    assert (found.model.batch_size, found.model.workers, found.model.response_timeout_s) == (8, 3, 9)
    assert (found.model.startup_timeout_s, found.model.job_queue_size) == (6, 7)
    found = assembled(write_storage(tmp_path, {"a": {"1.0": entry("a.mar", batchSize=2)}}, more), "a", max_queue_rows=9)
    assert (found.model.batch_size, found.model.response_timeout_s) == (2, 9)
    settings = found.settings
    assert (settings["max_batch_size"], settings["batch_timeout_micros"], settings["max_queue_rows"]) == (2, 10_000, 9)


def test_a_snapshot_may_leave_a_model_without_workers(tmp_path: Path) -> None:
    """Until it is scaled."""
    write_mar(tmp_path / "model-store/a.mar", CODE)
    found = assembled(write_storage(tmp_path, {"a": {"1.0": entry("a.mar", minWorkers=0, maxWorkers=4)}}), "a")
    assert (found.model.workers, found.model.most_workers) == (0, 4)


def test_a_registrations_handler_is_before_the_archives(tmp_path: Path) -> None:
    """Where it names one."""
    write_mar(tmp_path / "a.mar", CODE)
    store = ArchiveStore.of(tmp_path, Outside({}, {}), 4, None)
    (archive,) = store.model("a").archives
    own = store.model("a").assemble("1.0").archive.manifest.handler
    assert own == "handler.py"
    store.add("a", replace(archive, handler="image_classifier"))
    assert store.model("a").assemble("1.0").archive.manifest.handler == "image_classifier"


def test_what_nobody_says_is_torchserves_default(tmp_path: Path) -> None:
    """One request a batch, 100 ms, 120 s, 100 that wait; a worker a core."""
    found = assembled(write_mar(tmp_path / "a.mar", CODE), "a")
    assert (found.model.workers, found.cores, found.model.response_timeout_s) == (None, 4, 120)
    assert (found.settings["max_batch_size"], found.settings["max_queue_rows"]) == (1, 100)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, r"a\.mar: config\.yaml, the manifest's configFile, is not in it"),
        ({"config.yaml": "a: [1"}, r"a\.mar: config\.yaml is not YAML: "),
        ({"config.yaml": "- 1"}, r"a\.mar: config\.yaml is a list, must be a mapping"),
        ({"config.yaml": "!!python/object/apply:os.system [x]"}, r"a\.mar: config\.yaml is not YAML: "),
        ({"config.yaml": "batchSize: 1.5"}, r"a\.mar: config\.yaml: batchSize = 1\.5, must be an integer"),
        (
            {"config.yaml": "deviceType: neuron"},
            r"a\.mar: config\.yaml: deviceType = 'neuron', must be one of cpu, gpu",
        ),
    ],
)
def test_a_wrong_yaml_is_named(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    """Archive, member and what is wrong in it; nothing in it is run."""
    pytest.importorskip("yaml")
    write_mar(tmp_path / "a.mar", {**CODE, **files}, manifest("a", configFile="config.yaml"))
    with pytest.raises(SettingError, match=reason):
        assembled(tmp_path / "a.mar", "a")
