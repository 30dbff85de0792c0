"""An archive's worker process: loads the handler it is told, then answers batches until the server is gone.

Its working folder, and the first place that it imports from, is the unpacked archive: handlers open files and import their
siblings by bare names. The socket is the process's only link: when the server ends, so does this.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import frames, model_config
from . import unpickling
from .context import Context
from .envelopes import Call, Envelope, KServeV1, KServeV2, Plain
from .handler import HandlerError, load
from .service import Service

logger = logging.getLogger("torpor.handler")


def main() -> int:
    """The arguments end with the descriptor of the socket."""
    connection = socket.socket(fileno=int(sys.argv[-1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the server says when it is over
    first = _receive(connection)
    if first is None:
        return 0
    options = first[0]["load"]
    logging.basicConfig(
        level=options["log_level"].upper(), format=f"%(asctime)s %(levelname)s %(name)s {options['name']}: %(message)s"
    )
    try:
        service = _load(options)
    except HandlerError as error:
        _send(connection, {"failed": str(error)})
        return 1
    except Exception as error:
        traceback.print_exc()
        _send(connection, {"failed": f"handler {options['handler']!r}: {type(error).__name__}: {error}"})
        return 1
    _send(connection, {"loaded": True})
    with contextlib.suppress(ConnectionError):
        while (batch := _receive(connection)) is not None:
            replies = service.run(batch[0]["protocol"], _calls(*batch))
            said = {"replies": replies, "metrics": service.metrics()}
            _send(connection, said, [reply.blobs for reply in replies])
    return 0


def _load(options: dict[str, Any]) -> Service:
    """Raises HandlerError, and whatever the handler raises."""
    folder = Path(options["folder"])
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    unpickling.watch(folder)
    system = {
        "model_dir": str(folder),
        "gpu_id": options["gpu_id"],
        "batch_size": options["batch_size"],
        "server_version": options["server_version"],
        "limit_max_image_pixels": options["limit_max_image_pixels"],
    }
    config_file = options["config_file"]
    yaml = model_config.read((folder / config_file).read_bytes(), config_file) if config_file else {}
    context = Context(options["name"], options["manifest"], system, yaml)
    handle = load(options["handler"], folder, context)
    envelope = options["envelope"]
    decodes = options["decode_input_request"]
    name, version = options["name"], options["version"]
    predictions: dict[str, Envelope] = {"kserve": KServeV1(False), "kservev2": KServeV2(False, name, version)}
    return Service(handle, context, {
        "predictions": predictions.get(envelope) or Plain(decodes, envelope),
        "v1": Plain(decodes, "json") if envelope == "json" else KServeV1(True),
        "v2": KServeV2(True, name, version),
    })  # fmt: skip


def _calls(head: dict[str, Any], parts: list[list[memoryview]]) -> list[Call]:
    pairs = zip(head["calls"], parts, strict=True)
    return [Call(blobs=[bytes(blob) for blob in part], **said) for said, part in pairs]


def _receive(connection: socket.socket) -> frames.Message | None:
    """The next message, None when the server has gone."""
    prefix = _exactly(connection, frames.PREFIX.size)
    if prefix is None:
        return None
    text_bytes, content_bytes = frames.PREFIX.unpack(prefix)
    text, content = _exactly(connection, text_bytes), _exactly(connection, content_bytes)
    return None if text is None or content is None else frames.unpack(text, content)


def _exactly(connection: socket.socket, count: int) -> bytearray | None:
    buffer = bytearray(count)
    view = memoryview(buffer)
    at = 0
    while at < count:
        try:
            received = connection.recv_into(view[at:])
        except ConnectionError:
            return None
        if not received:
            return None
        at += received
    return buffer


def _send(connection: socket.socket, head: dict[str, Any], parts: Sequence[Sequence[frames.Blob]] = ()) -> None:
    connection.sendall(b"".join(frames.pack(head, parts)))
