"""TorchServe's management API: archives of the model store come, are scaled and go while others serve."""

import concurrent.futures
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import grpc
import pytest
from archives import manifest, write_mar, write_storage
from free_ports import free_port
from torpor.predictors.protocol.messages import message

ECHO = """
import os

class Echo:
    def initialize(self, context):
        self.version = context.manifest["model"]["modelVersion"]

    def handle(self, data, context):
        if context.get_request_header(0, "describe") == "True":
            return [self.words]
        return [self.answer(row["body"]) for row in data]

    def answer(self, text):
        if text.startswith("/"):
            open(text).read()
            return "waited"
        return {"pid": os.getpid(), "version": self.version}

    words = {"labels": 10}
"""
BROKEN = "class Broken:\n    def initialize(self, context):\n        raise ValueError('no weights')\n"
BROKEN += "    def handle(self, data, context):\n        return data\n"
ONLY = """
import os

class Only:
    def initialize(self, context):
        os.mkdir("taken")  # in the folder that all workers of the model share

    def handle(self, data, context):
        return ["x" for row in data]
"""
MANAGEMENT = "org.pytorch.serve.grpc.management"
TEXT, JSON = {"content-type": "text/plain"}, {"content-type": "application/json"}


def write_store(root: Path, more: str = "") -> Path:
    """A storage folder of which one archive is served at the start."""
    for name in ("echo", "more", "other", "idle", "busy", "gone", "thin"):
        write_mar(root / f"model-store/{name}.mar", {"handler.py": ECHO}, manifest(name))
    for version in ("1.0", "2.0"):
        write_mar(root / f"model-store/two-{version[0]}.mar", {"handler.py": ECHO}, manifest("two", version=version))
    write_mar(root / "model-store/broken.mar", {"handler.py": BROKEN}, manifest("broken"))
    yaml = {"handler.py": ECHO, "config.yaml": "minWorkers: 2\nmaxWorkers: 3\nbatchSize: 4\n"}
    write_mar(root / "model-store/many.mar", yaml, manifest("many", configFile="config.yaml"))
    write_mar(root / "model-store/only.mar", {"handler.py": ONLY}, manifest("only"))
    write_mar(root / "outside.mar", {"handler.py": ECHO}, manifest("outside"))
    return write_storage(root, None, f"load_models=echo.mar\ndefault_workers_per_model=1\n{more}")


@pytest.fixture(scope="module")
def server(serve, tmp_path_factory: pytest.TempPathFactory):
    return serve(write_store(tmp_path_factory.mktemp("managed")), "--torchserve-management", "port")


@pytest.fixture
def client(connect_http1, server):
    return connect_http1(server)


