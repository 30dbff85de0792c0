"""The management API in the test's own process, over archives that have no workers: what it does and says, to the word."""

import asyncio
import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from archives import manifest, write_mar, write_storage
from torpor.predictors.catalog import Outside
from torpor.predictors.errors import ModelFailed, PayloadTooLarge, TorporError
from torpor.predictors.protocol.messages import message as grpc_message
from torpor.predictors.serving.calls import Call, CallAnswer
from torpor.predictors.serving.data_plane import DataPlane
from torpor.predictors.serving.exchange import Exchange, Fields, Head
from torpor.predictors.serving.http2 import Stream
from torpor.predictors.serving.repository import Repository
from torpor.predictors.torchserve import download
from torpor.predictors.torchserve.management import Management
from torpor.predictors.torchserve.management_api import ManagementApi, ManagementApp
from torpor.predictors.torchserve.manifest import ArchiveError
from torpor.predictors.torchserve.served import ServedArchive
from torpor.predictors.torchserve.store import ArchiveStore
from torpor.predictors.torchserve.workers import Workers

CODE = {"handler.py": ""}
JSON = {b"content-type": b"application/json"}
TIMEOUT_S = 10


class Asked(Exchange):
    """A request, and all answers that somebody gave it."""

    def __init__(self, head: Head, body: bytes) -> None:
        super().__init__(head)
        self.body = body
        self.answers: list[tuple[int, Any]] = []

    def respond(self, status: int, body: bytes, fields: Fields = ()) -> None:
        assert dict(fields) == {b"content-type": b"application/json"}
        said = json.loads(body)
        assert body == json.dumps(said, indent=2).encode() + b"\n"  # as TorchServe writes it
        self.answers.append((status, said))


class Called(Stream):
    """A call by gRPC, and its answer: a text, or a status and its text."""

    def __init__(self, method: str, body: bytes) -> None:
        Exchange.__init__(self, Head("POST", method, {b"te": b"trailers"}, len(body), is_grpc=True))
        self.body = bytes(1) + len(body).to_bytes(4, "big") + body
        self.answers: list[Any] = []

    def respond_grpc(self, data: bytes, trailers: Fields, fields: Fields = ()) -> None:
        status, *text = (value.decode() for _, value in trailers)
        self.answers.append(protobuf("ManagementResponse").FromString(data[5:]).msg if data else (int(status), *text))


def protobuf(name: str) -> Any:
    return grpc_message(f"org.pytorch.serve.grpc.management.{name}")


class Managed:
    """A store in a folder, `echo` served of it at the start; its API, and what it is asked."""

    def __init__(self, root: Path, more: str = "") -> None:
        for name in ("echo", "other"):
            write_mar(root / f"model-store/{name}.mar", CODE, manifest(name))
        write_storage(root, None, f"load_models=echo.mar\n{more}")
        self.loop = asyncio.new_event_loop()
        self.store = ArchiveStore.of(root, Outside({}, {}), 4, None)
        self.data_plane = DataPlane("0")
        self.repository = Repository(self.store, self.data_plane, may_change=True)
        self.management = Management(self.store, self.data_plane, self.repository)
        self.api = ManagementApi(self.management)
        self.app = ManagementApp(self.api)

    def begin(self, method: str, path: str, body: bytes = b"", headers: dict[bytes, bytes] = JSON) -> Asked:
        path, _, query = path.partition("?")
        asked = Asked(Head(method, path, headers, len(body), query=query), body)

        async def ask() -> None:
            if self.app.open(asked):
                self.app.answer(asked)

        self.loop.run_until_complete(ask())
        return asked

    def ask(self, *request: Any) -> tuple[int, Any]:
        """The one answer."""
        asked = self.begin(*request)
        self.settle()
        (answer,) = asked.answers
        return answer

    def call(self, method: str, **fields: Any) -> Any:
        """The one answer, by gRPC."""
        body = protobuf(f"{method}Request")(**fields).SerializeToString()
        return self.call_path(f"/org.pytorch.serve.grpc.management.ManagementAPIsService/{method}", body)

    def call_path(self, path: str, body: bytes) -> Any:
        called = Called(path, body)

        async def ask() -> None:
            assert self.api.takes(called.head) is ("management" in path)
            if self.app.open(called):
                self.app.answer(called)

        self.loop.run_until_complete(ask())
        self.settle()
        (answer,) = called.answers
        return answer

    def settle(self) -> None:
        """Return when nothing is going on any more, whether somebody waits for it or not."""

        async def ended() -> None:
            for tasks in (self.api._tasks, self.management._tasks, self.repository._retiring):
                await asyncio.wait_for(tasks.ended(), TIMEOUT_S)

        self.loop.run_until_complete(ended())

    def register(self, query: str) -> tuple[int, Any]:
        return self.ask("POST", f"/models?initial_workers=0&{query}")

    def served(self) -> dict[str, list[str]]:
        return {name: [one.version for one in self.data_plane.versions(name)] for name in self.data_plane.names()}


