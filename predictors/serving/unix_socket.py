"""A Unix socket for callers of the same pod or machine: who may reach it is a matter of its file's mode."""

import errno
import os
import socket
import stat
from contextlib import suppress

MODE = 0o660


class FileOfSocket:
    """The file that a socket is bound to: it stays behind when the socket is closed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._identity = _identity(path)

    def remove(self) -> None:
        """Remove it, unless the path is another server's by now."""
        with suppress(OSError):
            if _identity(self._path) == self._identity:
                os.unlink(self._path)


def bound_unix_socket(path: str) -> tuple[socket.socket, FileOfSocket]:
    """Not listening yet: until then nobody can connect. The file of a server that has ended is replaced. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(path)
        os.chmod(path, MODE)
        return listener, FileOfSocket(path)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror or str(error), path) from None


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _remove_stale(path: str) -> None:
    """Raises OSError if somebody listens on it, or if it is no socket."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.setblocking(False)
            caller.connect(path)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        os.unlink(path)
        return
    except BlockingIOError:  # it listens, and its backlog is full
        pass
    raise OSError(errno.EADDRINUSE, "another server listens on it")
