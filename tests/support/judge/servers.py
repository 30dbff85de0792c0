"""TorchServe, and torpor, each on a storage folder that a scene wrote, for as long as its calls take."""

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from judge.bench import archiver, environments, servers
from judge.client import Addresses, by_http
from judge.scenes import Call, Scene

START_S = 240

LOGS = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="ERROR"><Appenders><Console name="out" target="SYSTEM_OUT"><PatternLayout pattern="%d %p %c - %m%n"/>
</Console></Appenders><Loggers><Root level="INFO"><AppenderRef ref="out"/></Root></Loggers></Configuration>
"""


def unavailable() -> str:
    """Why TorchServe can't run here, or nothing."""
    if shutil.which("java") is None:
        return "needs Java"
    try:
        environments.python_of("torchserve")
    except environments.UnavailableError as error:
        return str(error)
    return ""


@contextmanager
def torchserve(scene: Scene, folder: Path, store: Path) -> Iterator[Addresses]:
    first = servers.free_port()
    inference, management, metrics, grpc, grpc_management = range(first, first + 5)
    addresses = {
        "inference_address": f"http://127.0.0.1:{inference}", "management_address": f"http://127.0.0.1:{management}",
        "metrics_address": f"http://127.0.0.1:{metrics}", "grpc_inference_port": str(grpc),
        "grpc_management_port": str(grpc_management), "enable_envvars_config": "true",
    }  # fmt: skip
    scene.write(folder, store, addresses)
    (folder / "log4j2.xml").write_text(LOGS)
    python = environments.python_of("torchserve")
    command = [
        str(python.with_name("torchserve")), "--foreground", "--start", "--ncs", f"--log-config={folder / 'log4j2.xml'}",
        f"--model-store={folder / 'model-store'}", f"--ts-config={folder / 'config' / 'config.properties'}",
    ]  # fmt: skip
    environment = _environment() | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    if scene.grpc_protocol:
        environment["TS_OPEN_INFERENCE_PROTOCOL"] = scene.grpc_protocol
    reached = Addresses(*(f"127.0.0.1:{port}" for port in (inference, management, grpc, grpc_management)))
    with _running(command, folder, environment, inference) as server:
        _wait(server, scene, reached)
        yield reached


@contextmanager
def torpor(scene: Scene, folder: Path, store: Path) -> Iterator[Addresses]:
    """All on one port but the management API."""
    port = servers.free_port()
    management = port + 1
    scene.write(folder, store, {"management_address": f"http://127.0.0.1:{management}"})
    command = [
        str(Path(sys.executable).with_name("torpor")), "serve", str(folder), "--host", "127.0.0.1", "--port", str(port),
        "--torchserve-management", "loopback",
    ]  # fmt: skip
    with _running(command, folder, _environment() | archiver.for_torpor(), port) as server:
        limit_s = time.monotonic() + START_S
        while not re.search(r"ready in .*:\d+$", server.log.read_text(), re.MULTILINE):
            assert server.process.poll() is None, server.log.read_text()[-3000:]
            assert time.monotonic() < limit_s, server.log.read_text()[-3000:]
            time.sleep(0.1)
        address, managing = f"127.0.0.1:{port}", f"127.0.0.1:{management}"
        yield Addresses(address, managing, address, managing, "inference")


def _wait(server: servers.Running, scene: Scene, addresses: Addresses) -> None:
    """Until every model has a worker that is ready: TorchServe's ping says Healthy before."""
    limit_s = time.monotonic() + START_S
    waiting = scene.ready()
    while waiting:
        assert server.process.poll() is None, server.log.read_text()[-3000:]
        assert time.monotonic() < limit_s, f"{waiting[0]} is not ready: {server.log.read_text()[-3000:]}"
        answer = by_http(addresses, Call("GET", f"/models/{waiting[0]}", is_management=True))
        if b'"READY"' in answer.body:
            waiting.pop(0)
        else:
            time.sleep(0.2)


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TORPOR_", "K_SERVICE", "PORT", "TS_", "PYTHON"))}
    return kept | {"PYTHONPATH": str(archiver.SHIMS), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def _running(
    command: list[str], folder: Path, environment: dict[str, str], port: int
) -> AbstractContextManager[servers.Running]:
    """In a folder of the session's own sockets and pid files of fixed names stay."""
    scratch = folder / "tmp"
    scratch.mkdir()
    return servers.started(command, folder, environment | {"TMPDIR": str(scratch), "TEMP": str(scratch)}, port)
