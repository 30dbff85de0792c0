"""Calls between a supervisor and its workers: JSON lines over a Unix socket, both ends alike.

{"call": 1, "name": "load", "argument": "mlp"}     asks the other end
{"answer": 1, "result": null}                      answers it
{"answer": 1, "error": ["NotFound", "model …"]}    or refuses, with a class of `errors`
"""

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any

from .. import errors
from ..errors import TorporError, Unavailable
from .tasks import Tasks

logger = logging.getLogger("torpor")

Handler = Callable[[Any], Awaitable[Any]]

_LONGEST_LINE_BYTES = 16 << 20
"""Metrics of a thousand models are a few megabytes."""


class Channel:
    """One end: `open` it, then `run` it; `handlers` answer the other end's calls by name."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._answering = Tasks()
        self._reader = asyncio.StreamReader()
        self._writer: asyncio.StreamWriter | None = None

    async def open(self, connection: socket.socket) -> None:
        """Take the socket over."""
        self._reader, self._writer = await asyncio.open_connection(sock=connection, limit=_LONGEST_LINE_BYTES)

    async def run(self) -> None:
        """Answer calls until the other end closes or dies; what was asked of it and not answered is Unavailable."""
        assert self._writer is not None
        try:
            while (line := await self._reader.readline()).endswith(b"\n"):  # a piece of one comes before the end
                self._receive(json.loads(line))
        except ConnectionError as error:
            logger.debug("the channel broke: %s", error)
        finally:
            self._writer.close()
            self._writer = None
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(_gone())

    async def call(self, name: str, argument: Any = None) -> Any:
        """What the other end's handler returns. Raises its TorporError, or Unavailable if it ends meanwhile."""
        if self._writer is None:
            raise _gone()
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"call": number, "name": name, "argument": argument})
            return await future
        finally:
            del self._waiting[number]

    def _receive(self, message: dict[str, Any]) -> None:
        if "call" in message:
            self._answering.start(self._answer(message), message["name"])
            return
        future = self._waiting.get(message["answer"])
        if future is None or future.done():  # whoever asked is gone
            return
        if "error" in message:
            kind, text = message["error"]
            future.set_exception(getattr(errors, kind)(text))
        else:
            future.set_result(message["result"])

    async def _answer(self, message: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"answer": message["call"]}
        try:
            answer["result"] = await self._handlers[message["name"]](message["argument"])
        except TorporError as error:
            answer["error"] = [type(error).__name__, str(error)]
        except Exception as error:
            logger.exception("%s failed", message["name"])
            answer["error"] = ["ModelFailed", f"{message['name']} raised {type(error).__name__}"]
        self._send(answer)

    def _send(self, message: dict[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write(json.dumps(message).encode() + b"\n")


def _gone() -> Unavailable:
    return Unavailable("another process of this server has ended")
