"""The application in the test's own process, both protocols, over a model that answers when and as the test likes."""

import asyncio
import gzip
import itertools
import json
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import hpack
import numpy as np
import pytest
from connection_bench import Bench
from hyperframe.frame import DataFrame, HeadersFrame, RstStreamFrame
from torpor.predictors.errors import DeadlineExceeded, NotFound
from torpor.predictors.protocol.messages import message
from torpor.predictors.serving.app import App
from torpor.predictors.serving.data_plane import DataPlane, Served
from torpor.predictors.serving.exchange import Exchange, Fields, Head
from torpor.predictors.serving.http2 import Http2
from torpor.predictors.serving.http2_fields import encode_field
from torpor.predictors.serving.repository import Repository
from torpor.predictors.serving.request_options import read_options
from torpor.predictors.signature import Signature, TensorSpec

SERVICE = "/inference.GRPCInferenceService"
WATCH = "/grpc.health.v1.Health/Watch"
REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
ROWS = b'{"instances": [[1], [2, 3]]}'
"""Of two lengths: two requests, which are answered together."""

EVENT = {b"ce-specversion": b"1.0", b"ce-id": b"1", b"ce-source": b"/s", b"ce-type": b"t"}


class Model(Served):
    """Keeps what it is asked. fails: what `start` raises."""

    name, version, measured = "m", "1", ()
    is_ready = True

    def __init__(self) -> None:
        self.signature = Signature(("x",), {"x": TensorSpec.parse("x", "float32[rows, n]")})
        self.asked: list[SimpleNamespace] = []
        self.cancelled: list[int] = []
        self.fails: Exception | None = None

    def start(self, request: Any, headers: Any, timeout_s: float | None, answer: Callable[[Any], None]) -> int:
        if self.fails is not None:
            raise self.fails
        self.asked.append(SimpleNamespace(request=request, headers=headers, timeout_s=timeout_s, answer=answer))
        return len(self.asked)

    def cancel(self, started: int) -> None:
        self.cancelled.append(started)

    def check_room(self) -> None:
        pass


class Catalog:
    """Has the model `m`, and one that is not served. changes: what was to be loaded or unloaded in all processes."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, bool]] = []

    def names(self) -> list[str]:
        return ["m", "other"]

    def model(self, name: str) -> Any:
        raise NotFound(name)

    async def change(self, name: str, is_loaded: bool) -> None:
        self.changes.append((name, is_loaded))


class Answered(Exchange):
    """Keeps its answer."""

    __slots__ = ("body_sent", "fields", "status")

    def respond(self, status: int, body: bytes, fields: Fields = ()) -> None:
        self.status, self.body_sent, self.fields = status, body, dict(fields)

    def json(self) -> Any:
        return json.loads(self.body_sent)


class Site:
    """An application that serves one model."""

    def __init__(self, open_receiver: Any = None) -> None:
        self.data_plane = DataPlane("0")
        self.data_plane.is_ready = True
        self.data_plane.publish("m", [model := Model()])
        self.model = model
        self.catalog = Catalog()
        repository = Repository(self.catalog, self.data_plane, may_change=True)
        repository.everybody = self.catalog
        self.app = App(self.data_plane, repository, 1 << 20, 1 << 20, open_receiver=open_receiver)

    @property
    def counted(self) -> dict[tuple[str, str], int]:
        return self.data_plane.metrics.requests

    def ask(self, method: str, path: str, body: bytes = b"", headers: dict[bytes, bytes] | None = None) -> Answered:
        """Over REST."""
        headers = headers or {}
        exchange = Answered(Head(method, path, headers, len(body), options=read_options(headers)))
        exchange.body = body
        if self.app.open(exchange):
            self.app.answer(exchange)
        return exchange


class Caller:
    """A caller by gRPC, on a connection without a socket."""

    def __init__(self, at: Bench) -> None:
        self._at = at
        self._decoder = hpack.Decoder()
        self._streams = itertools.count(1, 2)
        at.sent()

    def call(self, path: str, *messages: bytes, ends: bool = True, is_compressed: bool = False, **fields: str) -> int:
        """Send the messages; the call's stream."""
        stream = next(self._streams)
        fields = {"te": "trailers", "content-type": "application/grpc"} | fields
        block = self._at.post(stream, path.encode()).data
        block += b"".join(encode_field(k.replace("_", "-").encode(), v.encode()) for k, v in fields.items())
        data = b"".join(bytes((is_compressed,)) + len(m).to_bytes(4, "big") + m for m in messages)
        self._say(
            HeadersFrame(stream, block, flags=["END_HEADERS"]),
            *(DataFrame(stream, data[n : n + (1 << 14)]) for n in range(0, len(data), 1 << 14)),
            *([DataFrame(stream, flags=["END_STREAM"])] if ends else []),
        )
        return stream

    def leave(self, stream: int) -> None:
        self._say(RstStreamFrame(stream, 8))

    def came(self) -> tuple[bytes, dict[str, str]]:
        """The frames of messages and the fields that were sent since the last look."""
        data, fields = b"", {}
        for _ in range(10):  # whatever is due in the loop
            for frame in self._at.sent():
                if isinstance(frame, HeadersFrame):
                    fields |= dict(self._decoder.decode(frame.data))
                elif isinstance(frame, DataFrame):
                    data += frame.data
        return data, fields

    def tasks(self) -> int:
        """How many run."""
        self.came()
        return len(asyncio.all_tasks(self._at.server.loop))

    def do(self, work: Any) -> None:
        self._at.server.loop.run_until_complete(work)

    def _say(self, *frames: Any) -> None:
        async def say() -> None:
            self._at.frames(*frames)

        self.do(say())


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def caller(bench, site: Site) -> Caller:
    return Caller(bench(Http2, site.app))


