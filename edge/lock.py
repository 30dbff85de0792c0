"""One at a time: a file that a process holds, and that goes with it however it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .refused import Refused


@contextmanager
def held(path: Path, who: str) -> Iterator[None]:
    """Hold it, or raise Refused where another process does. who: runs in that one. Raises OSError."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused("busy", f"{path.parent}: another {who} runs") from None
        yield
    finally:
        os.close(lock)
