"""Several models and versions in one server, and the v2 repository API: a change is seen by all processes, or by none."""

import asyncio
import faulthandler
import gc
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from torpor.predictors.batching.policy import BatchingSettings
from torpor.predictors.errors import Forbidden, InvalidInput, ModelFailed, NotFound, NotSupported
from torpor.predictors.protocol.messages import message
from torpor.predictors.runtime.cores import usable_cores
from torpor.predictors.serving.data_plane import DataPlane, Served
from torpor.predictors.serving.repository import Repository
from torpor.predictors.signature import Signature

CODE = """
from typing import Annotated
import numpy as np


class Scale:
    outputs = {"y": "float32[rows]"}

    def load(self, folder, parameters):
        self.factor = float((folder / "factor").read_text())

    def predict(self, x: Annotated[np.ndarray, "float32[rows]"]):
        return {"y": x * np.float32(self.factor)}
"""


def test_imports_are_made_without_the_collector_and_loads_with_it() -> None:
    """What a module leaves is frozen at once, also when it fails; what `load` leaves in cycles must be found."""
    collected: dict[str, bool] = {}

    class Source:
        def versions(self) -> list[str]:
            return ["1"]

        def load_timeout_s(self, version: str) -> float:
            return 0.0

        def assemble(self, version: str) -> Any:
            collected["import"] = gc.isenabled()
            if "load" in collected:
                raise ImportError("no such module")
            return Version()

    class Version:
        async def load(self, data_plane: DataPlane, name: str, version: str) -> Any:
            return await data_plane.load(name, version, [Model()], BatchingSettings())

    class Model:
        in_flight, compiles, signature = 1, False, Signature()

        def load(self) -> None:
            collected["load"] = gc.isenabled() and gc.get_freeze_count() > 0

        def warm_up(self, rows: int) -> None:
            pass

    class Catalog:
        def names(self) -> list[str]:
            return ["m"]

        def model(self, name: str) -> Source:
            return Source()

    async def scenario() -> None:
        repository = Repository(Catalog(), DataPlane("0"), may_change=False)
        await repository.load_all({})
        assert collected == {"import": False, "load": True}
        with pytest.raises(ImportError):
            await repository.load_all({})
        assert gc.isenabled()

    try:
        asyncio.run(scenario())
    finally:
        gc.unfreeze()


class Version(Served):
    """Of the model `m`, made by its `load` numbered so."""

    name, measured = "m", ()

    def __init__(self, version: str, load: int, closed: list[int]) -> None:
        self.version, self.load, self.closed = version, load, closed

    async def close(self) -> None:
        self.closed.append(self.load)


class Loading:
    """A catalog of one model, `m`, of two versions. fails: what the numbered load of a version raises. hangs: those that do
    not end, where the others have no limit."""

    def __init__(self, fails: dict[int, BaseException] | None = None, hangs: frozenset[int] = frozenset()) -> None:
        self.fails = fails or {}
        self.hangs = hangs
        self.loads = 0
        self.closed: list[int] = []
        self.threads: set[threading.Thread] = set()
        self.now = self.most = 0
        self.states: list[str] = []
        self.data_plane = DataPlane("0")
        self.repository = Repository(self, self.data_plane, may_change=True)

    def names(self) -> list[str]:
        return ["m"]

    def model(self, name: str) -> "Loading":
        return self

    def versions(self) -> list[str]:
        return ["2", "1"]

    def load_timeout_s(self, version: str) -> float:
        return 0.01 if self.loads + 1 in self.hangs else 0.0

    def assemble(self, version: str) -> "Loading":
        self.threads.add(threading.current_thread())
        return self

    async def load(self, data_plane: DataPlane, name: str, version: str) -> Served:
        self.loads += 1
        load = self.loads
        self.now += 1
        self.most = max(self.now, self.most)
        self.states += [entry["state"] for entry in self.repository.index(only_ready=False)]
        await asyncio.sleep(0)
        self.now -= 1
        if load in self.hangs:
            await asyncio.get_running_loop().create_future()
        if load in self.fails:
            raise self.fails[load]
        return Version(version, load, self.closed)


def test_a_model_is_loaded_beside_what_is_served() -> None:
    """It is imported on a thread of its own, the index shows it as loading, and what it takes the place of is closed."""

    async def scenario() -> None:
        catalog = Loading()
        await catalog.repository.load("m")
        assert catalog.states == ["LOADING", "LOADING"]
        assert threading.main_thread() not in catalog.threads
        assert not catalog.closed
        await catalog.repository.load("m")
        await catalog.repository._retiring.ended()
        assert catalog.closed == [1, 2]
        await catalog.repository.unload("m")
        assert catalog.data_plane.names() == []

    asyncio.run(scenario())


