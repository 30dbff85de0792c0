"""An archive's worker process: loads the handler it is told, then answers batches until the server is gone.

It answers one batch at a time, or two that overlap (`overlap.py`).

Its working folder, and the first place that it imports from, is the unpacked archive: handlers open files and import their
siblings by bare names. The socket is the process's only link: when the server ends, so does this.
"""

import contextlib
import gc
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .. import frames, model_config
from . import overlap, unpickling
from .context import Context
from .envelopes import Call, Envelope, KServeV1, KServeV2, Plain
from .handler import Handle, HandlerError, load
from .metrics import Noted
from .service import Service

logger = logging.getLogger("torpor.handler")


def main() -> int:
    """The arguments end with the descriptor of the socket."""
    link = _Link(socket.socket(fileno=int(sys.argv[-1])))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the server says when it is over
    first = link.receive()
    if first is not None and "import" in first[0]:  # the server has not come to say what to load
        with _uncollected(), contextlib.suppress(ImportError):  # the handler says it if it misses it
            importlib.import_module(first[0]["import"])
        first = link.receive()
    if first is None:
        return 0
    options = first[0]["load"]
    logging.basicConfig(
        level=options["log_level"].upper(), format=f"%(asctime)s %(levelname)s %(name)s {options['name']}: %(message)s"
    )
    try:
        with _uncollected():
            contexts = _contexts(options)
            handle = load(options["handler"], Path(options["folder"]), contexts[0])
        does_overlap = overlap.does_overlap(handle, options["overlaps_batches"])
    except HandlerError as error:
        link.send({"failed": str(error)})
        return 1
    except Exception as error:
        traceback.print_exc()
        link.send({"failed": f"handler {options['handler']!r}: {type(error).__name__}: {error}"})
        return 1
    link.send({"loaded": overlap.LANES if does_overlap else 1})
    with contextlib.suppress(ConnectionError):
        if does_overlap:
            device = overlap.Device()

            def lane(context: Context) -> None:
                own = overlap.in_lane(handle, contexts[0], context, device)
                _answer(link, _service(options, own, context), device.turn)

            device.serve(lane, contexts)
        else:
            _answer(link, _service(options, handle, contexts[0]), threading.Lock())
    return 0


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """What is imported and loaded stays: looking at it for garbage, again and again, takes a tenth of the time.

    A handler may say itself when there is to be a collection: by `gc.disable`, or a threshold of its own.
    """
    before = gc.get_threshold()
    gc.set_threshold(0)
    try:
        yield
    finally:
        if gc.get_threshold()[0] == 0:
            gc.set_threshold(*before)


def _answer(link: "_Link", service: Service, turn: threading.Lock) -> None:
    """Answer batches until the server has gone, when it is this one's turn. Raises ConnectionError."""
    while (batch := link.receive()) is not None:
        number = batch[0]["batch"]
        with turn:
            replies = service.run(batch[0]["protocol"], _calls(*batch), partial(_give, link, number))
            said = {"batch": number, "replies": replies, "metrics": service.metrics()}
        link.send(said, [reply.blobs for reply in replies])


def _give(link: "_Link", number: int, said: dict[str, Any], piece: bytes) -> None:
    """Send a piece of an answer, of the batch of that number."""
    link.send({"batch": number, **said}, [[piece]])


def _contexts(options: dict[str, Any]) -> list[Context]:
    """What the handler is loaded with, and beside it as many as there may be lanes. Goes into the archive's folder."""
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
    noted = Noted()
    return [Context(options["name"], options["manifest"], system, yaml, noted) for _ in range(overlap.LANES)]


def _service(options: dict[str, Any], handle: Handle, context: Context) -> Service:
    if "torch" in sys.modules:  # a handler need not have it
        from . import tensors

        tensors.quicken(handle)
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
    return [Call(blobs=[bytes(blob) for blob in part], place=place, **said) for place, (said, part) in enumerate(pairs)]


class _Link:
    """The socket to the server, for one thread or several."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._receiving = threading.Lock()
        self._sending = threading.Lock()

    def receive(self) -> frames.Message | None:
        """The next message, None when the server has gone."""
        with self._receiving:
            prefix = self._exactly(frames.PREFIX.size)
            if prefix is None:
                return None
            text_bytes, content_bytes = frames.PREFIX.unpack(prefix)
            text, content = self._exactly(text_bytes), self._exactly(content_bytes)
        return None if text is None or content is None else frames.unpack(text, content)

    def send(self, head: dict[str, Any], parts: Sequence[Sequence[frames.Blob]] = ()) -> None:
        """Raises ConnectionError."""
        message = b"".join(frames.pack(head, parts))
        with self._sending:
            self._connection.sendall(message)

    def _exactly(self, count: int) -> bytearray | None:
        buffer = bytearray(count)
        view = memoryview(buffer)
        at = 0
        while at < count:
            try:
                received = self._connection.recv_into(view[at:])
            except ConnectionError:
                return None
            if not received:
                return None
            at += received
        return buffer