@pytest.fixture
def manage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Managed]]:
    """Make one, with more lines in its configuration; nothing has workers unless a test asks for them."""
    made: list[Managed] = []

    def make(more: str = "") -> Managed:
        made.append(managed := Managed(tmp_path, more))
        (archive,) = managed.store.model("echo").archives
        managed.store.add("echo", replace(archive, models_entry={"minWorkers": 0}))
        managed.loop.run_until_complete(managed.repository.load_all({}))
        return managed

    yield make
    for managed in made:
        for model in managed.data_plane.models():
            managed.loop.run_until_complete(model.close())
        managed.loop.close()


def message(answer: tuple[int, Any]) -> tuple[int, str, str]:
    status, said = answer
    assert said["code"] == status
    return status, said["type"], said["message"]


def test_what_is_an_inference_is_not_the_apis(manage) -> None:
    """Where the port has both: `invoke` by POST; `/models` itself, and what is below it."""
    takes = manage().api.takes

    def head(method: str, path: str) -> Head:
        return Head(method, path, {}, 0)

    for method, path in (
        ("GET", "/models"),
        ("GET", "/models/m"),
        ("GET", "/models/m/invoke"),
        ("POST", "/models"),
        ("GET", "/workflows"),
    ):
        assert takes(head(method, path))
    for method, path in (("POST", "/models/m/invoke"), ("GET", "/modelsx"), ("GET", "/v2/models/m"), ("GET", "/")):
        assert not takes(head(method, path))


def test_a_models_state_is_whether_it_has_workers(manage) -> None:
    """As by KServe's v1; TorchServe says ready before that."""
    managed = manage()
    assert managed.ask("GET", "/v1/models/echo") == (200, {"name": "echo", "ready": False})
    status, kind, _ = message(managed.ask("GET", "/v1/models/nobody"))
    assert (status, kind) == (404, "ModelNotFoundException")


def test_a_page_has_a_hundred_models_at_most(manage) -> None:
    """Whatever is asked for; after a full one there is a token, and after one that is not full none."""
    managed = manage()
    (echo,) = managed.data_plane.versions("echo")
    for number in range(1, 101):
        managed.data_plane.publish(f"m{number:03}", [echo])

    def page(query: str = "") -> tuple[int, str | None]:
        status, said = managed.ask("GET", f"/models{query}")
        assert status == 200
        return len(said["models"]), said.get("nextPageToken")

    assert page() == page("?limit=1000") == (100, "100")
    assert page("?next_page_token=100") == (1, None)
    assert page("?next_page_token=1") == (100, "101")
    assert page("?limit=0") == (0, "0")
    assert page("?limit=2147483648")[0] == 100
    assert message(managed.ask("GET", "/models?next_page_token=-1"))[0] == 400


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/models?url=other.mar"), ("DELETE", "/models/echo"), ("DELETE", "/models/echo/1.0")]
)
def test_who_may_not_register_may_not_unregister_either(manage, method: str, path: str) -> None:
    """Neither a model nor a version; nothing has changed."""
    managed = manage("enable_model_api=false")
    assert message(managed.ask(method, path)) == (405, "MethodNotAllowedException", f"method {method} is not allowed")
    assert managed.served() == {"echo": ["1.0"]}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/models"),
        ("PATCH", "/models/echo"),
        ("POST", "/models/echo/1.0"),
        ("GET", "/models/echo/1.0/set-default"),
    ],
)
def test_a_path_by_another_method_is_not_allowed(manage, method: str, path: str) -> None:
    """It is there."""
    assert message(manage().ask(method, path))[:2] == (405, "MethodNotAllowedException")


def test_workflows_are_refused(manage) -> None:
    """In plain words."""
    reason = "workflows are not supported: call the models one after the other, or a transformer"
    assert message(manage().ask("GET", "/workflows/w")) == (501, "InternalServerException", reason)