def test_changes_that_come_together_are_made_one_after_the_other() -> None:
    """Else one would serve what the other has prepared, and keep its own for nobody."""

    async def scenario() -> None:
        catalog = Loading()
        await asyncio.gather(*(catalog.repository.load("m") for _ in range(3)))
        await catalog.repository._retiring.ended()
        assert (catalog.most, sorted(catalog.closed)) == (1, [1, 2, 3, 4])

    asyncio.run(scenario())


def test_a_start_loads_what_nobody_has_unloaded(caplog: pytest.LogCaptureFixture) -> None:
    """All versions, the default first, each with its import as a phase of the start; a later worker is told the changes."""
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        catalog = Loading()
        await catalog.repository.load_all({"m": False})
        assert (catalog.data_plane.names(), catalog.repository.changes) == ([], {"m": False})
        await catalog.repository.load_all({"m": True})
        assert [model.version for model in catalog.data_plane.versions("m")] == ["2", "1"]
        assert catalog.repository.changes == {"m": True}
        assert "import" in catalog.data_plane.metrics.start_phases

    try:
        asyncio.run(scenario())
    finally:
        gc.unfreeze()
    assert caplog.messages == ["loading m version 2", "loading m version 1"]


def test_a_start_that_hangs_fails() -> None:
    """With the version and its limit in words."""

    async def scenario() -> None:
        with pytest.raises(
            TimeoutError, match="m version 1 has not been imported, loaded and warmed up in load_timeout_s"
        ):
            await Loading(hangs=frozenset({2})).repository.load_all({})

    try:
        asyncio.run(scenario())
    finally:
        faulthandler.cancel_dump_traceback_later()  # it would end this process too
        gc.unfreeze()


def test_a_start_ends_by_itself_if_nothing_in_python_can_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds after each version's time, with the traceback; a version that is loaded has no more time to fear."""

    class Limited(Loading):
        def load_timeout_s(self, version: str) -> float:
            return 60.0 if version == "2" else 0.0

    calls: list[Any] = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *limit_s, **how: calls.append((*limit_s, how)))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: calls.append("cancelled"))
    try:
        asyncio.run(Limited().repository.load_all({}))
    finally:
        gc.unfreeze()
    assert calls == [(62.0, {"exit": True, "file": 2}), "cancelled", "cancelled"]


def test_what_is_unloaded_is_there_to_be_loaded(caplog: pytest.LogCaptureFixture) -> None:
    """The index says so to who asks for more than what is served; a change is remembered and in the log."""
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        catalog = Loading()
        repository = catalog.repository

        def index(only_ready: bool = False) -> list[tuple[str, str, str]]:
            return [(one["version"], one["state"], one["reason"]) for one in repository.index(only_ready)]

        assert (index(), index(only_ready=True)) == ([("", "UNAVAILABLE", "")], [])
        with pytest.raises(NotFound):
            await repository.unload("m")
        assert repository.changes == {}
        await repository.load("m", {})
        assert index() == index(only_ready=True) == [("2", "READY", ""), ("1", "READY", "")]
        assert repository.changes == {"m": True}
        await repository.unload("m")
        assert (index(), index(only_ready=True)) == ([("", "UNAVAILABLE", "unloaded")], [])
        assert repository.changes == {"m": False}
        await repository.load("m")
        catalog.data_plane.publish("m", [])
        assert index() == [("", "UNAVAILABLE", "")]
        await repository._retiring.ended()

    asyncio.run(scenario())
    assert caplog.messages == ["model m: loaded", "model m: unloaded", "model m: loaded"]


def test_what_may_not_be_changed_is_not() -> None:
    """By nobody unless the operator says so, and a model's settings by no load."""

    async def scenario() -> None:
        catalog = Loading()
        with pytest.raises(InvalidInput, match="parameters must be empty"):
            await catalog.repository.load("m", {"config": "{}"})
        catalog.repository.may_change = False
        with pytest.raises(NotSupported, match="without --model-control-mode explicit"):
            await catalog.repository.load("m")
        assert catalog.loads == 0

    asyncio.run(scenario())


def test_single_versions_wait_for_changes_that_are_being_made(caplog: pytest.LogCaptureFixture) -> None:
    """Else a load that began before would bring back what was taken away, and forget what was added or preferred."""
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        catalog = Loading()
        repository, served = catalog.repository, catalog.data_plane
        await repository.load("m")
        changes = (
            (repository.add("m", "3"), ["2", "1", "3"]),
            (repository.prefer("m", "1"), ["1", "2"]),
            (repository.remove("m", "1"), ["2"]),
        )
        for change, versions in changes:
            await asyncio.gather(repository.load("m"), change)
            assert [model.version for model in served.versions("m")] == versions
        assert catalog.most == 1
        await repository._retiring.ended()

    asyncio.run(scenario())
    assert "model m version 3: loaded" in caplog.messages
    assert "model m version 1: unloaded" in caplog.messages


