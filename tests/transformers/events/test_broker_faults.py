"""Nothing is lost: kill -9 of the NATS server, of the broker and of both while events come, with a model that keeps answers."""

import http.client
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from torpor.transformers.events import Event, Mode, encode

MODELS = Path(__file__).parents[1] / "models"
RESPONSE = "io.kserve.inference.response"
EVENTS = 300


class Sender:
    """A producer that does what the specification asks: it sends an event until it gets 202, with the same id."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.sent = 0
        self.tries = 0
        self._threads = [threading.Thread(target=self._send, args=(first,)) for first in range(4)]
        for thread in self._threads:
            thread.start()

    def _send(self, first: int) -> None:
        for number in range(first, EVENTS, 4):
            while not self._try(number):
                threading.Event().wait(0.05)
            self.sent += 1

    def _try(self, number: int) -> bool:
        self.tries += 1
        data = b'{"instances": ["%s"]}' % (b"abcdefgh"[: 1 + number % 8])
        attributes = {"specversion": "1.0", "id": str(number), "source": "/me", "type": "ask"}
        headers, body = encode(Event({**attributes, "datacontenttype": "application/json"}, data), Mode.BINARY)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request("POST", "/", body, {k.decode(): v.decode() for k, v in headers.items()})
            return connection.getresponse().status == 202
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize(
    "killed", [["server"], ["broker"], ["server", "broker", "server"]], ids=lambda killed: "+".join(killed)
)
def test_a_kill_loses_nothing(
    killed: list[str], start_broker: Any, subscribe: Any, start: Any, nats: Any, polling: Any
) -> None:
    """Each event that got its 202 is answered; each answer that arrives more than once is the same, byte for byte."""
    listener = subscribe()
    model = start(
        MODELS / "words", "--model-name", "counts", "--predictor", str(MODELS / "counts"), "--event-store", nats.url
    )
    triggers = "".join(
        f'[[trigger]]\nname = "{name}"\nsubscriber = "{url}"\nfilter = {{type = "{type_}"}}\nbackoff_policy = "linear"\n'
        "retry = 100\nbackoff_delay_s = 0.05\n"
        for name, url, type_ in (("ask", f"http://127.0.0.1:{model.port}/", "ask"), ("told", listener.url, RESPONSE))
    )
    broker = start_broker(triggers, "--nats", nats.url)
    sender = Sender(broker.port)
    for number, one in enumerate(killed, 1):
        polling(lambda number=number: sender.sent > EVENTS * number // (len(killed) + 2))
        if one == "server":
            nats.kill()
            nats.start()
        else:
            broker.end(signal.SIGKILL)
            broker = start_broker(triggers, "--nats", nats.url, port=broker.port)
    sender.join()
    polling(
        lambda: len({e.attributes["correlationid"] for e in [*listener.events]}) == EVENTS,
        lambda: (len(listener.events), broker.log),
    )
    answers: dict[str, set[tuple[Any, ...]]] = {}
    for event in listener.events:
        kept = {k: v for k, v in event.attributes.items() if not k.startswith("knative")}
        answers.setdefault(event.attributes["correlationid"], set()).add((*sorted(kept.items()), event.data))
    assert all(len(different) == 1 for different in answers.values())


def test_a_brokers_own_server_ends_and_comes_again_with_it(
    start_broker: Any, subscribe: Any, polling: Any, tmp_path: Path
) -> None:
    """A killed server is started again; a killed broker leaves no server behind, and the next one finds the events."""
    listener = subscribe()
    triggers = f'[[trigger]]\nname = "t"\nsubscriber = "{listener.url}"\n'
    broker = start_broker(triggers)
    port = broker.nats_url.rpartition(":")[2]
    event = Event({"specversion": "1.0", "id": "1", "source": "/me", "type": "ask"})
    assert broker.send(event).status == 202
    (server,) = processes_of(tmp_path)
    server.kill()
    polling(lambda: broker.send(Event({**event.attributes, "id": "2"})).status == 202)
    listener.wait_for(2)
    broker.end(signal.SIGKILL)
    polling(lambda: not processes_of(tmp_path))
    after = start_broker(triggers, "--nats-port", port)
    assert after.send(event).status == 202
    assert after.counts()["", "repeated"] == 1


def processes_of(folder: Path) -> list[Any]:
    """NATS servers with their configuration in this test's folder."""
    import os

    class Found:
        def __init__(self, pid: int) -> None:
            self._pid = pid

        def kill(self) -> None:
            os.kill(self._pid, signal.SIGKILL)

    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes()
        except OSError:
            continue
        if b"nats-server" in command and str(folder).encode() in command:
            found.append(Found(int(entry.parent.name)))
    return found


def test_without_its_server_the_broker_says_so(start_broker: Any, nats: Any, polling: Any) -> None:
    """503 with Retry-After, on the ingress and its probe; and it takes events when the server is back."""
    broker = start_broker("", "--nats", nats.url)
    event = Event({"specversion": "1.0", "id": "1", "source": "/me", "type": "ask"})
    nats.kill()
    refused = polling(lambda: (response := broker.send(event)).status == 503 and response)
    assert refused.headers["retry-after"] == "1"
    connection = http.client.HTTPConnection("127.0.0.1", broker.port, timeout=20)
    connection.request("GET", "/readyz")
    assert connection.getresponse().status == 503
    connection.close()
    nats.start()
    polling(lambda: broker.send(event).status == 202)
