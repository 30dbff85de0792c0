"""Ports for servers that must have the same one again when they are started again."""

import contextlib
import random
import socket

_PORTS = range(10_000, 30_000)
"""Below those that the kernel gives to connections and to whoever names none: nobody gets one by chance meanwhile."""


def free_port() -> int:
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")