def test_a_default_is_taken_away_as_a_single_version_alone() -> None:
    """Requests without a version would else get another one from then on."""

    async def scenario() -> None:
        catalog = Loading()
        await catalog.repository.load("m")
        with pytest.raises(Forbidden, match="version 2 is the default of model 'm', which has others"):
            await catalog.repository.remove("m", "2")
        assert await catalog.repository.remove("m", "1") == "1"
        assert await catalog.repository.remove("m", "") == "2"
        assert catalog.data_plane.names() == []
        await catalog.repository._retiring.ended()
        assert catalog.closed == [2, 1]

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [ValueError("no weights"), SystemExit("no weights")], ids=["raises", "exits"])
def test_a_single_version_that_does_not_load_is_a_failure(error: BaseException) -> None:
    """Also of a class that calls sys.exit; what was served goes on."""

    async def scenario() -> None:
        catalog = Loading(fails={3: error})
        await catalog.repository.load("m")
        with pytest.raises(ModelFailed, match="model 'm' version 3 failed to load: no weights"):
            await catalog.repository.add("m", "3")
        assert [model.version for model in catalog.data_plane.versions("m")] == ["2", "1"]

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [ValueError("no weights"), SystemExit("no weights")], ids=["raises", "exits"])
def test_a_load_that_fails_half_way_leaves_nothing(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """The versions that it had loaded are closed; a class that calls sys.exit fails like any other, with its traceback."""

    async def scenario() -> None:
        catalog = Loading(fails={2: error})
        with pytest.raises(ModelFailed, match=f"failed to load: {type(error).__name__}: no weights"):
            await catalog.repository.load("m")
        await catalog.repository._retiring.ended()
        assert catalog.closed == [1]
        (entry,) = catalog.repository.index(only_ready=False)
        assert (entry["state"], entry["reason"]) == ("UNAVAILABLE", f"{type(error).__name__}: no weights")

    asyncio.run(scenario())
    (record,) = caplog.records
    assert (record.getMessage(), record.exc_info and record.exc_info[1]) == ("model m failed to load", error)


def test_a_load_that_hangs_fails_and_lets_the_next_go_on() -> None:
    """With its version and its limit in words; what had been loaded with it is closed, as when it fails by itself."""

    async def scenario() -> None:
        catalog = Loading(hangs=frozenset({2}))
        hanging, next_one = (asyncio.create_task(catalog.repository.load("m")) for _ in range(2))
        limit = "TimeoutError: m version 1 has not been imported, loaded and warmed up in load_timeout_s = 0.01"
        with pytest.raises(ModelFailed, match=limit):
            await hanging
        await next_one
        await catalog.repository._retiring.ended()
        assert catalog.closed == [1]
        assert [entry["state"] for entry in catalog.repository.index(only_ready=False)] == ["READY", "READY"]

    asyncio.run(scenario())


def test_an_import_that_hangs_fails_as_a_load_does() -> None:
    """Its thread goes on by itself."""

    class Imports(Loading):
        may_end = threading.Event()

        def assemble(self, version: str) -> Loading:
            self.may_end.wait()
            return self

    async def scenario() -> None:
        catalog = Imports(hangs=frozenset({1}))
        with pytest.raises(ModelFailed, match="TimeoutError: m version 2 has not been imported"):
            await catalog.repository.load("m")
        catalog.may_end.set()
        catalog.hangs = frozenset()
        await catalog.repository.load("m")
        assert catalog.loads == 2

    asyncio.run(scenario())


def test_a_class_that_finds_no_next_one_fails_like_any_other() -> None:
    """Python gives a StopIteration to no coroutine, so that its load would never end."""

    class Imports(Loading):
        def assemble(self, version: str) -> Loading:
            return next(iter(()))

    async def scenario() -> None:
        with pytest.raises(ModelFailed, match="failed to load: RuntimeError: StopIteration was raised") as raised:
            await Imports().repository.load("m")
        assert raised.value.__cause__ is not None
        assert isinstance(raised.value.__cause__.__cause__, StopIteration)

    asyncio.run(scenario())


def test_a_models_own_time_out_is_no_hang() -> None:
    """It says what it has waited for."""

    async def scenario() -> None:
        with pytest.raises(ModelFailed, match="failed to load: TimeoutError: the store does not answer"):
            await Loading(fails={1: TimeoutError("the store does not answer")}).repository.load("m")

    asyncio.run(scenario())


def test_what_is_loaded_when_its_time_is_up_is_unloaded() -> None:
    """Nobody waits for it any more; its thread ends with that."""
    began, may_end, unloaded = threading.Event(), threading.Event(), threading.Event()

    class Model:
        in_flight, compiles, signature = 1, False, Signature()

        def load(self) -> None:
            began.set()
            may_end.wait()

        def unload(self) -> None:
            unloaded.set()

    async def scenario() -> None:
        model: Any = Model()
        loading = asyncio.create_task(DataPlane("0").load("m", "1", [model], BatchingSettings()))
        await asyncio.to_thread(began.wait)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading

    before = {*threading.enumerate()}
    asyncio.run(scenario())
    (thread,) = {*threading.enumerate()} - before
    may_end.set()
    thread.join(20)
    assert unloaded.is_set()


def write_model(folder: Path, factors: dict[str, float], text: str = "") -> None:
    """A model that multiplies, a version for each factor."""
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(CODE)
    (folder / "model.toml").write_text(f'class = "model:Scale"\n{text}')
    for version, factor in factors.items():
        (folder / version).mkdir(exist_ok=True)
        (folder / version / "factor").write_text(str(factor))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two models: `double` in versions 2 and 10, both served, and `triple` in version 1."""
    write_model(tmp_path / "double", {"2": 2, "10": 20}, 'model_version = "all"')
    write_model(tmp_path / "triple", {"1": 3})
    return tmp_path


def ask(connection: Any, path: str, x: float = 1.0, **headers: str) -> Any:
    """The reply to a v2 request of one row."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [x]}
    return connection.request("POST", path, json.dumps({"inputs": [tensor]}).encode(), headers)


def answer(connection: Any, path: str, **headers: str) -> float:
    reply = ask(connection, path, **headers)
    assert reply.status == 200, reply
    return reply.json()["outputs"][0]["data"][0]


def post(connection: Any, path: str, **body: object) -> Any:
    return connection.request("POST", path, json.dumps(body).encode())


def test_models_and_versions_by_path(start, connect, models) -> None:
    """A name leads to its highest version, a path to the version that it names, and metadata lists them."""
    connection = connect(start(models))
    assert answer(connection, "/v2/models/double/infer") == 20
    assert answer(connection, "/v2/models/double/versions/2/infer") == 2
    assert answer(connection, "/v2/models/triple/infer") == 3
    assert connection.request("GET", "/v2/models").json() == {"models": ["double", "triple"]}
    assert connection.request("GET", "/v2/models/double").json()["versions"] == ["10", "2"]
    missing = ask(connection, "/v2/models/double/versions/3/infer")
    assert (missing.status, missing.error()) == (404, "model 'double' has no version '3', must be 10, 2")


def test_a_version_by_header(start, connect, models) -> None:
    """v1 tells which version answered; sent back, the header stays with it, unless the path says otherwise."""
    write_model(models / "versions", {"1": 5, "2": 6}, 'model_version = "all"')
    connection = connect(start(models))
    body = json.dumps({"instances": [1.0]}).encode()

    def predict(path: str, **headers: str) -> tuple[list[float], str]:
        reply = connection.request("POST", path, body, headers)
        assert reply.status == 200, reply
        return reply.json()["predictions"], reply.headers["torpor-model-version"]

    assert predict("/v1/models/double:predict") == ([20], "10")
    assert predict("/v1/models/double:predict", **{"torpor-model-version": "2"}) == ([2], "2")
    assert predict("/v1/models/double/versions/2:predict") == ([2], "2")
    assert answer(connection, "/v2/models/double/infer", **{"torpor-model-version": "2"}) == 2
    assert answer(connection, "/v2/models/versions/infer", **{"torpor-model-version": "1"}) == 5
    assert ask(connection, "/v2/models/double/infer", **{"torpor-model-version": "7"}).status == 404
    torn = ask(connection, "/v2/models/double/versions/10/infer", **{"torpor-model-version": "2"})
    assert (torn.status, torn.error()) == (400, "torpor-model-version = 2, must be 10 as in the path")


def test_a_version_by_metadata(start, grpc_infer, models) -> None:
    """gRPC reads the header too, where the message names no version; a contradiction of the two is the caller's error."""
    infer = grpc_infer(start(models))
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "contents": {"fp32_contents": [1]}}

    def ask_by(version: str, header: str) -> float:
        asked = message("inference.ModelInferRequest")(model_name="double", model_version=version, inputs=[tensor])
        answered = infer(asked, metadata=[("torpor-model-version", header)])
        return answered.outputs[0].contents.fp32_contents[0]

    assert ask_by("", "2") == 2
    assert ask_by("2", "2") == 2
    with pytest.raises(grpc.RpcError) as missing:
        ask_by("", "7")
    assert missing.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as torn:
        ask_by("10", "2")
    assert torn.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert torn.value.details() == "torpor-model-version = 2, must be 10 as in the message"