def infer(**fields: object) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "contents": {"fp32_contents": [1]}}
    return message("inference.ModelInferRequest")(model_name="m", inputs=[tensor], **fields).SerializeToString()


def asked(method: str, **fields: object) -> bytes:
    return message(f"inference.{method}Request")(**fields).SerializeToString()


def answer(method: str, data: bytes) -> Any:
    return message(f"inference.{method}Response").FromString(data[5:])


@pytest.mark.parametrize(("server", "model"), [(True, True), (True, False), (False, True)])
def test_a_model_is_ready_if_its_server_is_too(site: Site, caller: Caller, server: bool, model: bool) -> None:
    """By every protocol."""
    site.data_plane.is_ready, site.model.is_ready = server, model
    ready = server and model
    for path in ("/v1/models/m", "/v2/models/m/ready"):
        reply = site.ask("GET", path)
        assert (reply.status, reply.json()) == (200 if ready else 503, {"name": "m", "ready": ready})
    caller.call(f"{SERVICE}/ModelReady", asked("ModelReady", name="m"))
    assert answer("ModelReady", caller.came()[0]).ready is ready
    caller.call(f"{SERVICE}/ServerReady", b"")
    assert answer("ServerReady", caller.came()[0]).ready is server


def test_an_error_that_nobody_foresaw_is_in_the_log_alone(site: Site, caller: Caller, caplog) -> None:
    """With its traceback; its caller learns that there was one."""
    site.model.fails = RuntimeError("secret")
    text = "internal error; the server's log has the details"
    reply = site.ask("POST", "/v1/models/m:predict", b'{"instances": [[1]]}')
    assert (reply.status, reply.json()) == (500, {"error": text})
    caller.call(f"{SERVICE}/ModelInfer", infer())
    _, fields = caller.came()
    assert (fields["grpc-status"], fields["grpc-message"]) == ("13", text)
    site.data_plane.versions = None  # type: ignore[method-assign, assignment]
    caller.call(WATCH, message("grpc.health.v1.HealthCheckRequest")(service="m").SerializeToString())
    _, fields = caller.came()
    assert (fields["grpc-status"], fields["grpc-message"]) == ("13", text)
    logged = [(record.getMessage(), record.exc_info[0]) for record in caplog.records if record.exc_info]
    assert logged == [
        ("POST /v1/models/m:predict failed", RuntimeError),
        (f"POST {SERVICE}/ModelInfer failed", RuntimeError),
        (f"POST {WATCH} failed", TypeError),
    ]
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