def test_grpc_has_the_same_calls(manage, monkeypatch) -> None:
    """With the same words as REST, as a text or as JSON; nobody is waited for unless that is said."""
    managed = manage()
    numbers = scaled(managed, monkeypatch)
    calls = describing(managed, monkeypatch, CallAnswer(200, b'{"labels": 10}'))
    accepted = "Processing worker updates..."
    for method, path, fields, text in (
        ("RegisterModel", "", {"url": "other.mar", "initial_workers": 0}, accepted),
        ("ScaleWorker", "", {"model_name": "echo", "min_worker": 2, "max_worker": 3}, accepted),
        ("ScaleWorker", "", {"model_name": "echo", "synchronous": True}, "Workers scaled to 1 for model: echo"),
        ("ListModels", "/models?limit=1", {"limit": 1}, None),
        ("DescribeModel", "/models/echo/1.0", {"model_name": "echo", "model_version": "1.0"}, None),
        ("DescribeModel", "/models/echo?customized=true", {"model_name": "echo", "customized": True}, None),
    ):
        answer = managed.call(method, **fields)
        assert answer == (text or json.dumps(managed.ask("GET", path)[1], indent=2))
    assert (numbers, len(calls)) == ([2, 1], 2)
    preferred = managed.call("SetDefault", model_name="echo", model_version="1.0")
    assert preferred == 'Default version successfully updated for model "echo" to "1.0"'
    assert managed.call("UnregisterModel", model_name="echo") == 'Model "echo" unregistered'
    assert managed.served() == {"other": ["1.0"]}


def test_grpc_registers_for_nobody_who_may_not(manage) -> None:
    """Nor does it unregister."""
    managed = manage("enable_model_api=false")
    reason = "enable_model_api = false: models are not registered, nor unregistered"
    for method, fields in (("RegisterModel", {"url": "other.mar"}), ("UnregisterModel", {"model_name": "echo"})):
        assert managed.call(method, **fields) == (7, reason)
    assert managed.served() == {"echo": ["1.0"]}


def test_grpc_refuses_by_its_codes(manage) -> None:
    """Calls of others too, where the port has no others."""
    managed = manage()
    code, text = managed.call("DescribeModel", model_name="nobody")
    assert (code, text) == (5, "model 'nobody' is unknown, must be one of echo")
    for path in ("/org.pytorch.serve.grpc.management.ManagementAPIsService/Other", "/ListModels"):
        assert managed.call_path(path, b"") == (12, f"method {path} is unknown")
    long = "/management" + "x" * 300
    code, text = managed.call_path("/org.pytorch.serve.grpc.management.ManagementAPIsService" + long, b"")
    assert (code, len(text)) == (12, len("method  is unknown") + 200)


def test_a_path_of_nobodys_is_not_found(manage) -> None:
    """Quoted as it came, and not without end."""
    managed = manage()
    long = "/models/a/b/c/" + "d" * 300
    assert message(managed.ask("GET", long)) == (404, "ResourceNotFoundException", f"path {long[:200]} is unknown")
    assert message(managed.ask("PUT", "/models/echo/1.0/other"))[0] == 404


def test_names_may_be_quoted(manage) -> None:
    """And a path may end with a slash."""
    managed = manage()
    assert managed.ask("GET", "/models/%65cho/")[0] == managed.ask("GET", "/models/")[0] == 200
    assert message(managed.ask("GET", "/models/nobody"))[:2] == (404, "ModelNotFoundException")
    assert message(managed.ask("GET", "/models/nobody/all"))[:2] == (404, "ModelNotFoundException")
    assert message(managed.ask("GET", "/models/echo/9"))[:2] == (404, "ModelVersionNotFoundException")


def test_an_error_of_the_servers_own_is_logged_and_not_told(
    manage, caplog: pytest.LogCaptureFixture, monkeypatch
) -> None:
    """Callers get no details of it."""
    managed = manage()

    async def fails(name: str, version: str) -> None:
        raise RuntimeError("the details")

    monkeypatch.setattr(managed.management, "prefer", fails)
    assert message(managed.ask("PUT", "/models/echo/1.0/set-default")) == (
        500, "InternalServerException", "internal error; the server's log has the details",
    )  # fmt: skip
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage() == "PUT /models/echo/1.0/set-default failed"
    assert "the details" in caplog.text


def test_its_own_port_answers_what_the_server_finds(manage) -> None:
    """A body that is too large, a head that is none."""
    managed = manage()
    asked = Asked(Head("POST", "/models", {}, 0), b"")
    managed.app.refuse(asked, PayloadTooLarge("too large"))
    assert message(asked.answers[0]) == (413, "BadRequestException", "too large")
    body, fields = managed.app.malformed(PayloadTooLarge("too large"))
    assert (json.loads(body)["code"], dict(fields)) == (413, {b"content-type": b"application/json"})


