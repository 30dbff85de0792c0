"""Events as requests to a real server: in every mode, to `/` and to a model's own paths, repeated, and wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torpor.transformers.events import Event, Mode, decode, encode, encode_batch

MODELS = Path(__file__).parents[1] / "models"
ATTRIBUTES = {
    "specversion": "1.0",
    "id": "1",
    "source": "/callers/me",
    "type": "ask",
    "datacontenttype": "application/json",
}
WORDS = b'{"instances": ["ab", "c"]}'
SAID = [{"said": "195", "total": 195.0}, {"said": "99", "total": 99.0}]


@pytest.fixture(scope="module")
def server(serve: Callable[..., Any]) -> Any:
    """The transformer `words`, which takes text/plain too, with its predictor in its process."""
    return serve(MODELS / "words", "--model-name", "counts", "--predictor", str(MODELS / "counts"))


@pytest.fixture
def post(server: Any, connect: Any) -> Callable[..., Any]:
    """Send a message and give its reply."""
    connection = connect(server)

    def send(headers: dict[bytes, bytes], body: bytes, path: str = "/", **more: str) -> Any:
        text = {name.decode(): value.decode() for name, value in headers.items()}
        return connection.request("POST", path, body, text | more)

    return send


def event(data: bytes | None = WORDS, **attributes: str) -> Event:
    return Event(ATTRIBUTES | attributes, data)


def answered(reply: Any) -> Any:
    """The event, or the events, in a reply."""
    assert reply.status == 200, reply
    return decode({name.encode(): value.encode() for name, value in reply.headers.items()}, reply.body)


@pytest.mark.parametrize("path", ["/", "/v1/models/counts:predict", "/v2/models/counts/infer"])
@pytest.mark.parametrize("mode", [Mode.BINARY, Mode.STRUCTURED])
def test_an_event_is_answered_in_its_mode(post: Any, mode: Mode, path: str) -> None:
    """Its answer is an event with its predictions, whichever path it came by."""
    reply = answered(post(*encode(event(), mode), path))
    assert json.loads(reply.data) == {"predictions": SAID}
    assert (reply.source, reply.type) == ("io.kserve.inference.counts", "io.kserve.inference.response")


def test_a_batch_is_answered_as_a_batch(post: Any) -> None:
    """In its order; of none, none."""
    events = [event(b'{"instances": ["%s"]}' % word, id=str(n)) for n, word in enumerate((b"abc", b"a", b"ab"))]
    replies = answered(post(*encode_batch(events)))
    assert [json.loads(reply.data)["predictions"][0]["said"] for reply in replies] == ["294", "97", "195"]
    assert [reply.attributes["correlationid"] for reply in replies] == ["0", "1", "2"]
    assert post(*encode_batch([])).status == 202


def test_one_wrong_event_fails_its_batch(post: Any) -> None:
    """The sender learns which it is, and sends again what it likes: answers have the same ids then."""
    events = [event(), event(b'{"instances": ["?"]}', id="2"), event(b"{", id="3")]
    assert post(*encode_batch(events[:2])).error().startswith("event 1 of the batch: preprocess raised RuntimeError")
    wrong = [{"specversion": "1.0", "id": "3", "source": "/me", "type": "ask"}]
    refused = post({b"content-type": b"application/cloudevents-batch+json"}, json.dumps(wrong).encode())
    assert (refused.status, refused.error()) == (400, "the event has no data, must have a request for the model")


def test_v2_is_told_by_its_keys(post: Any) -> None:
    """And answered as v2, with the id and the outputs that were asked for."""
    tensor = {"name": "word", "datatype": "BYTES", "shape": [1], "data": ["c"]}
    request = {"inputs": [tensor], "id": "seven", "outputs": [{"name": "said"}]}
    for ordered in (request, {"id": "seven", "parameters": {}, **request}):
        body = json.loads(answered(post(*encode(event(json.dumps(ordered).encode()), Mode.BINARY))).data)
        assert (body["id"], body["outputs"][0]["data"], len(body["outputs"])) == ("seven", ["99"], 1)


@pytest.mark.parametrize("mode", [Mode.BINARY, Mode.STRUCTURED])
def test_binary_tensors_travel_in_every_mode(post: Any, mode: Mode) -> None:
    """The length of the JSON is an extension, both ways."""
    raw = b"".join(len(word).to_bytes(4, "little") + word for word in (b"ab", b"c"))
    tensor = {"name": "word", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps(
        {"inputs": [tensor], "outputs": [{"name": "total", "parameters": {"binary_data": True}}]}
    ).encode()
    asking = event(head + raw, datacontenttype="application/octet-stream", inferenceheadercontentlength=str(len(head)))
    reply = answered(post(*encode(asking, mode)))
    length = int(reply.attributes["inferenceheadercontentlength"])
    assert json.loads(reply.data[:length])["outputs"][0]["shape"] == [2]
    assert reply.data[length:] == bytes.fromhex("000043430000c642")


def test_data_of_a_declared_type_is_a_row(post: Any) -> None:
    """`media_types`: what the transformer takes as it stands."""
    for mode in (Mode.BINARY, Mode.STRUCTURED):
        reply = answered(post(*encode(event(b"ab", datacontenttype="text/plain"), mode)))
        assert json.loads(reply.data) == {"predictions": SAID[:1]}


def test_every_attribute_of_an_answer_follows_from_its_request(post: Any) -> None:
    """The same event gives the same answer; who asks otherwise, gets another id. A broker's own attributes stay behind."""
    asked = event(
        time="2026-01-01T00:00:00Z", subject="s", traceparent="00-x", tenant="t", knativearrivaltime="now", sequence="7"
    )
    first, second = (answered(post(*encode(asked, mode))) for mode in (Mode.BINARY, Mode.STRUCTURED))
    assert dict(first.attributes) == dict(second.attributes)
    assert {name: first.attributes.get(name) for name in ("time", "subject", "traceparent", "tenant")} == {
        "time": "2026-01-01T00:00:00Z", "subject": "s", "traceparent": "00-x", "tenant": "t",
    }  # fmt: skip
    assert not {"knativearrivaltime", "sequence"} & first.attributes.keys()
    others = [event(id="2"), event(source="/callers/you"), event(type="order")]
    ids = {answered(post(*encode(other, Mode.BINARY))).id for other in (asked, *others)}
    assert len(ids) == 4


