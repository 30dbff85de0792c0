"""The broker over a real NATS server: from an event to a model's answer, filters, repeats, tries, dead letters, limits."""

import http.client
import json
import signal
import subprocess
import sys
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from torpor.transformers.events import Event, Mode, encode_batch, json_format

TORPOR = Path(sys.executable).with_name("torpor")
MODELS = Path(__file__).parents[1] / "models"
RESPONSE = "io.kserve.inference.response"


def event(number: int | str = 1, data: bytes | None = b'{"instances": ["ab"]}', **more: str) -> Event:
    attributes = {"specversion": "1.0", "id": str(number), "source": "/me", "type": "ask"}
    return Event({**attributes, "datacontenttype": "application/json", **more}, data)


def trigger(name: str, subscriber: str, wanted: str = "", **more: object) -> str:
    lines = ["[[trigger]]", f'name = "{name}"', f'subscriber = "{subscriber}"', f"filter = {{{wanted}}}"]
    return "\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in more.items())]) + "\n"


def letters(broker: Any, count: int, stream: str = "torpor-dead-letters") -> list[Event]:
    """The first dead letters, as `tail` prints them."""
    command = [TORPOR, "events", "tail", "--nats", broker.nats_url, "--stream", stream, "--sequence", "1"]
    done = subprocess.run([*command, "--count", str(count)], capture_output=True, timeout=30, check=True)
    return [json_format.decode(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def model(serve: Any) -> Any:
    """The transformer `words` with its predictor."""
    return serve(MODELS / "words", "--model-name", "counts", "--predictor", str(MODELS / "counts"))


def test_an_event_is_answered_through_the_broker(start_broker: Any, subscribe: Any, model: Any) -> None:
    """Sender, broker, trigger, model, its answer to the broker again, and from there to whoever wants it."""
    listener = subscribe()
    url = f"http://127.0.0.1:{model.port}/"
    broker = start_broker(trigger("ask", url, 'type = "ask"') + trigger("told", listener.url, f'type = "{RESPONSE}"'))
    for number, mode in enumerate((Mode.BINARY, Mode.STRUCTURED)):
        assert broker.send(event(number), mode).status == 202
    replies = listener.wait_for(2)
    assert {reply.attributes["correlationid"] for reply in replies} == {"0", "1"}
    assert json.loads(replies[0].data) == {"predictions": [{"said": "195", "total": 195.0}]}
    assert "knativebrokerttl" not in replies[0].attributes


def test_a_batch_is_stored_whole(start_broker: Any, subscribe: Any) -> None:
    """Each of its events is one of the broker's."""
    listener = subscribe()
    broker = start_broker(trigger("all", listener.url))
    headers, body = encode_batch([event(n) for n in range(20)])
    connection = http.client.HTTPConnection("127.0.0.1", broker.port, timeout=20)
    connection.request("POST", "/", body, {k.decode(): v.decode() for k, v in headers.items()})
    assert connection.getresponse().status == 202
    connection.close()
    assert {e.id for e in listener.wait_for(20)} == {str(n) for n in range(20)}


def test_an_event_that_comes_again_is_dropped(start_broker: Any, subscribe: Any, polling: Any) -> None:
    """Its sender cannot tell: 202 as the first time. A different type, as KServe's logger sends, is a different event."""
    listener = subscribe()
    broker = start_broker(trigger("all", listener.url))
    assert [broker.send(event()).status for _ in range(3)] == [202] * 3
    assert broker.send(event(type="told")).status == 202
    polling(lambda: broker.counts().get(("all", "delivered")) == 2, broker.counts)
    assert broker.counts() == {("", "stored"): 2, ("", "repeated"): 2, ("all", "delivered"): 2}
    assert sorted(e.type for e in listener.events) == ["ask", "told"]


def test_each_trigger_gets_what_it_wants(start_broker: Any, subscribe: Any) -> None:
    """By type, by another attribute, by both, and everything."""
    wanted = {"asks": 'type = "ask"', "ours": 'tenant = "us"', "both": 'type = "ask", tenant = "us"', "all": ""}
    listeners = {name: subscribe() for name in wanted}
    broker = start_broker("".join(trigger(name, listeners[name].url, wanted[name]) for name in wanted))
    for number, attributes in enumerate(({}, {"type": "a.b*>"}, {"tenant": "us"}, {"type": "x", "tenant": "us"})):
        assert broker.send(event(number, **attributes)).status == 202
    listeners["all"].wait_for(4)
    listeners["ours"].wait_for(2)
    listeners["asks"].wait_for(2)
    listeners["both"].wait_for(1)
    assert {name: sorted(e.id for e in listener.events) for name, listener in listeners.items()} == {
        "asks": ["0", "2"], "ours": ["2", "3"], "both": ["2"], "all": ["0", "1", "2", "3"],
    }  # fmt: skip


def test_a_failing_subscriber_gets_it_again_and_then_it_is_a_dead_letter(start_broker: Any, subscribe: Any) -> None:
    """After the policy's waits, with Knative's attributes and everything that the event had."""
    failing = subscribe(lambda event: (503, {}, b"not now"))
    broker = start_broker(
        trigger("t", failing.url, retry=3, backoff_policy="linear", backoff_delay_s=0.2, dead_letter="letters-of-t")
    )
    assert broker.send(event(subject="s")).status == 202
    (letter,) = letters(broker, 1, "letters-of-t")
    assert [e.id for e in failing.events] == ["1"] * 4
    gaps_s = [b - a for a, b in zip(failing.times_s, failing.times_s[1:], strict=False)]
    assert all(gap_s >= wait_s for gap_s, wait_s in zip(gaps_s, (0.2, 0.4, 0.6), strict=True))
    assert (letter.id, json.loads(letter.data), letter.attributes["subject"]) == ("1", {"instances": ["ab"]}, "s")
    assert letter.attributes["knativeerrordest"] == failing.url
    assert letter.attributes["knativeerrorcode"] == "503"
    assert b64decode(letter.attributes["knativeerrordata"]) == b"not now"
    assert letter.attributes["knativebrokerttl"] == "255"


def test_a_final_answer_is_a_dead_letter_at_once(start_broker: Any, subscribe: Any) -> None:
    """At the address that the trigger names; a real model refuses what is no request."""
    dead = subscribe()
    broker = start_broker(trigger("t", subscribe(lambda event: (400, {}, b"x" * 3000)).url, dead_letter=dead.url))
    assert broker.send(event()).status == 202
    (letter,) = dead.wait_for(1)
    assert letter.attributes["knativeerrorcode"] == "400"
    assert b64decode(letter.attributes["knativeerrordata"]) == b"x" * 768


def test_dead_letters_that_nobody_takes_stay_in_the_stream(start_broker: Any, subscribe: Any) -> None:
    """Their own sink's refusal loses nothing."""
    refusing = subscribe(lambda event: (410, {}, b""))
    broker = start_broker(trigger("t", refusing.url, dead_letter=refusing.url))
    assert broker.send(event()).status == 202
    (letter,) = letters(broker, 1)
    assert letter.attributes["knativeerrorcode"] == "410"
    assert len(refusing.events) == 2


def test_nobody_there_and_nobody_answering_are_noted(start_broker: Any, subscribe: Any) -> None:
    """Refused: 500 with the error. Too slow: 504. A plain answer: 502."""
    import threading

    never = threading.Event()
    slow = subscribe(lambda event: (never.wait(20) and (202, {}, b"")) or (202, {}, b""))
    plain = subscribe(lambda event: (200, {"content-type": "application/json"}, b"{}"))
    common = {"retry": 1, "backoff_delay_s": 0.01}
    broker = start_broker(
        trigger("refused", "http://127.0.0.1:1/", **common)
        + trigger("slow", slow.url, timeout_s=0.2, **common)
        + trigger("plain", plain.url, **common)
    )
    assert broker.send(event()).status == 202
    found = {
        letter.attributes["knativeerrordest"]: letter.attributes["knativeerrorcode"] for letter in letters(broker, 3)
    }
    never.set()
    assert found == {"http://127.0.0.1:1/": "500", slow.url: "504", plain.url: "502"}
    assert (len(slow.events), len(plain.events)) == (2, 2)


def test_a_loop_of_replies_ends(start_broker: Any, subscribe: Any, polling: Any) -> None:
    """An unfiltered trigger that answers each event would go on for ever: after 255 the replies are dropped."""
    numbers = iter(range(10_000))

    def reply(event: Event) -> tuple[int, dict[str, str], bytes]:
        return 200, {"ce-specversion": "1.0", "ce-id": f"r{next(numbers)}", "ce-source": "/s", "ce-type": "more"}, b""

    listener = subscribe(reply)
    broker = start_broker(trigger("t", listener.url))
    assert broker.send(event(knativebrokerttl="5")).status == 202
    polling(lambda: broker.counts().get(("t", "delivered")) == 5, broker.counts)
    polling(lambda: any("of a loop" in line for line in broker.log), lambda: broker.log)
    assert len(listener.events) == 5


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "said"),
    [
        ("POST", "/", {}, 400, "the request is no event"),
        ("POST", "/", {"ce-id": "1"}, 400, "attribute specversion is missing"),
        ("POST", "/", {"content-type": "application/cloudevents+avro"}, 415, "Content-Type"),
        ("POST", "/", {"content-encoding": "gzip", "ce-id": "1"}, 415, "Content-Encoding"),
        ("PUT", "/", {}, 405, "must be POST /"),
        ("POST", "/other", {}, 404, "POST /other is not here"),
    ],
)
def test_what_the_ingress_refuses(
    start_broker: Any, method: str, path: str, headers: dict[str, str], status: int, said: str
) -> None:
    """With a reason, and nothing is stored."""
    broker = start_broker()
    connection = http.client.HTTPConnection("127.0.0.1", broker.port, timeout=20)
    connection.request(method, path, b"x", headers)
    response = connection.getresponse()
    assert (response.status, said in json.loads(response.read())["error"]) == (status, True)
    connection.close()
    assert broker.counts() == {}


