"""The application on top of the server: gRPC goes one way, everything else is REST; neither knows the HTTP version."""

from collections.abc import Callable
from typing import Protocol

from ..errors import TorporError
from .content_coding import ContentCoder
from .data_plane import DataPlane
from .exchange import Exchange, Fields, Head
from .grpc_wire import Grpc
from .repository import Repository
from .rest import JSON, Fail, Handler, Receiver, Rest, error_body
from .worker import Colleagues


class Management(Protocol):
    """What answers the requests of TorchServe's management API: `torchserve.management_api`."""

    def takes(self, head: Head) -> bool: ...

    def route(self, exchange: Exchange) -> Handler:
        """Raises a TorporError."""

    def fail(self, exchange: Exchange, error: Exception) -> None: ...


class App:
    """Routes exchanges over a data plane; every error becomes an answer, and only the caller's own."""

    def __init__(
        self,
        data_plane: DataPlane,
        repository: Repository,
        max_body_bytes: int,
        max_unfinished_bytes: int,
        colleagues: Colleagues | None = None,
        open_receiver: Callable[[Fail], Receiver] | None = None,
        management: Management | None = None,
    ) -> None:
        """max_body_bytes: of a body, once it is inflated; max_unfinished_bytes: of all that are inflated and not answered.

        colleagues: the server's processes, if it has more than one.

        open_receiver: makes what answers events, when the first one comes; without it they are requests like any other.
        management: TorchServe's, if it is on this port.
        """
        coder = ContentCoder(max_body_bytes, max_unfinished_bytes)
        self._rest = Rest(data_plane, repository, coder, colleagues, open_receiver)
        self._grpc = Grpc(data_plane, repository, coder)
        self._management = management

    def open(self, exchange: Exchange) -> bool:
        """Choose the handler that gets the exchange when its body is here; False if it needs none (any more)."""
        protocol = self._protocol(exchange)
        try:
            exchange.handler = handler = protocol.route(exchange)
        except Exception as error:
            protocol.fail(exchange, error)
            return False
        return handler is not None

    def answer(self, exchange: Exchange) -> None:
        """Call the handler; it answers now, or when the model has."""
        assert exchange.handler is not None
        try:
            exchange.handler(exchange)
        except Exception as error:
            self._protocol(exchange).fail(exchange, error)

    def refuse(self, exchange: Exchange, error: TorporError) -> None:
        self._protocol(exchange).fail(exchange, error)

    def malformed(self, error: TorporError) -> tuple[bytes, Fields]:
        return error_body(str(error)), JSON

    def _protocol(self, exchange: Exchange) -> Rest | Grpc | Management:
        if self._management is not None and self._management.takes(exchange.head):
            return self._management
        return self._grpc if exchange.head.is_grpc else self._rest
