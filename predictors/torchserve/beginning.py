"""How a worker process begins: by itself, with an end of a socket pair, in an environment of its own.

What it imports takes seconds, so the first one of a server begins before the server has imported the rest of itself: this
module imports little. `Begun` waits in its socket's other end for what it is to load.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from . import frames

_COMMAND = "import sys; from torpor.predictors.torchserve.worker.main import main; sys.exit(main())"


class Begun(NamedTuple):
    """environment: what it was started with. link: this end of the socket."""

    environment: Mapping[str, str]
    link: socket.socket
    process: asyncio.subprocess.Process

    def expect(self, module: str) -> None:
        """Let it import that meanwhile."""
        self.link.sendall(b"".join(frames.pack({"import": module})))

    async def end(self) -> None:
        """Nobody needs it."""
        self.link.close()
        self.process.kill()
        await self.process.wait()


async def begin(environment: Mapping[str, str]) -> Begun:
    """Raises OSError, such as where nobody may have one more process or descriptor."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                # -P: the folder that the server was started in is not where modules are imported from.
                sys.executable, "-P", "-c", _COMMAND, str(theirs.fileno()),
                pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL, env=dict(environment),
            )  # fmt: skip
            return Begun(environment, ours, process)
    except BaseException:
        ours.close()
        raise


def environment_of(workers: int, cores: int, settings: Mapping[str, Any]) -> dict[str, str]:
    """What each of so many workers is started with. settings: torpor's own; cores: that all of them may use."""
    share = settings["threads"] or max(1, cores // max(1, workers))
    said = os.environ.get("OMP_NUM_THREADS", "")
    # Its share of the cores, or fewer if the environment says so.
    threads = min(share, int(said)) if said.isdecimal() and int(said) else share
    return {"PYTHONUNBUFFERED": "1", **os.environ, "OMP_NUM_THREADS": str(threads)}
