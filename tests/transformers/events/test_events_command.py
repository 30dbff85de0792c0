"""`torpor events send | tail | replay`, and a receiver's sink: against a real broker, a real model and plain HTTP."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torpor.transformers.events import Event

TORPOR = Path(sys.executable).with_name("torpor")
MODELS = Path(__file__).parents[1] / "models"
RESPONSE = "io.kserve.inference.response"


def torpor(*arguments: object, stdin: bytes = b"") -> tuple[int, list[Any], str]:
    """Run `torpor events`: its status, what it printed as JSON lines, and its standard error."""
    done = subprocess.run([TORPOR, "events", *map(str, arguments)], input=stdin, capture_output=True, timeout=60)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()


@pytest.fixture(scope="module")
def model(serve: Any) -> str:
    server = serve(MODELS / "words", "--model-name", "counts", "--predictor", str(MODELS / "counts"))
    return f"http://{server.address}/"


@pytest.mark.parametrize("mode", ["binary", "structured", "batched"])
def test_send_prints_the_reply(model: str, mode: str) -> None:
    """One JSON object, whichever way the event went."""
    status, (reply,), said = torpor(
        "send", model, "--type", "ask", "--source", "/me", "--id", "7", "--data", '{"instances": ["ab"]}', "--mode", mode,
        "--extension", "subject=s",
    )  # fmt: skip
    assert (status, said) == (0, "")
    assert (reply["type"], reply["correlationid"], reply["subject"]) == (RESPONSE, "7", "s")
    assert reply["data"] == {"predictions": [{"said": "195", "total": 195.0}]}


def test_send_takes_data_from_files(model: str, tmp_path: Path) -> None:
    """Or from standard input; several get ids of their own."""
    file = tmp_path / "word"
    file.write_bytes(b"ab")
    more = ("--content-type", "text/plain")
    status, replies, _ = torpor("send", model, "--data-file", file, "--count", 3, "--id", "x", *more)
    assert (status, sorted(r["correlationid"] for r in replies)) == (0, ["x-1", "x-2", "x-3"])
    status, (reply,), _ = torpor("send", model, "--data-file", "-", *more, stdin=b"c")
    assert reply["data"]["predictions"][0]["said"] == "99"


def test_send_says_what_went_wrong(model: str, tmp_path: Path) -> None:
    """Status 1 for the other side, 2 for an argument; the reason in one line."""
    status, replies, said = torpor("send", model, "--data", "{")
    assert (status, replies) == (1, [])
    assert said.startswith("torpor events: 400: ")
    status, _, said = torpor("send", "http://127.0.0.1:1/", "--data", "{}")
    assert (status, said.startswith("torpor events: http://127.0.0.1:1 cannot be reached: ")) == (1, True)
    for wrong, text in (
        (("send", "there"), "URL = 'there', must be http://"),
        (("send", model, "--extension", "x"), "--extension = 'x', must be NAME=TEXT"),
        (("send", model, "--source", "not a uri"), "attribute source = 'not a uri'"),
        (("send", model, "--data-file", tmp_path / "none"), "--data-file: "),
        (("tail", "--since", "yesterday"), "--since = 'yesterday', must be as 2026"),
        (("replay", model, "--file", tmp_path / "none"), "--file: "),
        (("broker", "--triggers", tmp_path / "none"), "none: "),
    ):
        status, _, said = torpor(*wrong)
        assert (status, text in said) == (2, True), said
    status, _, said = torpor("broker", "--nats", "nats://127.0.0.1:1", "--port", "0")
    assert (status, "no NATS server answers at nats://127.0.0.1:1" in said) == (1, True)


def test_tail_is_a_receiver(run_process: Any, send: Any) -> None:
    """It prints what comes, answers 202, and ends after so many."""
    process = run_process(
        TORPOR, "events", "tail", "--listen", "0", "--count", "2", "--type", "ask", ready=r"listening on .*:(\d+)"
    )
    attributes = {"specversion": "1.0", "source": "/me"}
    for number, event_type in enumerate(("ask", "told", "ask")):
        assert send(int(process.match[1]), Event({**attributes, "id": str(number), "type": event_type})).status == 202
    assert process.process.wait(20) == 0
    assert process.end() == 0
    assert [json.loads(line)["id"] for line in process.out] == ["0", "2"]


def test_replay_sends_dead_letters_again(start_broker: Any, subscribe: Any, polling: Any) -> None:
    """With their ids and without the notes; a broker that has seen them takes them. What dies again is a dead letter again."""
    is_well: list[bool] = []
    patient = subscribe(lambda event: (202 if is_well and event.id != "bad" else 400, {}, b""))
    broker = start_broker(f'[[trigger]]\nname = "t"\nsubscriber = "{patient.url}"\n')
    url = f"http://127.0.0.1:{broker.port}/"
    for one in ("good", "bad"):
        assert torpor("send", url, "--id", one, "--data", "{}")[0] == 0
    polling(lambda: broker.counts().get(("t", "dead")) == 2, broker.counts)
    is_well.append(True)
    command = ("replay", url, "--nats", broker.nats_url)
    status, _, said = torpor(*command, "--delete")
    assert (status, said) == (0, "2 sent again, 0 refused\n")
    polling(lambda: broker.counts().get(("t", "dead")) == 3, broker.counts)
    assert broker.counts()["t", "delivered"] == 1
    assert "knativeerrorcode" not in patient.events[-1].attributes
    tail = ("tail", "--nats", broker.nats_url, "--dead", "--sequence", "1", "--count", "1")
    assert [letter["id"] for letter in torpor(*tail)[1]] == ["bad"]


def test_replay_sends_a_part_of_the_stream_or_a_file(start_broker: Any, subscribe: Any, tmp_path: Path) -> None:
    """By sequence, and as `tail` has printed it."""
    broker = start_broker()
    url = f"http://127.0.0.1:{broker.port}/"
    assert torpor("send", url, "--id", "x", "--count", "5", "--concurrency", "1", "--data", "{}")[0] == 0
    tail = ("tail", "--nats", broker.nats_url, "--since", "2020-01-01T00:00:00Z", "--count", "5")
    events = torpor(*tail)[1]
    assert [event["id"] for event in events] == [f"x-{n}" for n in range(1, 6)]
    listener = subscribe()
    part = ("--stream", "torpor-events", "--sequence", "2", "--until-sequence", "3")
    assert torpor("replay", listener.url, "--nats", broker.nats_url, *part)[0] == 0
    assert {e.id for e in listener.events} == {"x-2", "x-3"}
    file = tmp_path / "events.jsonl"
    file.write_text("\n".join(map(json.dumps, events[3:])) + "\n\n")
    assert torpor("replay", listener.url, "--file", file)[2] == "2 sent again, 0 refused\n"
    assert {e.id for e in listener.events} == {"x-2", "x-3", "x-4", "x-5"}
    file.write_text("{}\n")
    assert torpor("replay", listener.url, "--file", file)[0] == 2


def test_answers_go_to_the_sink(start: Any, subscribe: Any, send: Any) -> None:
    """K_SINK and K_CE_OVERRIDES as a SinkBinding sets them: the sender gets 202 when the sink has the answer."""
    sink = subscribe()
    server = start(MODELS / "counts", K_SINK=sink.url, K_CE_OVERRIDES='{"extensions":{"site":"edge1"}}')
    event = Event(
        {"specversion": "1.0", "id": "1", "source": "/me", "type": "ask", "datacontenttype": "application/json"},
        b'{"instances": [[1, 2]]}',
    )
    response = send(server.port, event)
    assert (response.status, response.content) == (202, b"")
    (answer,) = sink.events
    assert (answer.type, answer.attributes["correlationid"], answer.attributes["site"]) == (RESPONSE, "1", "edge1")


def test_an_answer_that_the_sink_refuses_is_a_dead_letter(start: Any, subscribe: Any, send: Any) -> None:
    """Or the sender's again, where there is no place for dead letters."""
    refusing, dead = subscribe(lambda event: (400, {}, b"no")), subscribe()
    event = Event(
        {"specversion": "1.0", "id": "1", "source": "/me", "type": "ask", "datacontenttype": "application/json"},
        b'{"instances": [[1, 2]]}',
    )
    server = start(MODELS / "counts", "--sink", refusing.url, "--dead-letter-sink", dead.url)
    assert send(server.port, event).status == 202
    assert dead.events[0].attributes["knativeerrorcode"] == "400"
    without = start(MODELS / "counts", "--sink", refusing.url)
    refused = send(without.port, event)
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert "the sink did not take the answer: 400 no" in json.loads(refused.content)["error"]


def test_a_wrong_sink_is_refused_at_the_start(failing_start: Any) -> None:
    """With what it must be."""
    status, said = failing_start(MODELS / "counts", "--sink", "there")
    assert (status, "sink = 'there', must be http://" in said) == (1, True)
