"""What there is to serve: which folders are models, which versions of them are served, and what a version is made of."""

from pathlib import Path
from typing import Any

import pytest
from torpor.predictors import catalog
from torpor.predictors.catalog import Assembled, Catalog, ModelClass, ModelFolder, Outside, wanted_versions
from torpor.predictors.errors import NotFound
from torpor.predictors.runtime import cores
from torpor.predictors.settings import SettingError

OUTSIDE = Outside({}, {})
MODEL = 'class = "catalog_model:Model"\n'
CODE = """
class Model:
    def predict(self, x): ...
    def preprocess(self, x): ...
class Step:
    def preprocess(self, x): ...
"""


def model(folder: Path, *versions: str, text: str = MODEL) -> Path:
    """A model's folder with these versions."""
    folder.mkdir(exist_ok=True)
    (folder / "model.toml").write_text(text)
    (folder / "catalog_model.py").write_text(CODE)
    for version in versions:
        (folder / version).mkdir()
    return folder


def test_a_repository_has_its_folders_with_a_model_and_nothing_else(tmp_path: Path) -> None:
    """Not its files, nor other folders; a model.toml in a version is enough, and what comes later counts."""
    model(tmp_path / "b")
    (tmp_path / "a" / "3").mkdir(parents=True)
    (tmp_path / "a" / "3" / "model.toml").write_text(MODEL)
    (tmp_path / "empty").mkdir()
    (tmp_path / "README").write_text("")
    found = Catalog.of_repository(tmp_path, OUTSIDE)
    assert found.names() == ["a", "b"]
    model(tmp_path / "c")
    assert found.names() == ["a", "b", "c"]
    assert found.model("c").name == "c"
    with pytest.raises(NotFound, match="model 'empty' is unknown, must be one of a, b, c"):
        found.model("empty")


def test_how_long_a_version_may_take_to_load_is_a_setting_of_its_own(tmp_path: Path) -> None:
    """Of the model.toml that counts for it, unless the command says so for all."""
    folder = model(tmp_path / "m", "1", "2", text=f"{MODEL}[batching]\nload_timeout_s = 4\n")
    (folder / "2" / "model.toml").write_text(f"{MODEL}[batching]\nload_timeout_s = 5\n")
    found = ModelFolder("m", folder, OUTSIDE)
    assert [found.load_timeout_s(version) for version in "12"] == [4, 5]
    none = Outside({"load_timeout_s": "0"}, {})
    assert ModelFolder("m", folder, none).load_timeout_s("2") == 0
    assert [ModelClass("c", "m:C", None, outside).load_timeout_s("1") for outside in (OUTSIDE, none)] == [600, 0]


def test_a_folder_without_models_is_refused(tmp_path: Path) -> None:
    """It would serve nothing, for ever."""
    with pytest.raises(SettingError, match=r"neither a model\.toml in it nor in a folder of it"):
        Catalog.of_repository(tmp_path, OUTSIDE)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("latest", ["10"]), ("all", ["10", "9", "2"]), ("2", ["2"]), ("2,10", ["10", "2"]), (" 9 , 10", ["10", "9"]),
        ("2,2", ["2"]),
    ],
)  # fmt: skip
def test_versions_are_numbered_folders_the_highest_first(tmp_path: Path, wanted: str, expected: list[str]) -> None:
    """By number, whatever order they are asked for in, and each once; a file is no version."""
    folder = model(tmp_path / "m", "2", "10", "9", "next")
    (folder / "11").write_text("")
    assert wanted_versions(folder, wanted) == expected


@pytest.mark.parametrize("wanted", ["3", "2,3", "newest", ""])
def test_a_version_that_is_not_there_is_named_with_those_that_are(tmp_path: Path, wanted: str) -> None:
    """In the order of their numbers."""
    with pytest.raises(SettingError, match=f"model_version = '{wanted}', must be latest, all, or of 2, 10"):
        wanted_versions(model(tmp_path / "m", "10", "2"), wanted)


