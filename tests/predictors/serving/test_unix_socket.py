"""A Unix socket beside the port: who may reach it, what becomes of its file, and what is refused."""

import http.client
import os
import socket
import stat
from pathlib import Path

import pytest
from torpor.predictors.serving.unix_socket import FileOfSocket, bound_unix_socket
from torpor.predictors.settings import SettingError, resolve

ECHO = Path(__file__).parent / "models" / "echo"


def test_both_are_served_and_the_file_ends_with_the_server(start, tmp_path: Path) -> None:
    """For owner and group, and for nobody else."""
    path = tmp_path / "torpor.sock"
    server = start("echo", "--unix-socket", str(path))
    assert f"on unix:{path} and 127.0.0.1:{server.port}" in "".join(server.log)
    status = os.stat(path)
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o660
    for connection in (http.client.HTTPConnection("127.0.0.1", server.port), http.client.HTTPConnection("localhost")):
        if connection.host == "localhost":
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(path))
        connection.request("GET", "/v2/models/echo/ready")
        assert connection.getresponse().read() == b'{"name":"echo","ready":true}'
        connection.close()
    assert server.stop() == 0
    assert not path.exists()


def test_the_file_of_a_server_that_was_killed_is_replaced(start, tmp_path: Path) -> None:
    """Nobody listens behind it any more."""
    path = tmp_path / "torpor.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    start("echo", "--unix-socket", str(path))
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))


@pytest.mark.parametrize("there", ["server", "file", "no folder"])
def test_what_is_somebody_elses_is_left_alone(failing_start, tmp_path: Path, there: str) -> None:
    """The start ends, and says which path and why."""
    path = tmp_path / "torpor.sock"
    with socket.socket(socket.AF_UNIX) as other:
        if there == "server":
            other.bind(str(path))
            other.listen()
        elif there == "file":
            path.write_text("precious")
        else:
            path = tmp_path / "none" / "torpor.sock"
        status, log = failing_start(ECHO, "--unix-socket", str(path))
        assert status == 1
        text = {
            "server": "another server listens on it",
            "file": "there is a file that is no socket",
            "no folder": "No such",
        }
        assert "unix_socket: " in log
        assert text[there] in log
        assert str(path) in log
        assert path.exists() == (there != "no folder")
    if there == "file":
        assert path.read_text() == "precious"


def test_a_full_backlog_is_a_server_too(tmp_path: Path) -> None:
    """It listens, though it takes nobody just now."""
    path = str(tmp_path / "full.sock")
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(path)
        busy.listen(0)
        first.connect(path)
        with pytest.raises(OSError, match="another server listens on it"):
            bound_unix_socket(path)


def test_a_successors_file_is_not_removed(tmp_path: Path) -> None:
    """A server that ends late must not cut off the one that took its place."""
    path = tmp_path / "torpor.sock"
    listener, file = bound_unix_socket(str(path))
    path.rename(tmp_path / "moved")  # so that its inode cannot be used again
    successor, _ = bound_unix_socket(str(path))
    file.remove()
    assert path.exists()
    FileOfSocket(str(path)).remove()
    assert not path.exists()
    file.remove()
    listener.close()
    successor.close()


def test_an_inode_of_another_file_system_is_another_file(tmp_path: Path, monkeypatch) -> None:
    """As where a volume was mounted over the path: numbers of inodes are each file system's own."""
    path = tmp_path / "torpor.sock"
    listener, file = bound_unix_socket(str(path))
    there = os.stat(path)
    elsewhere = os.stat_result((*there[:2], there.st_dev + 1, *there[3:]))
    with monkeypatch.context() as mounted:
        mounted.setattr(os, "stat", lambda *_: elsewhere)
        file.remove()
    assert path.exists()
    listener.close()


def test_a_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    """The kernel has 108 bytes for it."""
    with pytest.raises(OSError, match="too long: .*" + "x" * 100):
        bound_unix_socket(str(tmp_path / ("x" * 120)))


def test_several_processes_have_no_unix_socket() -> None:
    """Their connections are handed out by a supervisor that owns one port."""
    with pytest.raises(SettingError, match="unix_socket = '/s', must be left out with processes = 2"):
        resolve({"unix_socket": "/s", "processes": 2}, {}, {})
