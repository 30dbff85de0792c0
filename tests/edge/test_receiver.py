"""The plain receiver of reports: what it takes, and what it does not."""

import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from edge_bundles import NOW
from torpor.edge.receiver import Receiver
from torpor.edge.reports import STRUCTURED, read, written
from torpor.edge.rollout import Member

REPORT = written(Member("n", {}), "s", "healthy", NOW, version="2", index="i", reason="", text="").encode()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with Receiver(("127.0.0.1", 0), tmp_path / "reports.jsonl", 2000, lambda: NOW) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def post(receiver: Receiver, body: bytes, kind: str = STRUCTURED, **headers: str) -> int:
    connection = HTTPConnection("127.0.0.1", receiver.server_port, timeout=20)
    connection.request("POST", "/", body, {"Content-Type": kind} | {n.replace("_", "-"): v for n, v in headers.items()})
    status = connection.getresponse().status
    connection.close()
    return status


def test_a_report_is_a_line_of_the_file_until_that_is_full(receiver: Receiver, tmp_path: Path) -> None:
    """Each once, however often it comes."""
    statuses = [post(receiver, REPORT) for _ in range(8)]
    assert statuses[0] == 204
    assert statuses[-1] == 507
    assert [(report.node, report.version) for report in read(tmp_path / "reports.jsonl")] == [("n", "2")]


def test_a_batch_and_a_binary_event_are_taken_too(receiver: Receiver, tmp_path: Path) -> None:
    assert post(receiver, b"[" + REPORT + b"]", "application/cloudevents-batch+json") == 204
    binary = {"ce_specversion": "1.0", "ce_id": "1", "ce_source": "/a", "ce_type": "other"}
    assert post(receiver, b"{}", "application/json", **binary) == 204
    assert len((tmp_path / "reports.jsonl").read_bytes().splitlines()) == 2
    assert len(read(tmp_path / "reports.jsonl")) == 1


def test_an_event_that_breaks_off_is_not_taken(receiver: Receiver, tmp_path: Path) -> None:
    """Half of a binary one's data would look like the whole."""
    head = "POST / HTTP/1.1\r\nHost: x\r\nce-specversion: 1.0\r\nce-id: 1\r\nce-source: /a\r\nce-type: t\r\n"
    with socket.create_connection(("127.0.0.1", receiver.server_port), timeout=20) as connection:
        connection.sendall(f"{head}Content-Type: text/plain\r\nContent-Length: 10\r\n\r\nhalf".encode())
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1000) == b""
    assert (tmp_path / "reports.jsonl").read_bytes() == b""


def test_a_disk_that_takes_nothing_is_said_and_may_take_it_later(receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "reports.jsonl").unlink()
    assert post(receiver, REPORT) == 503
    (tmp_path / "reports.jsonl").touch()
    assert post(receiver, REPORT) == 204


@pytest.mark.parametrize(
    ("body", "kind", "headers", "status"),
    [
        (b"{}", STRUCTURED, {}, 400),
        (b"", "text/plain", {}, 400),
        (b"{}", "application/cloudevents+avro", {}, 415),
        (b"x" * 65_537, STRUCTURED, {}, 413),
        (b"", STRUCTURED, {"Content_Length": "x"}, 411),
    ],
)
def test_what_is_no_event_is_refused(
    receiver: Receiver, tmp_path: Path, body: bytes, kind: str, headers: dict[str, str], status: int
) -> None:
    assert post(receiver, body, kind, **headers) == status
    assert (tmp_path / "reports.jsonl").read_bytes() == b""
