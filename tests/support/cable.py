"""The link between two machines, as a TCP proxy that can be pulled out and plugged in again; and the ends' certificates."""

import contextlib
import socket
import threading
from pathlib import Path

import trustme


class Cable:
    """Leads from its own `port` on 127.0.0.1 to another one there."""

    def __init__(self, target: int, is_plugged: bool = True) -> None:
        self._target = target
        self._is_plugged = is_plugged
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def pull(self) -> None:
        """What is connected ends, and nothing gets through any more."""
        with self._lock:
            self._is_plugged = False
            for one in self._sockets:
                _end(one)

    def plug(self) -> None:
        with self._lock:
            self._is_plugged = True

    def close(self) -> None:
        self.pull()
        _end(self._listener)
        self._listener.close()
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()

    def _start(self, work, *arguments) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._sockets |= {near, far}
                if not self._is_plugged:
                    _end(near)
                    _end(far)
                self._start(self._pump, near, far)
                self._start(self._pump, far, near)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        _end(source)
        _end(sink)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


class Authority:
    """Who makes certificates, each in a folder as a Kubernetes Secret has it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = trustme.CA()

    def certificate(self, *names: str) -> Path:
        folder = self._folder / names[0]
        folder.mkdir(parents=True)
        made = self._authority.issue_cert(*names)
        self._authority.cert_pem.write_to_path(folder / "ca.crt")
        made.private_key_pem.write_to_path(folder / "tls.key")
        for pem in made.cert_chain_pems:
            pem.write_to_path(folder / "tls.crt", append=True)
        return folder