def describing(managed: Managed, monkeypatch: pytest.MonkeyPatch, result: Any) -> list[Any]:
    """The handler of `echo` answers a call with this; the calls."""
    (echo,) = managed.data_plane.versions("echo")
    calls: list[Any] = []

    def call(call: Any, timeout_s: float | None, answer: Callable[[Any], None]) -> object:
        calls.append(call)
        answer(result)
        return call

    monkeypatch.setattr(echo, "call", call)
    return calls


@pytest.mark.parametrize(
    ("body", "more"),
    [
        (b'{"labels": 10}', {"customizedMetadata": {"labels": 10}}),
        (b"[1]", {"customizedMetadata": {}}),
        (b"no json", {"customizedMetadata": {}}),
        (b"null", {}),
    ],
)
def test_a_handlers_own_words_are_an_object_or_nothing(manage, monkeypatch, body: bytes, more: dict[str, Any]) -> None:
    """It is asked once, if it is to be asked."""
    managed = manage()
    calls = describing(managed, monkeypatch, CallAnswer(200, body))
    plain = managed.ask("GET", "/models/echo")[1][0]
    assert (managed.ask("GET", "/models/echo/all"), calls) == ((200, [plain]), [])
    assert managed.ask("GET", "/models/echo?customized=true", b"", {b"x-own": b"1"}) == (200, [plain | more])
    assert calls == [Call("predictions", {"x-own": "1", "describe": "True"}, b"", fields={})]


def test_a_handler_that_fails_to_describe_itself_is_an_error(manage, monkeypatch) -> None:
    """Of this request."""
    managed = manage()
    describing(managed, monkeypatch, ModelFailed("it raised"))
    assert message(managed.ask("GET", "/models/echo?customized=true")) == (500, "InternalServerException", "it raised")


def test_who_leaves_is_not_described_to(manage, monkeypatch) -> None:
    """The call that asks the handler is dropped."""
    managed = manage()
    (echo,) = managed.data_plane.versions("echo")
    cancelled: list[object] = []
    monkeypatch.setattr(echo, "call", lambda *_: "started")
    monkeypatch.setattr(echo, "cancel", cancelled.append)
    asked = managed.begin("GET", "/models/echo?customized=true")
    assert (asked.answers, cancelled) == ([], [])
    assert asked.on_leave is not None
    asked.on_leave()
    managed.settle()
    assert (asked.answers, cancelled) == ([], ["started"])


def test_a_registration_that_nobody_waits_for_is_accepted(manage) -> None:
    """And made; where it cannot be, what is there already stays as it is."""
    managed = manage()
    accepted = (202, {"status": "Processing worker updates..."})
    assert managed.register("url=other.mar&synchronous=false") == accepted
    assert managed.register("url=other.mar&model_name=more&synchronous=False") == accepted
    assert managed.served() == {"echo": ["1.0"], "other": ["1.0"], "more": ["1.0"]}
    assert message(managed.register("url=other.mar&synchronous=false"))[:2] == (409, "ConflictStatusException")


def test_two_registrations_at_once_are_one(manage) -> None:
    """Both saw that there was none."""
    managed = manage()
    first, second = (managed.begin("POST", "/models?url=other.mar&initial_workers=0") for _ in range(2))
    managed.settle()
    assert sorted(status for asked in (first, second) for status, _ in asked.answers) == [200, 409]
    assert managed.served()["other"] == ["1.0"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "the body is not valid JSON: "),
        (b"[]", "the body is a list, must be an object"),
        (b'{"url": 1}', "url is a int, must be a text"),
        (b'{"url": ""}', "parameter url is required"),
        (b'{"url": "other.mar", "model_name": "a/b"}', "model_name = 'a/b', must be printable and without /"),
        (b'{"url": "other.mar", "model_name": "a\\u0000"}', "model_name = 'a\\x00', must be printable and without /"),
        (b'{"url": "other.mar", "batch_size": true}', "batch_size = 'True', must be an integer in [0, 2147483648]"),
        (b'{"url": "other.mar", "batch_size": "1e3"}', "batch_size = '1e3', must be an integer in [0, 2147483648]"),
        (b'{"url": "other.mar", "batch_size": 0}', "registration: batchSize = 0, must be an integer in [1, 2147483648]"),
        (b'{"url": "other.mar", "initial_workers": 1025}', "initial_workers = '1025', must be an integer in [0, 1024]"),
        (b'{"url": "other.mar", "synchronous": 2}', "synchronous = '2', must be true or false"),
        (b'{"url": "other.mar", "batch_size": "' + b"1" * 5000 + b'"}', "batch_size = '11111"),
    ],
)  # fmt: skip
def test_a_wrong_registration_is_named(manage, body: bytes, reason: str) -> None:
    """Parameter, value and range; nothing is served of it."""
    managed = manage()
    status, kind, text = message(managed.ask("POST", "/models", body))
    assert (status, kind) == (400, "BadRequestException")
    assert text.startswith(reason)
    assert managed.served() == {"echo": ["1.0"]}