def test_an_answer_that_comes_back_is_dropped(post: Any) -> None:
    """An unfiltered trigger sends answers to whoever gave them: without this the model would answer for ever."""
    reply = answered(post(*encode(event(), Mode.BINARY)))
    again = post(*encode(reply, Mode.BINARY))
    assert (again.status, again.body) == (202, b"")


@pytest.mark.parametrize(
    ("changes", "data", "status", "text"),
    [
        pytest.param({}, None, 400, "the event has no data", id="nothing"),
        pytest.param({}, b"[1]", 400, "must be an object with instances (v1) or inputs (v2)", id="no request"),
        pytest.param({}, b"{", 400, "the event's data is not JSON", id="no JSON"),
        pytest.param({}, b'{"instances": [""]}', 400, "word = '', must have a letter", id="refused by preprocess"),
        pytest.param({"datacontenttype": "image/png"}, b"x", 415, "datacontenttype = 'image/png', must be application/json, "
                     "application/octet-stream with Inference-Header-Content-Length, text/plain", id="unknown type"),
        pytest.param({"datacontenttype": "application/octet-stream", "inferenceheadercontentlength": "-1"}, b"x", 400,
                     "Inference-Header-Content-Length = '-1', must be an integer", id="bad length"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_final(
    post: Any, changes: dict[str, str], data: bytes, status: int, text: str
) -> None:
    """A broker sends it to the dead letters at once, and the reason is short enough to go with it."""
    refused = post(*encode(event(data, **changes), Mode.BINARY))
    assert refused.status == status
    assert text in refused.error()


def test_what_may_succeed_later_is_delivered_again(post: Any) -> None:
    """A status that a broker retries."""
    assert post(*encode(event(b'{"instances": ["?"]}'), Mode.BINARY)).status == 500


def test_an_event_that_lacks_an_attribute_is_no_plain_request(post: Any) -> None:
    """One ce- header makes it an event; a plain request to `/` is no event."""
    assert (
        post({b"ce-id": b"1", b"content-type": b"application/json"}, WORDS).error()
        == "attribute specversion is missing"
    )
    assert post({b"content-type": b"application/json"}, WORDS).status == 405


def test_several_models_have_no_common_entrance(start: Any, connect_http1: Any, tmp_path: Path) -> None:
    """`POST /` would have to guess; their own paths answer."""
    for name in ("one", "two"):
        (tmp_path / name).symlink_to(MODELS / "counts")
    connection = connect_http1(start(tmp_path))
    headers, _ = encode(event(), Mode.BINARY)
    text = {name.decode(): value.decode() for name, value in headers.items()}
    refused = connection.request("POST", "/", WORDS, text)
    assert refused.status == 404
    assert refused.error().endswith("must be POST /v1/models/NAME:predict of one, two")
    body = b'{"instances": [[1, 2]]}'
    assert (
        connection.request("POST", "/v1/models/two:predict", body, text).headers["ce-source"]
        == "io.kserve.inference.two"
    )


def test_names_of_answers_are_settings(start: Any, connect_http1: Any) -> None:
    """By KServe's variables too."""
    server = start(MODELS / "counts", "--event-source", "/counts", CE_TYPE="counted")
    headers, body = encode(event(b'{"instances": [[1, 2]]}'), Mode.BINARY)
    reply = connect_http1(server).request("POST", "/", body, {k.decode(): v.decode() for k, v in headers.items()})
    assert (reply.headers["ce-source"], reply.headers["ce-type"]) == ("/counts", "counted")
