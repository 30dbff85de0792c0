"""A real redis-server on a port of its own, to be killed, stopped and started again."""

import shutil
import signal
import socket
import subprocess
import time

import pytest
from free_ports import free_port

TIMEOUT_S = 20


class RedisServer:
    """Keeps nothing: what is started again is empty."""

    def __init__(self) -> None:
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *options: str) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        end_s = time.monotonic() + TIMEOUT_S
        while not self.ask("PING"):
            assert time.monotonic() < end_s, "redis-server does not start"
            time.sleep(0.01)

    def ask(self, command: str) -> bytes:
        """An answer in the server's protocol, as far as it comes at once; b"" from one that is not there."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S) as connection:
                connection.sendall(command.encode() + b"\r\n")
                return connection.recv(1 << 16)
        except OSError:
            return b""

    def connections(self) -> int:
        """Beside the one that asks."""
        return self.ask("CLIENT LIST").count(b"id=") - 1

    def pause(self) -> None:
        """It takes connections, and answers nobody."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(TIMEOUT_S)


@pytest.fixture
def redis_server():
    """A running one."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is missing; install the Debian package redis-server")
    server = RedisServer()
    server.start()
    yield server
    server.kill()
