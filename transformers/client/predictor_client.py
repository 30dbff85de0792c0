"""The client to one model of a predictor.

    start ─► (joined with others) ─► Call ─► Rest ─► Pool ─► Connection
                                       │  └► Grpc
                                       └ its deadline, the protocol that it waits for, its tries

No task, future or coroutine a request over HTTP: `answer` is called when its bytes have come. `infer` is that for coroutines.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Protocol

from torpor.predictors.batching.policy import BatchingSettings
from torpor.predictors.errors import (
    DeadlineExceeded,
    MethodNotAllowed,
    NotFound,
    NotSupported,
    PredictorFailed,
    QueueFull,
    TorporError,
    Unavailable,
    UnsupportedMedia,
)
from torpor.predictors.protocol.inference import InferRequest, InferResponse
from torpor.predictors.serving.settling import settling
from torpor.predictors.serving.tasks import Tasks

from .address import Address
from .backoff import Backoff
from .deadlines import Deadlines
from .joined import Joined
from .passing_on import Headers, credentials, passed_on
from .pool import Pool
from .rest import discover, rest

Answer = Callable[[InferResponse | TorporError], None]

PROTOCOLS = ("auto", "v1", "v2", "v2-json", "v2-binary", "grpc-v2")


class Cancellable(Protocol):
    """What is under way."""

    def cancel(self) -> object: ...


class Carrier(Protocol):
    """Carries one model's requests in one protocol: `Rest`, `Grpc`."""

    protocol: str

    def start(
        self, request: InferRequest, kept: Mapping[str, str], timeout_s: float | None, answer: Answer
    ) -> Cancellable: ...
    async def metadata(self, kept: Mapping[str, str]) -> dict[str, Any]: ...
    async def is_ready(self, kept: Mapping[str, str]) -> bool: ...
    async def close(self) -> None: ...