def test_a_version_of_the_only_model_by_an_events_header(start, connect, models) -> None:
    """`POST /` has no path that could name one."""
    connection = connect(start(models / "double"))
    event = {
        "ce-specversion": "1.0",
        "ce-id": "1",
        "ce-source": "/s",
        "ce-type": "t",
        "content-type": "application/json",
    }
    body = b'{"instances": [1.0]}'
    for version, answered in (("2", [2]), ("10", [20])):
        reply = connection.request("POST", "/", body, {**event, "torpor-model-version": version})
        assert json.loads(reply.body)["predictions"] == answered
    assert connection.request("POST", "/", body, {**event, "torpor-model-version": "7"}).status == 404


def test_a_load_that_exits_ends_the_start_as_a_failure(failing_start, models) -> None:
    """With status 1 and the reason in the log, whatever status it asks for."""
    (models / "triple" / "model.py").write_text(
        CODE.replace("self.factor = ", "raise SystemExit(0)\n        self.factor = ")
    )
    status, log = failing_start(models)
    assert (status, "a model failed to load" in log) == (1, True)


def test_the_wanted_versions_come_from_flag_or_file(start, failing_start, connect_http1, models) -> None:
    """`--model-version` goes before model.toml; a number that is not there ends the start."""
    status, log = failing_start(models / "double", "--model-version", "2,3")
    assert status == 2
    assert "model_version = '2,3', must be latest, all, or of 2, 10" in log
    connection = connect_http1(start(models / "double", "--model-version", "2"))
    assert connection.request("GET", "/v2/models/double").json()["versions"] == ["2"]