def test_rows_of_several_lengths_are_one_request(site: Site) -> None:
    """Counted once, and answered as it is where no coding is accepted, however well it would shrink."""
    reply = site.ask("POST", "/v1/models/m:predict", ROWS)
    for asked_ in site.model.asked:
        asked_.answer({"y": np.ones((1, 2000), "<f4")})
    assert (reply.status, reply.json()) == (200, {"predictions": [[1.0] * 2000] * 2})
    assert b"content-encoding" not in reply.fields
    assert site.counted == {("rest", "200"): 1}


@pytest.mark.parametrize(
    ("result", "status"),
    [(DeadlineExceeded("late"), 504), ({"y": np.full((1, 1), np.nan, "<f4")}, 500)],
    ids=["fails", "nan"],
)
def test_a_row_that_fails_is_the_answer_to_all(site: Site, result: Any, status: int) -> None:
    """Be it the row's error, or what the model gave and JSON cannot hold."""
    reply = site.ask("POST", "/v1/models/m:predict", ROWS)
    site.model.asked[0].answer({"y": np.ones((1, 1), "<f4")})
    site.model.asked[1].answer(result)
    assert reply.status == status
    assert site.counted == {("rest", str(status)): 1}


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a request's head to the beginning of its inference three seconds pass."""
    ticks = itertools.count(100.0, 3.0)
    monkeypatch.setattr("torpor.predictors.serving.exchange.monotonic", lambda: next(ticks))


def test_a_callers_time_begins_with_its_head(site: Site, caller: Caller, ticking: None) -> None:
    """By every protocol: what its body took to come, or to be inflated, is over."""
    headers = {b"grpc-timeout": b"10S"}
    for path, body in (("/v1/models/m:predict", b'{"instances": [[1]]}'), ("/v1/models/m:predict", ROWS)):
        site.ask("POST", path, body, headers)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}
    site.ask("POST", "/v2/models/m/infer", json.dumps({"inputs": [tensor]}).encode(), headers)
    caller.call(f"{SERVICE}/ModelInfer", infer(), grpc_timeout="10S")
    assert [asked.timeout_s for asked in site.model.asked] == [7.0] * 5