def test_a_body_counts_where_it_is_json_and_says_something(manage) -> None:
    """More than the query; what is null in it is not said."""
    managed = manage()
    body = b'{"model_name": "named", "url": null, "synchronous": "True", "initial_workers": 0}'
    query = "/models?url=other.mar&initial_workers=0"
    assert managed.ask("POST", query, body, {b"content-type": b" application/JSON ; charset=utf-8"})[0] == 200
    assert managed.ask("POST", query, body, {b"content-type": b"text/plain"})[0] == 200
    assert managed.served() == {"echo": ["1.0"], "named": ["1.0"], "other": ["1.0"]}


def test_a_registration_alone_has_a_body(manage, monkeypatch) -> None:
    """Of any other call nobody reads it."""
    managed = manage()
    scaled(managed, monkeypatch)
    for method, path in (("GET", "/models"), ("PUT", "/models/echo?synchronous=true"), ("DELETE", "/models/echo")):
        assert managed.ask(method, path, b"{")[0] == 200


def test_of_a_parameter_that_is_there_twice_the_first_counts(manage) -> None:
    """An empty one is a text without letters."""
    managed = manage()
    assert managed.register("url=other.mar&model_name=first&model_name=second")[0] == 200
    assert managed.register("url=other.mar&model_name=")[0] == 200
    assert message(managed.register("url=other.mar&batch_size="))[0] == 400
    assert managed.served() == {"echo": ["1.0"], "first": ["1.0"], "other": ["1.0"]}


def test_a_registration_says_more_than_the_archive_does(manage) -> None:
    """Its handler and its settings, but not how many workers: what the archive's YAML says of these counts."""
    managed = manage("default_workers_per_model=0\ndefault_response_timeout=7")
    query = "url=other.mar&handler=mine&batch_size=3&max_batch_delay=70&response_timeout=9&startup_timeout=8"
    done = 'Model "other" Version: 1.0 registered with 0 initial workers. Use scale workers API to add workers for the model.'
    assert managed.register(query) == (200, {"status": done})
    (said,) = managed.ask("GET", "/models/other")[1]
    expected = {
        "batchSize": 3,
        "maxBatchDelay": 70,
        "responseTimeout": 9,
        "startupTimeout": 8,
        "loadedAtStartup": False,
    }
    assert {key: said[key] for key in expected} == expected
    (archive,) = managed.store.model("other").archives
    assert managed.store.model("other").assemble("1.0").archive.manifest.handler == archive.handler == "mine"


LONG = "é" * 126 + ".mar"  # of 256 bytes


@pytest.mark.parametrize("file", ["..", ".", "a/b.mar", "a\\b.mar", "missing.mar", "text", LONG, LONG[1:]])
def test_what_is_not_in_the_store_is_not_found(manage, file: str) -> None:
    """Neither below it nor above, and nothing that is no archive."""
    managed = manage()
    (managed.store.folder / "text").write_text("")
    for place in (managed.store.folder, managed.store.folder.parent):
        (place / "MAR-INF").mkdir()
    write_mar(managed.store.folder / "a" / "b.mar", CODE)
    write_mar(managed.store.folder / "a\\b.mar", CODE)
    assert message(managed.register(f"url={quote(file)}"))[:2] == (404, "ModelNotFoundException")


def test_an_archive_that_is_none_is_refused_and_kept(manage) -> None:
    """It was there."""
    managed = manage()
    (managed.store.folder / "none.mar").write_text("")
    assert message(managed.register("url=none.mar"))[:2] == (400, "BadRequestException")
    assert (managed.store.folder / "none.mar").exists()


