"""One run of a component's process: started, asked until it answers, its lines passed on, ended."""

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from .container import Process

_PROBE_S = 0.05
"""As often as Knative's queue-proxy asks while a container starts."""
_PROBE_TIMEOUT_S = 1.0
_LINE_BYTES = 1 << 16
_FLAGS, _PF_EXITING = 6, 4
"""The field behind the name in /proc/PID/stat, and the kernel's flag in it (include/linux/sched.h)."""


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Instance:
    """probe: the path of an HTTP readiness probe, "" for TCP. on_line: gets each line that it writes."""

    def __init__(self, process: Process, port: int, probe: str, on_line: Callable[[str], None]) -> None:
        self.port = port
        self._started = process
        self._probe = probe
        self._on_line = on_line
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def is_dying(self) -> bool:
        """Whether the kernel has begun to take it apart: before its first connection closes, long before it is known."""
        if self._process is None or self._process.returncode is not None:
            return True
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return sys.platform == "linux"
        return bool(int(fields[_FLAGS]) & _PF_EXITING)

    async def start(self) -> None:
        """Raises OSError if there is no such command."""
        limit = self._started.memory_bytes
        self._process = await asyncio.create_subprocess_exec(
            *self._started.command, env=dict(self._started.environment), stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, limit=_LINE_BYTES,
            preexec_fn=lambda: prepare(limit),
        )  # fmt: skip

    async def ended(self) -> int:
        """Pass its lines on until it has ended; its exit status, negative for a signal."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readuntil(b"\n")
            except asyncio.IncompleteReadError as rest:
                if rest.partial:
                    self._on_line(rest.partial.decode("utf-8", "replace"))
                break
            except asyncio.LimitOverrunError as error:
                line = await process.stdout.read(error.consumed or _LINE_BYTES)
            self._on_line(line.decode("utf-8", "replace").rstrip("\n"))
        return await process.wait()

    async def gone(self) -> None:
        """Return when there is no process any more."""
        if self._process is not None:
            await self._process.wait()

    async def ready(self) -> None:
        """Return when it answers its probe."""
        while not await self._answers():  # noqa: ASYNC110  (the other process can only be asked)
            await asyncio.sleep(_PROBE_S)

    async def _answers(self) -> bool:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    if not self._probe:
                        return True
                    fields = "host: localhost\r\nuser-agent: kube-probe/\r\nconnection: close"
                    writer.write(f"GET {self._probe} HTTP/1.1\r\n{fields}\r\n\r\n".encode())
                    status = (await reader.readline()).split(b" ")[1:2]
                    return status != [] and status[0].isdigit() and 200 <= int(status[0]) < 400
                finally:
                    writer.close()
        return False

    def signal(self, number: int) -> None:
        """To it and all that it has started."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def prepare(memory_bytes: int = 0) -> None:
    """Called in a new process. memory_bytes: its limit, 0 for none.

    Ctrl-C in the terminal is for `torpor up` alone, which ends it; so does its death.
    """
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