class PredictorClient:
    """Asks one model of a predictor; belongs to the event loop of its first request.

    address: host:port, http(s)://host[:port][/prefix] or unix:/path.
    protocol: v1; v2, which is v2-binary where the predictor has that extension, else v2-json; grpc-v2; auto asks the
        predictor's metadata for the best of v2 and v1, remembers the answer, and asks again after failures that another
        protocol could be the reason of.
    timeout_s: of a request that brings no deadline, which is also how long the predictor may take to wake from zero.
    backoff: how often, and how late, what has not begun is sent again.
    batching: joins small requests that meet within it; None: each goes by itself (`joined.py` says which are joined).
    max_connections, max_waiting: of HTTP, and requests that wait for one of them; what comes on top is refused.
    ca_file: certificates to trust, in PEM; the system's with "".

    Raises ValueError for an address or a protocol that is none.
    """

    def __init__(
        self,
        address: str,
        model_name: str,
        protocol: str = "auto",
        *,
        timeout_s: float = 600.0,
        backoff: Backoff | None = None,
        batching: BatchingSettings | None = None,
        max_connections: int = 100,
        max_waiting: int = 4096,
        idle_s: float = 60.0,
        connect_timeout_s: float = 5.0,
        max_answer_bytes: int = 256 << 20,
        ca_file: str = "",
    ) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol = {protocol!r}, must be one of {', '.join(PROTOCOLS)}")
        self.address = Address.parse(address)
        if protocol == "grpc-v2" and self.address.prefix:
            raise ValueError(f"address = {address!r}, must have no path for grpc-v2")
        self.model_name = model_name
        self.backoff = backoff or Backoff()
        self._asked_protocol = protocol
        self.timeout_s = timeout_s
        self._max_answer_bytes = max_answer_bytes
        self._ca_file = ca_file
        self._pool = Pool(
            self.address, max_connections, max_waiting, idle_s, connect_timeout_s, max_answer_bytes, ca_file
        )
        self._batching = batching
        self._joined: Joined | None = None
        self.carrier: Carrier | None = None
        self._undecided: list[Call] = []
        self._tasks = Tasks()
        self.deadlines = Deadlines()

    @property
    def protocol(self) -> str | None:
        """What is spoken: v1, v2-json, v2-binary or grpc-v2; None while that is not known."""
        return None if self.carrier is None else self.carrier.protocol

    def start(
        self, request: InferRequest, headers: Headers | None, timeout_s: float | None, answer: Answer
    ) -> Cancellable:
        """Send a request; `answer` is called once, on the event loop, unless what this returns is cancelled before.

        The arrays must not change until then. headers: the caller's, of which `passing_on.py` says what goes on.
        timeout_s: what the caller still has, None if it did not say; the request may say less. Raises InvalidInput,
        QueueFull, Unavailable and DeadlineExceeded, and then does not call `answer`.
        """
        own_s = request.terms.timeout_s
        if timeout_s is None or (own_s is not None and own_s < timeout_s):
            timeout_s = own_s
        kept = passed_on(headers)
        if self._batching is not None:
            if self._joined is None:
                self._joined = Joined(self.call, self._batching, self.model_name, self.timeout_s, self.deadlines)
            joined = self._joined.start(request, kept, timeout_s, answer)
            if joined is not None:
                return joined
        return self.call(request, kept, timeout_s, answer)

    async def infer(
        self, request: InferRequest, headers: Headers | None = None, timeout_s: float | None = None
    ) -> InferResponse:
        """`start` for a coroutine: the response, or the error raised. Cancelled, it closes the request's connection."""
        future: asyncio.Future[InferResponse] = asyncio.get_running_loop().create_future()
        call = self.start(request, headers, timeout_s, settling(future))
        try:
            return await future
        except asyncio.CancelledError:
            call.cancel()
            raise

    async def metadata(self, headers: Headers | None = None) -> dict[str, Any]:
        """What the predictor says of the model, v2's object or v1's. Raises a TorporError."""
        kept = passed_on(headers)
        async with _in_time(self.timeout_s):
            return await (await self._find(kept)).metadata(kept)

    async def is_ready(self, headers: Headers | None = None) -> bool:
        """Whether the predictor can be reached and the model is ready. Raises NotFound where there is no such model."""
        kept = passed_on(headers)
        try:
            async with _in_time(self.timeout_s):
                return await (await self._find(kept)).is_ready(kept)
        except (Unavailable, DeadlineExceeded):
            return False

    async def close(self) -> None:
        """Close the connections; what is under way ends with Unavailable."""
        await self._tasks.cancel()
        if self._joined is not None:
            self._joined.refuse()
        if self.carrier is not None:
            await self.carrier.close()
        await self._pool.close()
        if self._joined is not None:
            await self._joined.close()
        undecided, self._undecided = self._undecided, []
        for call in undecided:
            call.answered(Unavailable("the client has been closed", None))
        self.deadlines.close()

    async def __aenter__(self) -> "PredictorClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def call(self, request: InferRequest, kept: Mapping[str, str], timeout_s: float | None, answer: Answer) -> "Call":
        """Send a request by itself. Raises as `start` does."""
        if timeout_s is not None and timeout_s <= 0:
            raise DeadlineExceeded("the deadline had passed before the request was sent to the predictor")
        call = Call(self, asyncio.get_running_loop(), request, kept, timeout_s, answer)
        call.begin()
        if call.answer is not None:
            self.deadlines.guard(call)
        return call

    def carrier_for(self, call: "Call") -> Carrier | None:
        """What carries it; None: it will be called again when that is known."""
        if self.carrier is None and not self._decide():
            self._undecided.append(call)
            if len(self._undecided) == 1:
                self._tasks.start(self._discover(credentials(call.kept)), f"protocol of {self.address}")
        return self.carrier

    def failed(self, carrier: Carrier | None, error: TorporError) -> None:
        """Ask the predictor anew what it speaks if that may be why."""
        doubtful = isinstance(error, NotFound | MethodNotAllowed | NotSupported | UnsupportedMedia | PredictorFailed)
        is_gone = isinstance(error, Unavailable) and not isinstance(error, QueueFull)
        if (doubtful or is_gone) and carrier is self.carrier and self._asked_protocol in ("auto", "v2"):
            self.carrier = None

    def _decide(self) -> bool:
        """Whether what is spoken needs no asking."""
        protocol = self._asked_protocol
        if protocol in ("auto", "v2"):
            return False
        if protocol == "grpc-v2":
            from .v2_grpc import Grpc  # grpcio is an extra, and slow to import

            self.carrier = Grpc(self.address, self.model_name, self._max_answer_bytes, self._ca_file)
        else:
            self.carrier = rest(self._pool, self.model_name, protocol)
        return True

    async def _find(self, kept: Mapping[str, str]) -> Carrier:
        if self.carrier is None and not self._decide():
            self.carrier = await discover(self._pool, self.model_name, kept, may_be_v1=self._asked_protocol == "auto")
        assert self.carrier is not None
        return self.carrier

    async def _discover(self, kept: Mapping[str, str]) -> None:
        failure: TorporError | None = None
        try:
            async with _in_time(self.timeout_s):
                await self._find(kept)
        except TorporError as error:
            failure = error
        undecided, self._undecided = self._undecided, []
        for call in undecided:
            if failure is None:
                call.go_on()
            else:
                call.answered(failure)