@pytest.mark.parametrize("processes", ["1", "2"])
def test_load_and_unload(start, connect, models, processes: str) -> None:
    """A model that comes on disk is loaded, one that changed is loaded anew, and one is unloaded: in every process."""
    server = start(models, "--model-control-mode", "explicit", "--processes", processes)
    connections = [connect(server) for _ in range(int(processes) * 2)]

    def everywhere(path: str) -> set[float]:
        return {answer(connection, path) for connection in connections}

    write_model(models / "ten", {"1": 10})
    assert post(connections[0], "/v2/repository/models/ten/load").status == 200
    assert everywhere("/v2/models/ten/infer") == {10}
    write_model(models / "triple", {"1": 3, "4": 33})
    assert post(connections[1], "/v2/repository/models/triple/load").status == 200
    assert everywhere("/v2/models/triple/infer") == {33}
    assert (
        post(connections[0], "/v2/repository/models/double/unload", parameters={"unload_dependents": False}).status
        == 200
    )
    assert {ask(connection, "/v2/models/double/infer").status for connection in connections} == {404}
    index = post(connections[1], "/v2/repository/index").json()
    assert [(e["name"], e["version"], e["state"], e["reason"]) for e in index] == [
        ("double", "", "UNAVAILABLE", "unloaded"), ("ten", "1", "READY", ""), ("triple", "4", "READY", ""),
    ]  # fmt: skip
    assert len(post(connections[1], "/v2/repository/index", ready=True).json()) == 2


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_load_that_fails_changes_nothing(start, connect, models, processes: str) -> None:
    """The error says why, the versions that were served go on, and the index keeps the reason of one that never was."""
    server = start(models, "--model-control-mode", "explicit", "--processes", processes)
    connections = [connect(server) for _ in range(int(processes) * 2)]
    (models / "triple" / "1" / "factor").write_text("three")
    failed = post(connections[0], "/v2/repository/models/triple/load")
    assert failed.status == 500
    assert "could not convert string to float" in failed.error()
    assert {answer(connection, "/v2/models/triple/infer") for connection in connections} == {3}
    write_model(models / "broken", {"1": 1}, "max_rows = 3")
    assert post(connections[0], "/v2/repository/models/broken/load").status == 500
    (entry,) = [e for e in post(connections[0], "/v2/repository/index").json() if e["name"] == "broken"]
    assert entry["state"] == "UNAVAILABLE"
    assert "max_rows is unknown" in entry["reason"]
    assert post(connections[0], "/v2/repository/models/nobody/load").status == 404
    assert post(connections[0], "/v2/repository/models/nobody/unload").status == 404


HANGS = CODE.replace("self.factor = ", "import threading; threading.Event().wait()\n        self.factor = ")
IN_TIME = 'class = "model:Scale"\n[batching]\nload_timeout_s = 0.2\n'


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_load_that_hangs_holds_up_no_other(start, connect_http1, models, processes: str) -> None:
    """It fails in all processes when its time is up, others are loaded, what was served goes on, and the server can end."""
    server = start(models, "--model-control-mode", "explicit", "--processes", processes, "--drain-quiet-s", "0")
    connections = [connect_http1(server) for _ in range(int(processes) * 2)]
    (models / "triple" / "model.py").write_text(HANGS)
    (models / "triple" / "model.toml").write_text(IN_TIME)
    failed = post(connections[0], "/v2/repository/models/triple/load")
    assert failed.status == 500
    assert "triple version 1 has not been imported, loaded and warmed up in load_timeout_s = 0.2" in failed.error()
    (models / "double" / "10" / "factor").write_text("21")
    assert post(connections[0], "/v2/repository/models/double/load").status == 200
    assert {answer(connection, "/v2/models/double/infer") for connection in connections} == {21}
    assert {answer(connection, "/v2/models/triple/infer") for connection in connections} == {3}
    assert server.stop() == 0


