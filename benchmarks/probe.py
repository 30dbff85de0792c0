"""The client that looks at the answers: unique rows, a few per second, beside the load.

Expected outputs are computed before the load starts, so that the probe itself costs next to nothing. It also decides
when a server is ready: when it gives the right answer.
"""

import http.client
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from bodies import Row
from environments import UnavailableError
from loads import BadAnswerError
from servers import Running
from wires import Echo, Exchange, Wire

PER_S = 4
START_LIMIT_S = 90.0
TOLERANCE = 2e-4
"""Absolute; the same row alone and inside a batch is not bit-equal in torch."""


def is_right(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether an answer has the shape of raw torch's and its values within TOLERANCE, which NaN is not."""
    return found.shape == wanted.shape and bool(np.abs(found - wanted).max() <= TOLERANCE)


@dataclass
class Probe:
    wire: Wire
    rows: Sequence[Row]
    expected: np.ndarray
    """[rows, features] by raw torch."""

    host: str = "127.0.0.1"

    answer_bytes: int = field(default=0, init=False)
    """Size of the latest good answer's body."""

    asked: int = field(default=0, init=False)

    def wait_ready(self, server: Running, port: int) -> None:
        """Refusals are forgiven until the first good answer; a wrong answer is not."""
        limit = time.monotonic() + START_LIMIT_S
        while True:
            server.check_alive()
            try:
                return self.ask(port)
            except (OSError, http.client.HTTPException, RefusedError) as error:
                if time.monotonic() > limit:
                    raise UnavailableError(f"not ready after {START_LIMIT_S:.0f} s: {error}") from error
            time.sleep(0.25)

    def ask(self, port: int) -> None:
        """One exchange with the next row, checked."""
        index = self.asked % len(self.rows)
        exchange = self.wire.encode(self.rows[index])
        headers, body = (_grpc if exchange.is_grpc else _http)(self.host, port, exchange)
        self.asked += 1
        self.answer_bytes = len(body)
        if isinstance(self.wire, Echo):
            if body != exchange.message:
                raise BadAnswerError("the echo differs")
            return
        wanted = self.expected[index : index + 1]
        try:
            answer = self.wire.decode(headers, body)
        except (KeyError, ValueError, IndexError) as error:
            raise BadAnswerError(f"no {self.wire.form} answer ({error!r}): {body[:200]!r}") from error
        if not is_right(answer, wanted):
            found = f"{answer.ravel()[:4]}... of shape {answer.shape}"
            raise BadAnswerError(f"wrong answer: {found}, not {wanted.ravel()[:4]}...")

    @contextmanager
    def beside(self, port: int) -> Iterator[None]:
        """Asks all the time while the body runs; the first trouble is raised at its end."""
        done, troubles = threading.Event(), []

        def work() -> None:
            while not done.wait(1 / PER_S):
                try:
                    self.ask(port)
                except Exception as trouble:
                    troubles.append(trouble)
                    return

        before = self.asked
        thread = threading.Thread(target=work, name="probe")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        if troubles:
            raise BadAnswerError(f"the probe beside the load: {troubles[0]}") from troubles[0]
        if self.asked == before:
            raise BadAnswerError("the probe got no answer beside the load")


class RefusedError(Exception):
    """An answer that is none: a status other than 200, or a gRPC error."""


def _http(host: str, port: int, exchange: Exchange) -> tuple[dict[str, str], bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=30)
    try:
        connection.request("POST", exchange.path, exchange.body, dict(exchange.headers))
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise RefusedError(f"status {response.status}: {body[:200]!r}")
    return {name.lower(): value for name, value in response.getheaders()}, body


def _grpc(host: str, port: int, exchange: Exchange) -> tuple[dict[str, str], bytes]:
    import grpc

    # Without its own subchannel pool grpcio would wait for its back-off after the refusals of a server that starts.
    with grpc.insecure_channel(f"{host}:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            return {}, channel.unary_unary(exchange.path)(exchange.message, timeout=30)
        except grpc.RpcError as error:
            raise RefusedError(f"{error.code()}: {error.details()}") from error