def test_a_single_archive_has_no_store(manage) -> None:
    """Nothing can be registered beside it, from a URL neither."""
    managed = manage("allowed_urls=.*")
    managed.store.folder = None
    not_found = (404, "ModelNotFoundException", "model not found at: other.mar")
    assert message(managed.register("url=other.mar")) == not_found
    assert message(managed.register("url=http://127.0.0.1:1/other.mar"))[0] == 404


def scaled(managed: Managed, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of workers that the model `echo` is given; none is started."""
    numbers: list[int] = []

    async def grow(workers: Workers, count: int) -> None:
        workers.devices = count
        numbers.append(count)

    def shrink(workers: Workers, count: int) -> None:
        workers.devices = count
        numbers.append(count)

    monkeypatch.setattr(Workers, "grow", grow)
    monkeypatch.setattr(Workers, "shrink", shrink)
    return numbers


def test_a_model_is_scaled_to_at_least_and_at_most(manage, monkeypatch) -> None:
    """From what it has to the nearest of what is asked for; one at least if nothing is said."""
    managed = manage()
    numbers = scaled(managed, monkeypatch)

    def scale(path: str) -> str:
        status, said = managed.ask("PUT", f"/models/echo{path}")
        assert status == (200 if "synchronous" in path else 202)
        return said["status"]

    assert scale("?synchronous=true") == "Workers scaled to 1 for model: echo"
    assert (
        scale("/1.0?min_worker=3&max_worker=5&synchronous=true") == "Workers scaled to 3 for model: echo, version: 1.0"
    )
    assert scale("?min_worker=2&max_worker=4") == "Processing worker updates..."
    assert scale("?min_worker=1&max_worker=2") == "Processing worker updates..."
    assert scale("?min_worker=0") == "Processing worker updates..."
    assert numbers == [1, 3, 3, 2, 0]
    (said,) = managed.ask("GET", "/models/echo")[1]
    assert (said["minWorkers"], said["maxWorkers"]) == (0, 0)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("min_worker=5&max_worker=1", "max_worker = 1, must be at least min_worker = 5"),
        ("min_worker=1025", "min_worker = '1025', must be an integer in [0, 1024]"),
        ("max_worker=1025", "max_worker = '1025', must be an integer in [0, 1024]"),
        ("min_worker=x", "min_worker = 'x', must be an integer in [0, 1024]"),
    ],
)
def test_a_wrong_number_of_workers_is_named(manage, monkeypatch, query: str, reason: str) -> None:
    """And nothing is scaled."""
    managed = manage()
    numbers = scaled(managed, monkeypatch)
    assert message(managed.ask("PUT", f"/models/echo?{query}")) == (400, "BadRequestException", reason)
    assert numbers == []


def test_a_scaling_that_fails_is_told_to_who_waits(manage, monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody else waits until it has failed; then the log has it."""
    managed = manage()
    goes_on = asyncio.Event()

    async def grow(workers: Workers, count: int) -> None:
        await goes_on.wait()
        raise ArchiveError("no weights")

    monkeypatch.setattr(Workers, "grow", grow)
    accepted = managed.begin("PUT", "/models/echo?min_worker=1")
    for _ in range(9):
        managed.loop.run_until_complete(asyncio.sleep(0))
    assert accepted.answers == [(202, {"status": "Processing worker updates..."})]
    reason = "failed to start workers of model 'echo': no weights"
    goes_on.set()
    assert message(managed.ask("PUT", "/models/echo?min_worker=1&synchronous=true"))[::2] == (500, reason)
    assert [(record.message, str(record.exc_info[1])) for record in caplog.records] == [
        ("scaling of echo failed", reason)
    ]


def test_models_are_listed_by_name(manage) -> None:
    """Not in the order in which they came."""
    managed = manage()
    assert managed.register("url=other.mar&model_name=a")[0] == 200
    listed = managed.ask("GET", "/models")[1]["models"]
    assert listed == [{"modelName": "a", "modelUrl": "other.mar"}, {"modelName": "echo", "modelUrl": "echo.mar"}]


def test_an_unregistration_waits_for_what_comes_before_it(manage) -> None:
    """Which version is the default is seen when it is its turn: here it has become one that may not go."""
    managed = manage()
    write_mar(managed.store.folder / "echo-2.mar", CODE, manifest("echo", version="2.0"))
    assert managed.register("url=echo-2.mar")[0] == 200
    asked = [
        managed.begin(method, path)
        for method, path in (
            ("POST", "/models?url=other.mar&initial_workers=0"),
            ("PUT", "/models/echo/2.0/set-default"),
            ("DELETE", "/models/echo"),
        )
    ]
    managed.settle()
    assert [status for one in asked for status, _ in one.answers] == [200, 200, 403]
    assert managed.served()["echo"] == managed.store.model("echo").versions() == ["2.0", "1.0"]


def test_versions_are_preferred_and_go_by_name(manage) -> None:
    """In the catalog as in what is served: a load by the repository API afterwards serves the same."""
    managed = manage()
    for version in ("2.0", "3.0"):
        write_mar(managed.store.folder / f"{version}.mar", CODE, manifest("other", version=version))
        assert managed.register(f"url={version}.mar")[0] == 200
    assert managed.register("url=other.mar")[0] == 200
    assert managed.served()["other"] == managed.store.model("other").versions() == ["2.0", "3.0", "1.0"]
    preferred = {"status": 'Default version successfully updated for model "other" to "3.0"'}
    assert managed.ask("PUT", "/models/other/3.0/set-default") == (200, preferred)
    assert managed.served()["other"] == managed.store.model("other").versions() == ["3.0", "2.0", "1.0"]
    assert message(managed.ask("PUT", "/models/other/9/set-default"))[:2] == (404, "ModelVersionNotFoundException")
    assert message(managed.ask("DELETE", "/models/other"))[:2] == (403, "InvalidModelVersionException")
    for version in ("2.0", "1.0"):
        (gone,) = [one for one in managed.data_plane.versions("other") if one.version == version]
        assert isinstance(gone, ServedArchive)
        assert managed.ask("DELETE", f"/models/other/{version}") == (200, {"status": 'Model "other" unregistered'})
        assert gone.is_retired
        assert gone._workers._is_closed
    assert managed.served()["other"] == managed.store.model("other").versions() == ["3.0"]
    assert managed.ask("DELETE", "/models/other")[0] == 200
    assert (managed.served(), managed.store.names()) == ({"echo": ["1.0"]}, ["echo"])
    assert message(managed.ask("DELETE", "/models/other"))[:2] == (404, "ModelNotFoundException")


def test_what_does_not_load_leaves_nothing(manage, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in the catalog nor in what is served, and the next change is made."""
    managed = manage()
    said = manifest("broken", configFile="config.yaml")
    write_mar(managed.store.folder / "broken.mar", CODE, said)
    status, kind, text = message(managed.register("url=broken.mar"))
    assert (status, kind) == (500, "InternalServerException")
    assert text.startswith("model 'broken' version 1.0 failed to load: broken.mar: config.yaml")
    assert (managed.served(), managed.store.names()) == ({"echo": ["1.0"]}, ["echo"])
    assert "model broken version 1.0 failed to load" in caplog.text
    assert managed.register("url=other.mar")[0] == 200


# Archives from URLs


@pytest.mark.parametrize(
    ("url", "pattern", "allowed"),
    [
        ("http://a/b.mar", "http://a/.*", True),
        ("HTTPS://A/b.mar", "https://a/.*", True),
        ("http://a/b.mar", "http://a/", False),
        ("x http://a/b.mar", ".*", False),
        ("file:///etc/passwd", ".*", False),
        ("ftp://a/b.mar", ".*", False),
        ("data:,x.mar", ".*", False),
    ],
)
def test_a_url_is_allowed_by_a_pattern_of_all_of_it(url: str, pattern: str, allowed: bool) -> None:
    """In any case, and of HTTP alone, whatever the pattern says."""
    assert download.is_allowed(url, ["nothing", pattern]) is allowed


class Answer:
    """What a server sends, or how it fails."""

    def __init__(self, *pieces: bytes, error: Exception | None = None) -> None:
        self.pieces, self.error = [*pieces, b""], error

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *_: object) -> None: ...

    def read(self, size: int) -> bytes:
        if self.error is not None and len(self.pieces) == 1:
            raise self.error
        return self.pieces.pop(0)


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], None]:
    """Let every URL be answered so."""

    def answer(answer: Answer) -> None:
        def build_opener(*handlers: object) -> Any:
            return SimpleNamespace(open=lambda url, timeout: answer)

        monkeypatch.setattr("urllib.request.build_opener", build_opener)

    return answer


def test_a_download_is_there_whole_or_not_at_all(answering, tmp_path: Path, monkeypatch) -> None:
    """One that breaks off, or is too large, leaves nothing."""
    answering(Answer(b"one", b"two"))
    assert download.download("http://a/x%20y.mar?token=1", [".*"], tmp_path) == "x y.mar"
    assert (tmp_path / "x y.mar").read_bytes() == b"onetwo"
    answering(Answer(b"one", error=TimeoutError("timed out")))
    with pytest.raises(download.NotFound, match=r"http://a/b\.mar: timed out"):
        download.download("http://a/b.mar", [".*"], tmp_path)
    answering(Answer(error=download.HTTPException("cut")))
    with pytest.raises(download.NotFound, match="cut"):
        download.download("http://a/b.mar", [".*"], tmp_path)
    monkeypatch.setattr(download, "_MOST_BYTES", 6)
    answering(Answer(b"one", b"two", b"3"))
    with pytest.raises(download.InvalidInput, match="the archive must have at most 6 bytes"):
        download.download("http://a/b.mar", [".*"], tmp_path)
    answering(Answer(b"one", b"two"))
    assert download.download("http://a/c.mar", [".*"], tmp_path) == "c.mar"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.mar", "x y.mar"]


@pytest.mark.parametrize("path", ["", "a/", "a.zip", "a%00.mar", ".mar%2F.."])
def test_a_url_names_an_archive(tmp_path: Path, path: str) -> None:
    """Before anybody is asked."""
    with pytest.raises(download.InvalidInput, match=r"must end with one of \.mar"):
        download.download(f"http://a/{path}", [".*"], tmp_path)


def test_a_url_of_what_is_in_the_store_is_refused(tmp_path: Path) -> None:
    """It would take the place of what somebody put there."""
    (tmp_path / "a.mar").write_text("")
    with pytest.raises(download.Conflict, match=r"a\.mar is in the model store already"):
        download.download("http://a/a.mar", [".*"], tmp_path)


def test_a_redirection_leads_to_what_is_allowed_alone() -> None:
    """Else whoever may name a server could have any other asked."""
    redirects = download._Redirects(["http://b/.*"])
    request = urllib.request.Request("http://a/x.mar")

    def follow(url: str) -> Any:
        return redirects.redirect_request(request, None, 302, "Found", Message(), url)

    assert follow("http://b/y.mar").full_url == "http://b/y.mar"
    for url in ("http://a/y.mar", "http://c/" + "x" * 300):
        with pytest.raises(download.NotFound) as error:
            follow(url)
        assert str(error.value) == f"{url[:200]!r}, which it leads to, must be one of the configuration's allowed_urls"


@pytest.mark.parametrize(("default", "query"), [(0, ""), (3, "&initial_workers=0")])
def test_a_registration_has_as_many_workers_as_it_says(manage, default: int, query: str) -> None:
    """Or as the configuration does."""
    managed = manage(f"default_workers_per_model={default}")
    status, said = managed.ask("POST", f"/models?url=other.mar{query}")
    assert (status, "registered with 0 initial workers" in said["status"]) == (200, True)


def test_a_url_that_is_not_allowed_is_not_found(answering, tmp_path: Path) -> None:
    """Nobody is asked for it."""
    answering(Answer(b"x"))
    with pytest.raises(
        download.NotFound, match=r"url = 'http://a/b\.mar', must be one of the configuration's allowed_urls"
    ):
        download.download("http://a/b.mar", ["http://b/.*"], tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_a_long_url_is_cut_in_the_error(answering, tmp_path: Path, monkeypatch) -> None:
    """Whatever is wrong with it."""
    url = "http://a/" + "x" * 300
    answering(Answer(b"12", error=TimeoutError("timed out")))
    for allowed, name in (([], ""), ([".*"], ""), ([".*"], ".mar"), ([".*"], "/y.mar")):
        with pytest.raises(TorporError) as error:
            download.download(url + name, allowed, tmp_path)
        assert url[:200] in str(error.value)
        assert url[:201] not in str(error.value)
    answering(Answer(b"12"))
    monkeypatch.setattr(download, "_MOST_BYTES", 1)
    with pytest.raises(download.InvalidInput, match=f"^{url[:200]}: the archive must have at most 1 bytes$"):
        download.download(url + "/y.mar", [".*"], tmp_path)


@pytest.mark.parametrize("host", ["[a", f"{'a' * 64}.b", "127.0.0.1:x", "127.0.0.1:1/é"])
def test_a_url_that_is_none_is_not_found(tmp_path: Path, host: str) -> None:
    """Though a pattern may allow it."""
    with pytest.raises(download.NotFound, match=f"^{re.escape(f'http://{host}/x.mar')}: "):
        download.download(f"http://{host}/x.mar", [".*"], tmp_path)