@pytest.fixture
def manage(client):
    """Ask the management API: status and what its JSON says."""

    def ask(method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        reply = client.request(method, path, body, JSON)
        return reply.status, reply.json()

    return ask


@pytest.fixture
def predict(client):
    def ask(path: str, text: str = "x") -> tuple[int, Any]:
        reply = client.request("POST", f"/predictions/{path}", text.encode(), TEXT)
        return reply.status, json.loads(reply.body)

    return ask


def test_management_is_off_unless_asked_for(serve, connect_http1, tmp_path: Path) -> None:
    """Who can ask for predictions could otherwise say what runs."""
    client = connect_http1(serve(write_mar(tmp_path / "echo.mar", {"handler.py": ECHO})))
    for method, path in (("GET", "/models"), ("POST", "/models?url=echo.mar"), ("DELETE", "/models/echo")):
        assert client.request(method, path).status == 404
    assert client.request("POST", "/predictions/echo", b"x", TEXT).status == 200


def test_models_are_listed_by_pages(manage) -> None:
    """A full page has a token, the last one too."""
    assert manage("POST", "/models?url=more.mar")[0] == 200
    first = {"nextPageToken": "1", "models": [{"modelName": "echo", "modelUrl": "echo.mar"}]}
    assert manage("GET", "/models?limit=1") == (200, first)
    more = {"modelName": "more", "modelUrl": "more.mar"}
    assert more in manage("GET", "/models?next_page_token=1")[1]["models"]
    assert manage("GET", "/models?limit=x") == (
        400,
        {"code": 400, "type": "BadRequestException", "message": "limit = 'x', must be an integer in [0, 2147483648]"},
    )


def test_a_model_is_described(manage, predict) -> None:
    """Its settings, its worker's process, its queue."""
    status, (said,) = manage("GET", "/models/echo")
    assert status == 200
    (worker,) = said["workers"]
    assert (worker["pid"], worker["status"]) == (predict("echo")[1]["pid"], "READY")
    assert worker["memoryUsage"] > 1 << 20
    assert worker["startTime"].endswith("Z")
    assert said["jobQueueStatus"] == {"remainingCapacity": 100, "pendingRequests": 0}
    expected = {"modelName": "echo", "modelVersion": "1.0", "modelUrl": "echo.mar", "runtime": "python", "batchSize": 1,
                "maxBatchDelay": 100, "responseTimeout": 120, "minWorkers": 1, "maxWorkers": 1, "loadedAtStartup": True,
                "deviceType": "cpu"}  # fmt: skip
    assert {key: said[key] for key in expected} == expected
    assert manage("GET", "/models/echo/1.0")[1][0]["modelName"] == "echo"
    assert manage("GET", "/models/echo/9")[1]["type"] == "ModelVersionNotFoundException"
    assert manage("GET", "/models/nobody")[1]["type"] == "ModelNotFoundException"


def test_a_handler_describes_itself(manage) -> None:
    """Where it is asked to."""
    assert manage("GET", "/models/echo?customized=true")[1][0]["customizedMetadata"] == {"labels": 10}
    assert "customizedMetadata" not in manage("GET", "/models/echo?customized=false")[1][0]


def test_an_archive_is_registered_from_the_store(manage, predict) -> None:
    """With what the registration says, by its query or its JSON, and once."""
    query = "url=other.mar&batch_size=3&max_batch_delay=70&response_timeout=9&initial_workers=2"
    done = {"status": 'Model "other" Version: 1.0 registered with 2 initial workers'}
    assert manage("POST", f"/models?{query}") == (200, done)
    (said,) = manage("GET", "/models/other")[1]
    assert (said["batchSize"], said["maxBatchDelay"], said["responseTimeout"], len(said["workers"])) == (3, 70, 9, 2)
    assert not said["loadedAtStartup"]
    assert predict("other")[0] == 200
    status, error = manage("POST", "/models?url=other.mar")
    assert (status, error["type"]) == (409, "ConflictStatusException")
    body = json.dumps({"url": "other.mar", "model_name": "another", "initial_workers": 1}).encode()
    assert manage("POST", "/models", body)[0] == 200
    assert predict("another")[0] == 200


@pytest.mark.parametrize(
    ("query", "status", "kind"),
    [
        ("", 400, "BadRequestException"),
        ("url=missing.mar", 404, "ModelNotFoundException"),
        ("url=../outside.mar", 404, "ModelNotFoundException"),
        ("url=http://elsewhere/echo.mar", 404, "ModelNotFoundException"),
        ("url=file:///etc/passwd", 404, "ModelNotFoundException"),
        ("url=other.mar&batch_size=0", 400, "BadRequestException"),
        ("url=other.mar&initial_workers=1025", 400, "BadRequestException"),
        ("url=other.mar&model_name=a%2Fb", 400, "BadRequestException"),
        ("url=other.mar&synchronous=maybe", 400, "BadRequestException"),
        ("url=broken.mar&initial_workers=1", 500, "InternalServerException"),
    ],
)
def test_what_cannot_be_registered_leaves_nothing(manage, client, query: str, status: int, kind: str) -> None:
    """Its error is TorchServe's."""
    before = manage("GET", "/models")
    found, error = manage("POST", f"/models?{query}")
    assert (found, error["code"], error["type"]) == (status, status, kind)
    assert manage("GET", "/models") == before
    assert manage("GET", "/models/broken")[0] == 404
    assert "broken" not in [model["name"] for model in client.request("POST", "/v2/repository/index").json()]


class Elsewhere(http.server.BaseHTTPRequestHandler):
    """A server of archives, which sends some callers on."""

    archives: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        content = self.archives.get(self.path)
        self.send_response(302 if content is None else 200)
        if content is None:
            self.send_header("location", self.path.replace("/via", ""))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """Its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_archives_come_from_urls_that_are_allowed(serve, connect_http1, tmp_path: Path, elsewhere: str) -> None:
    """By any of the patterns, wherever they lead, and only if the store has none of that name."""
    content = write_mar(tmp_path / "far.mar", {"handler.py": ECHO}, manifest("far")).read_bytes()
    Elsewhere.archives = {
        "/open/far.mar": content,
        "/closed/far.mar": content,
        "/open/none.mar": b"",
        "/open/text": b"",
    }
    patterns = f"https://nowhere/.*, {elsewhere}(/via)?/open/.*,{elsewhere}/via/closed/.*"
    root = write_store(tmp_path, f"allowed_urls={patterns}")
    client = connect_http1(serve(root, "--torchserve-management", "port"))

    def register(url: str) -> int:
        return client.request("POST", f"/models?url={url}&initial_workers=1").status

    assert register(f"{elsewhere}/closed/far.mar") == register(f"{elsewhere}/via/closed/far.mar") == 404
    assert register(f"{elsewhere}/open/text") == 400
    assert register(f"{elsewhere}/open/none.mar") == register(f"{elsewhere}/open/none.mar") == 400
    assert register(f"{elsewhere}/via/open/far.mar") == 200
    assert client.request("POST", "/predictions/far", b"x", TEXT).status == 200
    assert client.request("DELETE", "/models/far").status == 200
    assert register(f"{elsewhere}/open/far.mar") == 409
    assert register("far.mar") == 200
    assert not [*(root / "model-store").glob(".download-*")]


def test_a_model_without_workers_is_healthy_and_answers_nobody(manage, predict, client) -> None:
    """It has what it was told to have."""
    done = 'Model "idle" Version: 1.0 registered with 0 initial workers. Use scale workers API to add workers for the model.'
    assert manage("POST", "/models?url=idle.mar&initial_workers=0") == (200, {"status": done})
    assert client.request("GET", "/ping").status == 200
    status, error = predict("idle")
    assert (status, error["type"]) == (503, "ServiceUnavailableException")
    assert client.request("GET", "/v2/models/idle/ready").status == 503
    scaled = {"status": "Workers scaled to 2 for model: idle"}
    assert manage("PUT", "/models/idle?min_worker=2&synchronous=true") == (200, scaled)
    assert len(manage("GET", "/models/idle")[1][0]["workers"]) == 2
    assert predict("idle")[0] == 200
    assert manage("PUT", "/models/idle/1.0?min_worker=1&max_worker=1&synchronous=true")[0] == 200
    (said,) = manage("GET", "/models/idle")[1]
    assert (said["minWorkers"], said["maxWorkers"], len(said["workers"])) == (1, 1, 1)
    assert predict("idle")[0] == 200


def test_scaling_to_nonsense_changes_nothing(manage) -> None:
    """More at least than at most, or of nobody."""
    assert manage("PUT", "/models/echo?min_worker=5&max_worker=1")[1]["type"] == "BadRequestException"
    assert manage("PUT", "/models/echo?min_worker=-1")[0] == 400
    assert manage("PUT", "/models/nobody?min_worker=1")[0] == 404
    assert manage("PUT", "/models/echo?min_worker=1") == (202, {"status": "Processing worker updates..."})
    assert len(manage("GET", "/models/echo")[1][0]["workers"]) == 1


def test_workers_that_cannot_load_leave_it_as_it_was(manage, client) -> None:
    """The one that there is goes on, and a registration with two of them is none."""
    assert manage("POST", "/models?url=only.mar&initial_workers=2")[0] == 500
    assert manage("GET", "/models/only")[0] == 404
    assert manage("POST", "/models?url=only.mar&initial_workers=1")[0] == 200
    status, error = manage("PUT", "/models/only?min_worker=2&synchronous=true")
    assert (status, error["type"]) == (500, "InternalServerException")
    assert "FileExistsError" in error["message"]
    assert manage("PUT", "/models/only?min_worker=2&synchronous=true")[0] == 500
    (said,) = manage("GET", "/models/only")[1]
    assert (said["minWorkers"], len(said["workers"])) == (1, 1)
    assert client.request("POST", "/predictions/only", b"x", TEXT).status == 200


def test_a_worker_that_is_taken_away_answers_what_it_has(
    manage, predict, server, connect_http1, tmp_path: Path
) -> None:
    """What waits behind it is refused, since nobody is left."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    assert manage("POST", "/models?url=busy.mar&initial_workers=1")[0] == 200

    def ask(text: str) -> tuple[int, bytes]:
        reply = connect_http1(server).request("POST", "/predictions/busy", text.encode(), TEXT)
        return reply.status, reply.body

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        held = pool.submit(ask, str(gate))
        with gate.open("w"):  # opens when the handler reads
            waiting = pool.submit(ask, "x")
            while not manage("GET", "/models/busy")[1][0]["jobQueueStatus"]["pendingRequests"]:
                pass
            assert manage("PUT", "/models/busy?min_worker=0&synchronous=true")[0] == 200
            assert waiting.result(20)[0] == 503
            assert not held.done()
        assert held.result(20) == (200, b"waited")
    assert manage("GET", "/models/busy")[1][0]["workers"] == []
    assert predict("busy")[0] == 503


def test_an_archives_own_number_of_workers_is_before_the_registrations(manage) -> None:
    """As for TorchServe."""
    pytest.importorskip("yaml")
    assert manage("POST", "/models?url=many.mar&initial_workers=1&batch_size=5")[0] == 200
    (said,) = manage("GET", "/models/many")[1]
    assert (said["minWorkers"], said["maxWorkers"], len(said["workers"]), said["batchSize"]) == (2, 3, 2, 5)


def test_versions_come_are_preferred_and_go(manage, predict, client) -> None:
    """The first is the default until another is; a default goes last."""
    assert manage("POST", "/models?url=two-1.mar")[0] == manage("POST", "/models?url=two-2.mar")[0] == 200
    assert [said["modelVersion"] for said in manage("GET", "/models/two/all")[1]] == ["1.0", "2.0"]
    assert (predict("two")[1]["version"], predict("two/2.0")[1]["version"]) == ("1.0", "2.0")
    preferred = {"status": 'Default version successfully updated for model "two" to "2.0"'}
    assert manage("PUT", "/models/two/2.0/set-default") == (200, preferred)
    assert predict("two")[1]["version"] == "2.0"
    assert manage("PUT", "/models/two/9/set-default")[1]["type"] == "ModelVersionNotFoundException"
    status, error = manage("DELETE", "/models/two/2.0")
    assert (status, error["type"]) == (403, "InvalidModelVersionException")
    pid = predict("two/1.0")[1]["pid"]
    assert manage("DELETE", "/models/two/1.0") == (200, {"status": 'Model "two" unregistered'})
    for _ in range(2000):  # its process leaves when it has answered everybody
        if not Path(f"/proc/{pid}").exists():
            break
        client.request("GET", "/ping")
    assert not Path(f"/proc/{pid}").exists()
    assert predict("two/1.0")[0] == 404
    assert manage("DELETE", "/models/two") == (200, {"status": 'Model "two" unregistered'})
    assert predict("two")[0] == 404
    assert manage("DELETE", "/models/two")[0] == 404
    assert "two" not in [model["name"] for model in client.request("POST", "/v2/repository/index").json()]
    assert manage("POST", "/models?url=two-2.mar")[0] == 200
    assert predict("two")[1]["version"] == "2.0"


def test_what_the_api_does_not_have_is_refused_in_its_words(manage) -> None:
    """Method and path."""
    assert manage("PATCH", "/models/echo")[1]["type"] == "MethodNotAllowedException"
    assert manage("GET", "/models/a/b/c/d")[1]["type"] == "ResourceNotFoundException"


def test_its_own_port_is_on_loopback_and_has_nothing_else(serve, connect_http1, tmp_path: Path) -> None:
    """Whatever host the configuration gives it."""
    port = free_port()
    root = write_store(tmp_path, f"management_address=http://0.0.0.0:{port}")
    server = serve(root, "--torchserve-management", "loopback")
    assert f"TorchServe's management on 127.0.0.1:{port}\n" in "".join(server.log)
    client = connect_http1(server)
    assert client.request("GET", "/models").status == 404
    server.port = port
    management = connect_http1(server)
    assert management.request("POST", "/models?url=thin.mar").status == 200
    assert management.request("POST", "/predictions/echo", b"x").json()["type"] == "ResourceNotFoundException"
    assert client.request("POST", "/predictions/thin", b"x", TEXT).status == 200
    with grpc.insecure_channel(server.address) as channel:
        assert call(channel, "ListModels", limit=1)["models"] == [{"modelName": "echo", "modelUrl": "echo.mar"}]
        with pytest.raises(grpc.RpcError) as error:
            channel.unary_unary("/org.pytorch.serve.grpc.inference.InferenceAPIsService/Ping")(b"", timeout=30)
        assert error.value.code().name == "UNIMPLEMENTED"


def test_grpc_management_listens_where_the_configuration_says(serve, grpc_channel, tmp_path: Path) -> None:
    """On loopback, beside REST's port."""
    port = free_port()
    more = f"management_address=http://127.0.0.1:0\ngrpc_management_port={port}"
    server = serve(write_store(tmp_path, more), "--torchserve-management", "loopback")
    server.port = port
    assert call(grpc_channel(server), "ListModels")["models"]


def call(channel: grpc.Channel, method: str, **fields: Any) -> Any:
    """Ask TorchServe's management service: its sentence, or what its JSON says."""
    request, response = (message(f"{MANAGEMENT}.{name}") for name in (f"{method}Request", "ManagementResponse"))
    invoke = channel.unary_unary(
        f"/{MANAGEMENT}.ManagementAPIsService/{method}", lambda one: one.SerializeToString(), response.FromString
    )
    text = invoke(request(**fields), timeout=30).msg
    return json.loads(text) if text[:1] in "[{" else text


def test_models_are_managed_by_grpc_as_by_rest(server, grpc_channel, predict) -> None:
    """With the same words; a field that is empty was not given, and nobody waits unless `synchronous` says so."""
    channel = grpc_channel(server)
    registered = call(channel, "RegisterModel", url="many.mar", model_name="by-grpc", batch_size=2, synchronous=True)
    assert registered == 'Model "by-grpc" Version: 1.0 registered with 2 initial workers'
    (said,) = call(channel, "DescribeModel", model_name="by-grpc")
    assert (said["batchSize"], said["maxBatchDelay"], len(said["workers"])) == (2, 100, 2)
    (said,) = call(channel, "DescribeModel", model_name="by-grpc", customized=True)
    assert said["customizedMetadata"] == {"labels": 10}
    scaled = call(channel, "ScaleWorker", model_name="by-grpc", max_worker=1, synchronous=True)
    assert scaled == "Workers scaled to 1 for model: by-grpc"
    assert call(channel, "ScaleWorker", model_name="by-grpc") == "Processing worker updates..."
    preferred = call(channel, "SetDefault", model_name="by-grpc", model_version="1.0")
    assert preferred == 'Default version successfully updated for model "by-grpc" to "1.0"'
    assert predict("by-grpc")[0] == 200
    assert call(channel, "UnregisterModel", model_name="by-grpc") == 'Model "by-grpc" unregistered'
    assert predict("by-grpc")[0] == 404


@pytest.mark.parametrize(
    ("method", "fields", "code"),
    [
        ("DescribeModel", {"model_name": "nobody"}, "NOT_FOUND"),
        ("RegisterModel", {}, "INVALID_ARGUMENT"),
        ("RegisterModel", {"url": "missing.mar"}, "NOT_FOUND"),
        ("RegisterModel", {"url": "echo.mar"}, "ALREADY_EXISTS"),
        ("ListModels", {"limit": -1}, "INVALID_ARGUMENT"),
        ("UnregisterModel", {"model_name": "nobody"}, "NOT_FOUND"),
    ],
)
def test_what_grpc_management_refuses_has_a_status(
    server, grpc_channel, method: str, fields: dict[str, Any], code: str
) -> None:
    """That of REST's, in gRPC's terms."""
    with pytest.raises(grpc.RpcError) as error:
        call(grpc_channel(server), method, **fields)
    assert error.value.code().name == code


def test_grpc_management_is_off_unless_asked_for(serve, grpc_channel, tmp_path: Path) -> None:
    """As REST's is."""
    server = serve(write_mar(tmp_path / "echo.mar", {"handler.py": ECHO}))
    with pytest.raises(grpc.RpcError) as error:
        call(grpc_channel(server), "ListModels")
    assert error.value.code().name == "UNIMPLEMENTED"


def test_workflows_are_refused_in_plain_words(manage, client) -> None:
    """They are of TorchServe's own making."""
    reason = "workflows are not supported: call the models one after the other, or a transformer"
    assert manage("POST", "/workflows?url=w.war") == (
        501,
        {"code": 501, "type": "InternalServerException", "message": reason},
    )
    assert client.request("POST", "/wfpredict/w", b"x").json()["message"] == reason


def test_the_server_listens_where_torchserve_would(serve, connect_http1, tmp_path: Path) -> None:
    """Everything that it has is there too."""
    root, port = write_store(tmp_path), free_port()
    (root / "config/config.properties").write_text(f"inference_address=http://127.0.0.1:{port}\nload_models=echo.mar\n")
    server = serve(root, "--torchserve-ports", "true")
    assert server.port != port
    assert connect_http1(server).request("GET", "/ping").status == 200
    server.port = port
    client = connect_http1(server)
    assert client.request("POST", "/predictions/echo", b"x", TEXT).status == 200
    assert client.request("GET", "/metrics").status == 200


def test_the_servers_own_port_is_not_taken_twice(serve, connect_http1, tmp_path: Path) -> None:
    """Where the configuration has the same."""
    root, port = write_store(tmp_path), free_port()
    (root / "config/config.properties").write_text(f"inference_address=http://127.0.0.1:{port}\nload_models=echo.mar\n")
    server = serve(root, "--torchserve-ports", "true", "--port", str(port))
    assert connect_http1(server).request("GET", "/ping").status == 200


def test_what_the_repository_api_has_unloaded_may_be_registered(serve, connect_http1, tmp_path: Path) -> None:
    """It is one model, by either API."""
    options = ("--torchserve-management", "port", "--model-control-mode", "explicit")
    client = connect_http1(serve(write_store(tmp_path), *options))
    assert client.request("POST", "/v2/repository/models/echo/unload").status == 200
    assert client.request("POST", "/models?url=echo.mar").status == 200
    assert client.request("POST", "/v2/repository/models/echo/load").status == 200
    assert client.request("POST", "/predictions/echo", b"x", TEXT).status == 200


def test_a_configuration_without_the_model_api_leaves_reading_and_scaling(
    serve, connect_http1, grpc_channel, tmp_path: Path
) -> None:
    """As TorchServe's enable_model_api."""
    server = serve(write_store(tmp_path, "enable_model_api=false"), "--torchserve-management", "port")
    client = connect_http1(server)
    assert client.request("POST", "/models?url=more.mar").status == 405
    assert client.request("DELETE", "/models/echo").status == 405
    assert client.request("PUT", "/models/echo?min_worker=1&synchronous=true").status == 200
    for method, fields in (("RegisterModel", {"url": "more.mar"}), ("UnregisterModel", {"model_name": "echo"})):
        with pytest.raises(grpc.RpcError) as error:
            call(grpc_channel(server), method, **fields)
        assert error.value.code().name == "PERMISSION_DENIED"


def test_a_server_may_begin_with_no_model(serve, connect_http1, tmp_path: Path) -> None:
    """And get all of them from callers."""
    root = write_store(tmp_path)
    (root / "config/config.properties").write_text("load_models=none\n")
    client = connect_http1(serve(root, "--torchserve-management", "port"))
    assert client.request("GET", "/models").json() == {"models": []}
    assert client.request("POST", "/models?url=more.mar&initial_workers=1").status == 200
    assert client.request("POST", "/predictions/more", b"x", TEXT).status == 200


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ("--host", "0.0.0.0"),
            "torchserve_management = port: host = '0.0.0.0', must be on loopback, such as 127.0.0.1",
        ),
        (("--processes", "2"), "torchserve_management = port, must be off with processes = 2"),
    ],
)
def test_management_is_not_for_everybody(failing_start, tmp_path: Path, options: tuple[str, ...], reason: str) -> None:
    """On the server's own port that port is for this machine, and one process knows what it has."""
    status, log = failing_start(write_store(tmp_path), "--torchserve-management", "port", *options)
    assert (status, reason in log) == (2, True)


def test_management_needs_archives(failing_start) -> None:
    """Of a folder of classes there is nothing to register."""
    models = Path(__file__).parents[1] / "serving/models"
    status, log = failing_start(models / "echo", "--host", "127.0.0.1", "--torchserve-management", "port")
    assert (status, "must be off where there are no archives of TorchServe's" in log) == (2, True)