def test_an_event_that_is_too_large_is_refused(start_broker: Any, nats: Any) -> None:
    """By the server's own limit, 1 MiB here, of what is stored: base64 makes it a third longer."""
    broker = start_broker("", "--nats", nats.url)
    assert broker.send(event(1, b"[1]" + b" " * 700_000)).status == 202
    refused = broker.send(event(2, b"[1]" + b" " * 800_000))
    assert (refused.status, "must be in [0, 1047552]" in refused.content.decode()) == (413, True)


def test_a_full_stream_refuses_and_loses_nothing(start_broker: Any) -> None:
    """503 with Retry-After; what was taken is still there."""
    broker = start_broker("", "--max-bytes", "200000")
    statuses = []
    while 503 not in statuses:
        refused = broker.send(event(len(statuses), b"1" * 10_000))
        statuses.append(refused.status)
    assert refused.headers["retry-after"] == "1"
    assert "maximum bytes" in json.loads(refused.content)["error"]
    kept = letters(broker, len(statuses) - 1, "torpor-events")
    assert [e.id for e in kept] == [str(n) for n in range(len(statuses) - 1)]


def test_a_full_disk_refuses_and_loses_nothing(start_broker: Any, tmp_path: Path, polling: Any) -> None:
    """A file system of a few megabytes: what got a 202 is there when the server starts again with room."""
    data = tmp_path / "data"
    data.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", data], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        broker = start_broker()
        taken = []
        for number in range(400):
            if (status := broker.send(event(number, b"1" * 20_000)).status) == 202:
                taken.append(str(number))
            else:
                break
        assert (status, len(taken) > 10) == (503, True)
        subprocess.run(["mount", "-o", "remount,size=64m", data], check=True)
        broker.end(signal.SIGTERM)
        after = start_broker()
        assert [e.id for e in letters(after, len(taken), "torpor-events")] == taken
        polling(lambda: after.send(event("again")).status == 202)
        after.end()
    finally:
        subprocess.run(["umount", "-l", data], check=True)