HANGING_IMPORT = "import threading\nthreading.Event().wait()\n"


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("code", [HANGS, HANGING_IMPORT], ids=["load", "import"])
def test_a_load_that_hangs_ends_the_start(failing_start, models, code: str, processes: str) -> None:
    """As one that fails, the import included: whoever runs the server sees it, and starts it again."""
    (models / "triple" / "model.py").write_text(code)
    (models / "triple" / "model.toml").write_text(IN_TIME)
    status, log = failing_start(models, "--processes", processes)
    assert status == 1
    assert "triple version 1 has not been imported, loaded and warmed up in load_timeout_s = 0.2" in log


@pytest.mark.parametrize(
    "code",
    [
        "import ctypes\nctypes.PyDLL(None).sleep(600)\n",  # PyDLL, unlike CDLL, keeps the interpreter's lock
        "import concurrent.futures, threading\nwait = threading.Event().wait\n"
        "concurrent.futures.ThreadPoolExecutor().submit(wait)\nwait()\n",
    ],
    ids=["native code", "a pool"],
)
def test_a_start_that_nothing_in_python_can_end_is_ended(failing_start, models, code: str) -> None:
    """By who lets no other thread run, or is waited for at the end; the log says where it was."""
    (models / "triple" / "model.py").write_text(code)
    (models / "triple" / "model.toml").write_text(IN_TIME)
    status, log = failing_start(models)
    assert status == 1
    assert "Timeout (0:00:02.200000)!" in log
    assert re.search(r'model\.py", line \d in <module>', log)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_a_start_that_hangs_in_an_import(models, tmp_path: Path, number: int, processes: int) -> None:
    """There is nothing to drain."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    (models / "triple" / "model.py").write_text(f"open({str(gate)!r}, 'w').close()\n{HANGING_IMPORT}")
    command = [Path(sys.executable).with_name("torpor"), "serve", models / "triple", "--port", "0"]
    with subprocess.Popen([*command, "--processes", str(processes)], stderr=subprocess.DEVNULL) as server:
        for _ in range(processes):
            gate.read_text()
        server.send_signal(number)
        assert server.wait(20) == 128 + number


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_load_without_memory_for_a_row_fails_in_the_same_words_everywhere(
    start, connect_http1, models, processes: str
) -> None:
    """Also where it is another process that says so."""
    server = start(models, "--model-control-mode", "explicit", "--processes", processes)
    (models / "triple" / "model.py").write_text(CODE.replace("return {", "raise MemoryError\n        return {"))
    failed = post(connect_http1(server), "/v2/repository/models/triple/load")
    assert failed.status == 500
    assert failed.error().endswith("OutOfMemory: the device ran out of memory with rows = 1")


def test_one_worker_that_cannot_load_holds_back_all(start, connect_http1, models) -> None:
    """All processes or none: here the second of them fails."""
    server = start(models, "--model-control-mode", "explicit", "--processes", "2")
    connections = [connect_http1(server) for _ in range(2)]
    code = CODE.replace("self.factor = ", "import os; (folder / 'once').touch(exist_ok=False)\n        self.factor = ")
    (models / "triple" / "model.py").write_text(code)
    (models / "triple" / "1" / "factor").write_text("4")
    assert post(connections[0], "/v2/repository/models/triple/load").status == 500
    assert {answer(connection, "/v2/models/triple/infer") for connection in connections} == {3}


DIES = """
import os, signal
import numpy as np


class Pid:
    def load(self, folder):
        if (folder.parent / "dies").exists() and int((folder.parent / "dies").read_text()) == os.getpid():
            os.kill(os.getpid(), signal.SIGKILL)

    def predict(self, x: np.ndarray):
        return x * 0 + os.getpid()