def test_a_callers_time_begins_with_its_head_at_torchserves_paths_too(
    site: Site, caller: Caller, ticking: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over HTTP and gRPC."""
    times: list[float | None] = []
    monkeypatch.setattr(site.model, "takes_calls", True)
    monkeypatch.setattr(site.model, "call", lambda call, timeout_s, answer: times.append(timeout_s))
    site.ask("POST", "/predictions/m", b"", {b"grpc-timeout": b"10S"})
    request = message("org.pytorch.serve.grpc.inference.PredictionsRequest")(model_name="m")
    path = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
    caller.call(path, request.SerializeToString(), grpc_timeout="10S")
    assert times == [7.0, 7.0]


def test_each_of_several_rows_has_the_requests_headers_and_time(site: Site, ticking: None) -> None:
    """The headers where the model wants them."""
    headers = {b"name": b"value", b"grpc-timeout": b"5S"}
    site.ask("POST", "/v1/models/m:predict", ROWS, headers)
    site.model.signature.wants = "request"
    site.ask("POST", "/v1/models/m:predict", ROWS, headers)
    assert [a.timeout_s for a in site.model.asked] == [2.0] * 4
    assert [a.headers for a in site.model.asked] == [None] * 2 + [{"name": "value", "grpc-timeout": "5S"}] * 2


def test_who_leaves_takes_all_rows_along(site: Site, caller: Caller) -> None:
    """Over REST those of several lengths, and over gRPC."""
    reply = site.ask("POST", "/v1/models/m:predict", ROWS)
    assert reply.on_leave is not None
    reply.on_leave()
    assert site.model.cancelled == [1, 2]
    caller.leave(caller.call(f"{SERVICE}/ModelInfer", infer()))
    assert site.model.cancelled == [1, 2, 3]


def test_events_are_requests_like_any_other_where_nothing_receives_them(site: Site) -> None:
    """To a model's path; `/` is nobody's then."""
    site.ask("POST", "/v1/models/m:predict", b'{"instances": [[1]]}', EVENT)
    assert len(site.model.asked) == 1
    assert site.ask("POST", "/", b"", EVENT).status == 405


def test_events_are_received_at_the_root_and_at_inferences() -> None:
    """No other path takes one."""

    class Receiver:
        def handler(self, model: Served | None, version: str = "") -> Callable[[Exchange], None]:
            return lambda exchange: exchange.respond(202, b"")

    site = Site(lambda fail: Receiver())
    paths = ("/", "/v1/models/m:predict", "/nowhere")
    assert [site.ask("POST", path, b"", EVENT).status for path in paths] == [202, 202, 404]


def test_a_pinned_version_changes_nothing_elsewhere(site: Site) -> None:
    """The header of a request that is no inference is none of ours."""
    pinned = {b"torpor-model-version": b"1"}
    assert site.ask("POST", "/nowhere", b"", pinned).status == 404
    assert site.ask("POST", "/v2/repository/index", b"", pinned).status == 200


def test_spellings_of_a_path_do_not_fill_the_memory(site: Site) -> None:
    """A caller has as many as it likes: the first 1024 are looked up once, the others each time."""
    looked_up: list[str] = []
    model = site.data_plane.model
    site.data_plane.model = lambda *names: looked_up.append(names[0]) or model(*names)  # type: ignore[method-assign]
    for _ in range(2):
        for number in range(1030):
            site.ask("POST", "/v2/models/m/infer" + "/" * number, b"{")
    assert 1030 + 6 <= len(looked_up) <= 1030 * 2 - 1000


def test_metrics_have_a_head(site: Site) -> None:
    """As all that is read has."""
    reply = site.ask("HEAD", "/metrics")
    assert reply.status == 200
    assert reply.fields[b"content-type"].startswith(b"text/plain")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "the body is not valid JSON: "),
        (b"[]", "the body is a list, must be an object"),
        (b'{"ready": 1}', "ready = '1', must be true or false"),
    ],
)
def test_a_repository_request_must_be_an_object(site: Site, body: bytes, text: str) -> None:
    """Or empty."""
    reply = site.ask("POST", "/v2/repository/index", body)
    assert reply.status == 400
    assert text in reply.json()["error"]
    assert len(site.ask("POST", "/v2/repository/index").json()) == 2


def test_the_index_tells_all_or_what_is_served(caller: Caller) -> None:
    """Over gRPC."""
    for ready, names in ((False, ["m", "other"]), (True, ["m"])):
        caller.call(f"{SERVICE}/RepositoryIndex", asked("RepositoryIndex", ready=ready))
        assert [entry.name for entry in answer("RepositoryIndex", caller.came()[0]).models] == names


@pytest.mark.parametrize("field", ["repository_or_model_name", "model_name"])
def test_a_model_to_load_is_named_by_either_field(site: Site, caller: Caller, field: str) -> None:
    """Triton's clients fill one of them, KServe's the other."""
    for method, flag in (("RepositoryModelLoad", "isLoaded"), ("RepositoryModelUnload", "isUnloaded")):
        caller.call(f"{SERVICE}/{method}", asked(method, **{field: "m"}))
        response = answer(method, caller.came()[0])
        assert (response.model_name, getattr(response, flag)) == ("m", True)
    assert site.catalog.changes == [("m", True), ("m", False)]


def test_a_load_over_grpc_changes_no_settings(site: Site, caller: Caller) -> None:
    """As over REST."""
    parameters = {"config": {"string_param": "{}"}}
    caller.call(f"{SERVICE}/RepositoryModelLoad", asked("RepositoryModelLoad", model_name="m", parameters=parameters))
    _, fields = caller.came()
    assert fields["grpc-status"] == "3"
    assert "parameters must be empty" in fields["grpc-message"]
    assert not site.catalog.changes


def test_a_server_that_is_not_ready_starts_no_inference(site: Site, caller: Caller) -> None:
    """Nor over gRPC."""
    site.data_plane.is_ready = False
    caller.call(f"{SERVICE}/ModelInfer", infer())
    _, fields = caller.came()
    assert (fields["grpc-status"], fields["grpc-message"]) == ("14", "the server is not ready")
    assert not site.model.asked


def test_calls_are_counted_by_their_status(site: Site, caller: Caller) -> None:
    """An output that protobuf cannot hold is the model's failure, and its caller's answer."""
    strings = np.empty((1,), object)
    strings[0] = 5
    for output in (np.ones((1,), "<f4"), strings):
        caller.call(f"{SERVICE}/ModelInfer", infer())
        site.model.asked[-1].answer({"y": output})
    _, fields = caller.came()
    assert fields["grpc-status"] == "13"
    assert site.counted == {("grpc", "OK"): 1, ("grpc", "INTERNAL"): 1}


@pytest.mark.parametrize(("size", "is_compressed"), [(1, False), (5000, True)])
def test_a_short_answer_by_grpc_is_not_compressed(site: Site, caller: Caller, size: int, is_compressed: bool) -> None:
    """Though its caller accepts it."""
    caller.call(f"{SERVICE}/ModelInfer", infer(), grpc_encoding="gzip", grpc_accept_encoding="gzip")
    site.model.asked[0].answer({"y": np.ones((1, size), "<f4")})
    data, fields = caller.came()
    assert (bool(data[0]), "grpc-encoding" in fields) == (is_compressed, is_compressed)


def test_an_unknown_method_is_named_however_long_it_is(caller: Caller) -> None:
    """Cut, so that the text says what is wrong with it."""
    caller.call("/" + "x" * 600, b"")
    assert caller.came()[1]["grpc-message"] == f"method /{'x' * 199} is unknown"


def test_a_message_that_is_none_is_its_callers_error(caller: Caller) -> None:
    """Of a unary call and of a streaming one."""
    for path, kind in ((f"{SERVICE}/ModelReady", "inference.ModelReady"), (WATCH, "grpc.health.v1.HealthCheck")):
        caller.call(path, b"\xff")
        _, fields = caller.came()
        assert fields["grpc-status"] == "3"
        assert fields["grpc-message"] == f"the message is not a valid {kind}Request"


def test_a_status_text_has_any_characters(caller: Caller) -> None:
    """Percent-encoded where gRPC's own are not printable ASCII."""
    caller.call(f"{SERVICE}/ModelReady", asked("ModelReady", name="100% é"))
    assert caller.came()[1]["grpc-message"] == "model '100%25 %C3%A9' is unknown, must be one of m"


def test_a_watch_tells_changes_alone(site: Site, caller: Caller) -> None:
    """One message for each, none if somebody has looked and found nothing new."""
    caller.call(WATCH, b"")
    assert caller.came()[0]
    for ready, is_told in ((True, False), (False, True), (False, False), (True, True)):
        caller.do(site.data_plane.set_ready(ready))
        assert bool(caller.came()[0]) is is_told


def test_a_watch_ends_with_its_caller(caller: Caller) -> None:
    """Nothing of it stays."""
    before = caller.tasks()
    stream = caller.call(WATCH, b"")
    assert caller.tasks() == before + 1
    caller.leave(stream)
    assert caller.tasks() == before


def test_messages_of_a_streaming_call_have_64_kib_with_their_prefix(caller: Caller) -> None:
    """One byte more is refused before the message has come."""
    request = message("grpc.health.v1.HealthCheckRequest")
    around = len(request(service="x" * 60000).SerializeToString()) - 60000
    largest = request(service="x" * ((64 << 10) - 5 - around)).SerializeToString()
    caller.call(WATCH, largest)
    assert caller.came()[0]
    caller.call(WATCH, largest + b"x", ends=False)
    _, fields = caller.came()
    assert (fields["grpc-status"], fields["grpc-message"]) == ("8", "message = 65537 bytes, must be in [0, 65536]")


def test_messages_of_a_streaming_call_may_be_compressed(caller: Caller) -> None:
    """As those of a unary one."""
    request = message("grpc.reflection.v1.ServerReflectionRequest")(file_by_filename="health.proto")
    caller.call(REFLECT, gzip.compress(request.SerializeToString()), is_compressed=True, grpc_encoding="gzip")
    data, fields = caller.came()
    response = message("grpc.reflection.v1.ServerReflectionResponse").FromString(data[5:])
    assert fields["grpc-status"] == "0"
    assert len(response.file_descriptor_response.file_descriptor_proto) == 1