def test_sigterm_finishes_what_is_in_flight(start_broker: Any, subscribe: Any) -> None:
    """The subscriber is not asked twice, and its answer is kept."""
    import threading

    come, go = threading.Event(), threading.Event()

    def respond(event: Event) -> tuple[int, dict[str, str], bytes]:
        come.set()
        assert go.wait(20)
        return 202, {}, b""

    listener = subscribe(respond)
    triggers = trigger("t", listener.url)
    broker = start_broker(triggers)
    assert broker.send(event()).status == 202
    assert come.wait(20)
    broker.process.send_signal(signal.SIGTERM)
    while not any("draining" in line for line in broker.log):
        pass
    go.set()
    assert broker.end() == 0
    after = start_broker(triggers)
    assert after.send(event(2)).status == 202
    listener.wait_for(2)
    assert [e.id for e in listener.events] == ["1", "2"]


def test_decoding_is_not_the_brokers(start_broker: Any, subscribe: Any) -> None:
    """Data arrive as they were sent, byte for byte."""
    listener = subscribe()
    broker = start_broker(trigger("t", listener.url))
    data = b'{ "a":\t1.000, "big": 123456789012345678901234567890 }'
    assert broker.send(event(1, data, subject='ä % " €')).status == 202
    (arrived,) = listener.wait_for(1)
    assert (arrived.data, arrived.attributes["subject"]) == (data, 'ä % " €')