class Call:
    """One request on its way, in as many tries as it needs. `answer` is called once, unless it is cancelled before.

    timeout_s: that the predictor is told of; None: the client's own patience, which it need not know.
    """

    __slots__ = (
        "_carrier", "_client", "_has_deadline", "_loop", "_tried", "_underway", "answer", "end_s", "kept", "request",
    )  # fmt: skip

    def __init__(
        self,
        client: PredictorClient,
        loop: asyncio.AbstractEventLoop,
        request: InferRequest,
        kept: Mapping[str, str],
        timeout_s: float | None,
        answer: Answer,
    ) -> None:
        self.request = request
        self.kept = kept
        self.answer: Answer | None = answer
        self._client = client
        self._loop = loop
        self._has_deadline = timeout_s is not None
        self.end_s = loop.time() + (client.timeout_s if timeout_s is None else timeout_s)
        self._carrier: Carrier | None = None
        self._underway: Cancellable | None = None
        self._tried = 0

    def begin(self) -> None:
        """Send it, now or when it is known how. Raises what the carrier refuses it with."""
        carrier = self._carrier = self._client.carrier or self._client.carrier_for(self)
        if carrier is not None:
            timeout_s = self.end_s - self._loop.time() if self._has_deadline else None
            self._underway = carrier.start(self.request, self.kept, timeout_s, self.answered)

    def go_on(self) -> None:
        """The same, later: nobody is left to raise to."""
        self._underway = None
        if self.answer is None:  # its caller left while it waited
            return
        try:
            self.begin()
        except TorporError as error:
            self._finish(error)

    def answered(self, result: InferResponse | TorporError) -> None:
        """A try has ended."""
        if isinstance(result, TorporError) and self.answer is not None:
            self._client.failed(self._carrier, result)
            self._tried += 1
            wait_s = self._client.backoff.wait_s(result, self._tried)
            if wait_s is not None and self._loop.time() + wait_s < self.end_s:
                self._underway = self._loop.call_later(wait_s, self.go_on)
                return
        self._finish(result)

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self.answer = None
        self._client.deadlines.release(self)
        if self._underway is not None:
            self._underway.cancel()

    def expire(self) -> None:
        answer = self.answer
        self.cancel()
        if answer is not None:
            answer(DeadlineExceeded("the deadline passed while the predictor was waited for"))

    def _finish(self, result: InferResponse | TorporError) -> None:
        answer, self.answer = self.answer, None
        if answer is not None:
            self._client.deadlines.release(self)
            answer(result)


@asynccontextmanager
async def _in_time(timeout_s: float) -> AsyncIterator[None]:
    """Raises DeadlineExceeded after so many seconds."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed while the predictor was asked what it has") from None