"""


def test_a_worker_that_dies_while_it_loads_holds_back_nobody(start, connect_http1, models) -> None:
    """The others serve the new model, and so does the worker that takes its place."""
    write_model(models / "pid", {"1": 1})
    (models / "pid" / "model.py").write_text(DIES)
    (models / "pid" / "model.toml").write_text('class = "model:Pid"')
    server = start(models, "--model-control-mode", "explicit", "--processes", "2")
    asking, dying = (connect_http1(server) for _ in range(2))
    survivor, dies = (int(answer(connection, "/v2/models/pid/infer")) for connection in (asking, dying))
    assert survivor != dies
    (models / "pid" / "dies").write_text(str(dies))
    loaded = post(asking, "/v2/repository/models/pid/load")
    assert loaded.status == 200, loaded
    assert int(answer(asking, "/v2/models/pid/infer")) == survivor


def test_no_request_is_lost_while_a_model_is_loaded_anew(start, connect_http1, models) -> None:
    """Callers in a loop get an answer each time, of the old version or of the new one, never an error."""
    server = start(models, "--model-control-mode", "explicit")
    done = threading.Event()
    answers: list[float] = []

    def call(connection: Any) -> None:
        while not done.is_set():
            answers.append(answer(connection, "/v2/models/triple/infer"))

    callers = [threading.Thread(target=call, args=(connect_http1(server),)) for _ in range(4)]
    for caller in callers:
        caller.start()
    asking = connect_http1(server)
    for factor in (4, 5, 6):
        (models / "triple" / "1" / "factor").write_text(str(factor))
        assert post(asking, "/v2/repository/models/triple/load").status == 200
        assert answer(asking, "/v2/models/triple/infer") == factor
    done.set()
    for caller in callers:
        caller.join()
    assert set(answers) <= {3, 4, 5, 6}


@pytest.mark.parametrize("path", ["/v2/models/triple/infer", "/v1/models/triple:predict"])
def test_a_request_whose_body_comes_after_the_change_gets_the_new_model(
    start, connect_http1, models, path: str
) -> None:
    """Its head led to the old one, which has gone; an unloaded one is not found."""
    server = start(models, "--model-control-mode", "explicit")
    asking = connect_http1(server)
    v1 = json.dumps({"instances": [1.0]}).encode()
    v2 = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}).encode()
    body = v1 if "v1" in path else v2
    for change, answer in (("load", b"4.0"), ("unload", b"404 Not Found")):
        with socket.create_connection(("127.0.0.1", server.port), 20) as slow:
            slow.sendall(f"POST {path} HTTP/1.1\r\nhost: t\r\ncontent-length: {len(body)}\r\n\r\n".encode())
            (models / "triple" / "1" / "factor").write_text("4")
            assert post(asking, f"/v2/repository/models/triple/{change}").status == 200
            slow.sendall(body)
            assert answer in slow.recv(4096)


def test_a_restarted_worker_follows_what_was_changed(start, connect_http1, models) -> None:
    """What callers loaded and unloaded holds for a worker that comes later."""
    server = start(models, "--model-control-mode", "explicit", "--processes", "2", "--drain-quiet-s", "0")
    asking = connect_http1(server)
    assert post(asking, "/v2/repository/models/double/unload").status == 200
    asking.close()
    supervisor = server.process.pid
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    ready = len([line for line in server.log if "ready in" in line])
    for child in children:
        os.kill(int(child), signal.SIGTERM)
    while len([line for line in server.log if "ready in" in line]) < ready + 2:
        assert server.process.poll() is None
    connections = [connect_http1(server) for _ in range(4)]
    assert {ask(connection, "/v2/models/double/infer").status for connection in connections} == {404}
    assert {answer(connection, "/v2/models/triple/infer") for connection in connections} == {3}


def test_changes_are_refused_unless_the_operator_allows_them(start, connect, models) -> None:
    """By default whoever can ask for predictions cannot take the models away."""
    connection = connect(start(models))
    for change in ("load", "unload"):
        refused = post(connection, f"/v2/repository/models/triple/{change}")
        assert refused.status == 501
        assert "--model-control-mode explicit" in refused.error()
    assert post(connection, "/v2/repository/index").status == 200
    assert connection.request("GET", "/v2/repository/index").status == 405


def test_a_load_that_does_not_end_keeps_no_server_from_ending(start, connect_http1, models, tmp_path: Path) -> None:
    """Nobody waits for its thread, in whatever import it is."""
    server = start(models, "--model-control-mode", "explicit", "--drain-quiet-s", "0", "--drain-timeout-s", "0")
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    code = f"open({str(gate)!r}, 'w').close()\nimport threading\nthreading.Event().wait()\n"
    (models / "triple" / "model.py").write_text(code)
    connection = connect_http1(server)
    connection.send("POST", "/v2/repository/models/triple/load", b"{}", {"content-type": "application/json"})
    gate.read_text()
    connection.close()
    assert server.stop() == 0


def test_settings_in_a_load_are_refused(start, connect, models) -> None:
    """Triton lets a caller override a model's configuration; here the file is what counts."""
    connection = connect(start(models, "--model-control-mode", "explicit"))
    refused = post(connection, "/v2/repository/models/triple/load", parameters={"config": "{}"})
    assert refused.status == 400
    assert "parameters must be empty" in refused.error()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tritonclient_loads_and_unloads(start, models, protocol: str) -> None:
    """Its own calls, and its index."""
    module = pytest.importorskip(f"tritonclient.{protocol}")
    server = start(models, "--model-control-mode", "explicit")
    with module.InferenceServerClient(server.address) as client:
        client.unload_model("triple")
        with pytest.raises(Exception, match="'triple' is unknown"):
            client.get_model_metadata("triple")
        client.load_model("triple")
        assert client.is_model_ready("triple")
        index = client.get_model_repository_index(**({"as_json": True} if protocol == "grpc" else {}))
        entries = index["models"] if protocol == "grpc" else index
        assert [(e["name"], e["version"]) for e in entries] == [("double", "10"), ("double", "2"), ("triple", "1")]
        with pytest.raises(Exception, match="nobody"):
            client.load_model("nobody")