def test_a_class_has_the_version_that_is_asked_for() -> None:
    """It has no folders that could be numbered."""
    for flags, expected in (({}, "1"), ({"model_version": "7"}, "7"), ({"model_version": "all"}, "1")):
        assert ModelClass("m", "m:M", None, Outside(flags, {})).versions() == [expected]


def test_a_versions_own_file_comes_first(tmp_path: Path) -> None:
    """Its class and its settings; which versions there are is not for one of them to say."""
    folder = model(tmp_path / "m", "1", "2")
    own = folder / "2" / "model.toml"
    own.write_text(MODEL + "[batching]\nmax_batch_size = 5")
    (folder / "2" / "catalog_model.py").write_text(CODE)
    served = ModelFolder("m", folder, OUTSIDE)
    sizes = [assembled(served, version).batching.max_batch_size for version in ("1", "2")]
    assert sizes == [32, 5]
    own.write_text(f'model_version = "2"\n{MODEL}')
    with pytest.raises(SettingError, match=r"model_version belongs into .*m/model\.toml"):
        served.assemble("2")


def assembled(served: ModelFolder, version: str = "1") -> Assembled:
    """It is no transformer, though its class has a `preprocess`, since it has a `predict`."""
    made = served.assemble(version)
    assert isinstance(made, Assembled)
    return made


@pytest.mark.parametrize(
    ("flags", "threads"),
    [
        ({}, [8]),
        ({"processes": 3}, [2]),
        ({"processes": 9}, [1]),
        ({"processes": 3, "threads": 5}, [5]),
        ({"device": "cpu"}, [8]),
        ({"device": "cpu,cpu,cpu"}, [2, 2, 2]),
        ({"processes": 2, "device": "cpu, cpu"}, [2, 2]),
        ({"device": "cuda:0,cuda:1"}, [8, 8]),
    ],
)
def test_processes_and_instances_on_the_cpu_share_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], threads: list[int]
) -> None:
    """At least one each, unless somebody has said how many."""
    monkeypatch.setattr(cores, "usable_cores", lambda: 8)
    executors = assembled(ModelFolder("m", model(tmp_path / "m"), Outside(flags, {}))).executors
    assert [executor._threads for executor in executors] == threads  # type: ignore[attr-defined]


STEP = 'class = "catalog_model:Step"\n'


def test_a_transformer_needs_a_predictor(tmp_path: Path) -> None:
    """The message names the setting."""
    served = ModelFolder("m", model(tmp_path / "step", text=STEP), OUTSIDE)
    with pytest.raises(SettingError, match="predictor = '', must say where its predictor is"):
        served.assemble("1")


@pytest.mark.parametrize("predictor", ["../step", "../other"], ids=["itself", "another"])
@pytest.mark.parametrize("is_flag", [True, False], ids=["flag", "file"])
def test_a_predictor_that_is_a_transformer_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, predictor: str, is_flag: bool
) -> None:
    """It is looked for beside the file that names it; a flag's path belongs to the current folder."""
    folder = model(tmp_path / "step", text=STEP if is_flag else f'{STEP}[transformer]\npredictor = "{predictor}"')
    model(tmp_path / "other", text=STEP)
    (here := tmp_path / "deep" / "here").mkdir(parents=True)
    monkeypatch.chdir(here.parent if is_flag else here)
    served = ModelFolder("m", folder, Outside({"predictor": predictor} if is_flag else {}, {}))
    with pytest.raises(SettingError, match=f"predictor = '{predictor}' is a transformer too, must be a predictor"):
        served.assemble("1")


@pytest.mark.parametrize(
    ("text", "is_class"),
    [("m:C", True), ("package.module:Class", True), ("host:8080", False), ("unix:path", False), ("unix:/a:b", False)],
)
def test_a_class_is_told_from_an_address(text: str, is_class: bool) -> None:
    """What follows a host's colon is a number, and unix: has a path behind it."""
    assert bool(catalog._CLASS.fullmatch(text)) is is_class