def test_models_do_not_get_each_others_modules(failing_start, models) -> None:
    """Two folders may each have a `model.py`; of two that import a `helper`, the second one's start fails in words."""
    for name in ("double", "triple"):
        (models / name / "helper.py").write_text("")
        (models / name / "model.py").write_text(f"import helper\n{CODE}")
    status, log = failing_start(models)
    assert status == 1
    assert "'helper' is another model's module too" in log


WAITS = """
import os
from typing import Annotated
import numpy as np


class Waits:
    outputs = {"y": "bytes[rows]"}

    def predict(self, x: Annotated[np.ndarray, "float32[rows]"]):
        return {"y": [os.environ.get("OMP_WAIT_POLICY", "default")] * len(x)}
"""

COUNTS = """
import os
from typing import Annotated
import numpy as np


class Counts:
    def predict(self, x: Annotated[np.ndarray, "float32[rows]"]):
        return x * 0 + int(os.environ["OMP_NUM_THREADS"])
"""


MEETS = """
import threading
from typing import Annotated
import numpy as np

MEETING = threading.Barrier(2)


class Meets:
    def predict(self, x: Annotated[np.ndarray, "float32[rows]"]):
        if x.any():  # a request, and not what warms it up
            MEETING.wait(20)
        return x
"""


def test_instances_on_the_cpu_run_at_the_same_time(start, connect_http1, tmp_path) -> None:
    """Each waits in `predict` for the other."""
    (tmp_path / "meets.py").write_text(MEETS)
    (tmp_path / "model.toml").write_text('class = "meets:Meets"\nname = "meets"\n[device]\ndevice = "cpu,cpu"\n')
    server = start(tmp_path, "--max-batch-size", "1")
    with ThreadPoolExecutor() as callers:
        connections = [connect_http1(server) for _ in range(2)]
        assert [*callers.map(lambda connection: answer(connection, "/v2/models/meets/infer"), connections)] == [1, 1]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_class_without_torch_has_its_share_of_the_cores(
    start, connect_http1, tmp_path, monkeypatch, processes: int
) -> None:
    """The libraries beneath numpy would count those of the node."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "counts.py").write_text(COUNTS)
    (tmp_path / "model.toml").write_text('class = "counts:Counts"\nname = "counts"\n')
    server = start(tmp_path, "--processes", str(processes))
    assert answer(connect_http1(server), "/v2/models/counts/infer") == max(1, usable_cores() // processes)


def test_threads_of_an_operation_are_those_of_the_libraries_too(start, connect_http1, tmp_path, monkeypatch) -> None:
    """What numpy stands on starts no more than were asked for."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "counts.py").write_text(COUNTS)
    (tmp_path / "model.toml").write_text('class = "counts:Counts"\nname = "counts"\n')
    assert answer(connect_http1(start(tmp_path, "--threads", "37")), "/v2/models/counts/infer") == 37


@pytest.mark.parametrize(
    ("others", "environ", "expected"),
    [
        pytest.param(0, {}, "default", id="a model that is alone spins"),
        pytest.param(1, {}, "PASSIVE", id="several sleep"),
        pytest.param(1, {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE", id="the user has said so"),
        pytest.param(1, {"GOMP_SPINCOUNT": "1000"}, "default", id="the user has said how long"),
    ],
)
def test_threads_of_models_that_share_cores_sleep_while_they_wait(
    start, connect_http1, tmp_path, monkeypatch, others, environ, expected
) -> None:
    """OpenMP's threads spin on a core that another model could have; a model that is alone is fastest so."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "waits").mkdir()
    (tmp_path / "waits" / "waits.py").write_text(WAITS)
    (tmp_path / "waits" / "model.toml").write_text('class = "waits:Waits"\n')
    if others:
        write_model(tmp_path / "triple", {"1": 3})
    assert answer(connect_http1(start(tmp_path)), "/v2/models/waits/infer") == expected
