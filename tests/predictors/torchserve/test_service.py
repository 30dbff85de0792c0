"""A loaded handler at work, without its process: whose rows a call of it has, and what goes back for each request."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torpor.predictors.errors import InvalidInput
from torpor.predictors.torchserve.worker.context import Context
from torpor.predictors.torchserve.worker.envelopes import Answer, Call
from torpor.predictors.torchserve.worker.metrics import Noted
from torpor.predictors.torchserve.worker.pieces import Pieces
from torpor.predictors.torchserve.worker.service import Reply, Service


class Words:
    """Rows are words; a request that begins with "bad" has none, one that begins with "alone" shares no call."""

    def open(self, call: Call) -> None:
        text = call.blobs[0].decode()
        if text.startswith("bad"):
            raise InvalidInput("bad words")
        call.rows = text.split()

    def may_join(self, call: Call) -> bool:
        return call.rows[:1] != ["alone"]

    def answer(self, call: Call, results: Any) -> Answer:
        return Answer("text/x", [" ".join(results).encode()], [{"rows": len(results)}])


Handle = Callable[[list[Any], Context], Any]


def upper(data: list[Any], context: Context) -> Any:
    return [word.upper() for word in data]


class Bench:
    """A service of a handler, the rows of each of its calls, and the pieces that went."""

    def __init__(self, handle: Handle = upper, envelope: Words | None = None) -> None:
        self.called: list[list[str]] = []
        self.given: list[tuple[dict[str, Any], bytes]] = []
        self._handle = handle
        self.context = Context("m", None, {}, {}, Noted())
        self.service = Service(self._call, self.context, {"words": envelope or Words()})

    def _call(self, data: list[Any], context: Any) -> Any:
        self.called.append([*data])
        return self._handle(data, context)

    def run(self, *texts: str, **said: Any) -> list[Reply]:
        calls = [
            Call(f"id-{text}", said.get("headers", {}), [text.encode()], place=place, types=said.get("types", {}))
            for place, text in enumerate(texts)
        ]
        return self.service.run("words", calls, lambda head, piece: self.given.append((head, piece)))


def ends(replies: Sequence[Reply]) -> list[Any]:
    """The bodies, or what went wrong."""
    return [reply["text"] if "error" in reply else bytes(*reply.blobs) for reply in replies]


def test_requests_share_a_call_and_each_has_its_part() -> None:
    """In the order that they came, but for those that have no rows, or share none."""
    bench = Bench()
    replies = bench.run("a b", "bad", "alone", "c", "alone d")
    assert bench.called == [["a", "b", "c"], ["alone"], ["alone", "d"]]
    assert ends(replies) == [b"A B", "bad words", b"ALONE", b"C", b"ALONE D"]
    assert replies[1] == {"error": "InvalidInput", "text": "bad words"}
    assert replies[3] == {"status": 200, "headers": {"content-type": "text/x"}, "outputs": [{"rows": 1}]}
    bench = Bench()
    assert bench.run("bad") == [{"error": "InvalidInput", "text": "bad words"}]
    assert not bench.called


def test_a_handler_that_raises_is_asked_again_for_halves(caplog: pytest.LogCaptureFixture) -> None:
    """Until the request that it is about is alone, which is in the log once."""

    def handle(data: list[Any], context: Context) -> Any:
        if "x" in data:
            data.reverse()
            raise ValueError("no x")
        return upper(data, context)

    bench = Bench(handle)
    replies = bench.run("a", "b b", "x", "c", "d")
    assert ends(replies) == [b"A", b"B B", "Prediction failed: the handler raised ValueError", b"C", b"D"]
    assert bench.called == [["a", "b", "b", "x", "c", "d"], ["a", "b", "b", "x"], ["a", "b", "b"], ["x"], ["c", "d"]]
    assert replies[2]["error"] == "ModelFailed"
    assert caplog.messages == ["the handler raised"]


class Objects(Words):
    """Rows are objects of a word, which a handler may change."""

    def open(self, call: Call) -> None:
        super().open(call)
        call.rows = [{"word": word} for word in call.rows]


def test_rows_that_the_handler_changed_are_read_anew() -> None:
    """Each time that it is asked for them."""

    def handle(data: list[Any], context: Context) -> Any:
        words = [row.pop("word") for row in data]
        if len(words) > 1:
            raise ValueError
        return words

    assert ends(Bench(handle, Objects()).run("a", "b", "c")) == [b"a", b"b", b"c"]


@pytest.mark.parametrize("items", [0, 1, 3])
def test_a_number_of_items_that_is_not_the_rows_is_nobodys(items: int, caplog: pytest.LogCaptureFixture) -> None:
    """Each is asked for alone, and then what the handler gives is its own."""
    bench = Bench(lambda data, context: ["y"] * (items if len(data) > 1 else 1))
    assert ends(bench.run("a", "b")) == [b"y", b"y"]
    assert bench.called == [["a", "b"], ["a"], ["b"]]
    assert caplog.messages == [f"the handler gave {items} items for 2 rows of 2 requests"]


@pytest.mark.parametrize("items", [0, 3])
def test_a_request_that_is_alone_may_have_any_number_of_items(items: int) -> None:
    """What becomes of them is its envelope's business."""
    assert ends(Bench(lambda data, context: ["y"] * items).run("a a")) == [b" ".join([b"y"] * items)]


def test_what_is_no_list_is_no_answer() -> None:
    """Its type is named."""
    reason = "Invalid model predict output: tuple, must be a list"
    bench = Bench(lambda data, context: tuple(data))
    replies = bench.run("a", "b")
    assert ends(replies) == [reason, reason]
    assert {reply["error"] for reply in replies} == {"ModelFailed"}


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory")])
def test_a_batch_without_memory_comes_again_among_fewer(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """All of it, and one whose pieces have gone is given up."""

    def handle(data: list[Any], context: Any) -> Any:
        send(context, {1: b"x"})
        raise error

    bench = Bench(handle)
    replies = bench.run("a", "b", "alone")
    assert replies == [{"error": "OutOfMemory", "text": text} for text in ("3", "1", "3")]
    assert caplog.messages == [f"out of memory with 3 requests: {type(error).__name__}: {error}"]


def test_who_ends_the_process_ends_it() -> None:
    """That is no failure of a request."""

    def handle(data: list[Any], context: Any) -> Any:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        Bench(handle).run("a")


def send(context: Any, pieces: dict[int, bytes]) -> None:
    """As TorchServe's function does: each piece for the id of a row, with headers, content type and phrase."""

    def sized(data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + data

    def number(value: int) -> bytes:
        return value.to_bytes(4, "big", signed=True)

    message = number(200) + sized(b"Intermediate")
    for row, piece in pieces.items():
        message += sized(context.request_ids[row].encode()) + sized(b"text/plain") + number(200) + sized(b"OK")
        message += number(2) + sized(b"a") + sized(b"1") + sized(b"b") + sized(b"2") + sized(piece)
        context.set_response_header(row, "ts_stream_next", "true")
    context.cl_socket.sendall(message + number(-1))


def test_a_request_whose_pieces_have_gone_is_not_asked_for_again() -> None:
    """It fails as the call did, and the others run again."""

    def handle(data: list[Any], context: Any) -> Any:
        context.set_response_header(0, "X-Own", "1")
        if "b" in data:
            send(context, {1: b"one"})
            if "x" in data:
                raise ValueError
            return ["only one"]
        return upper(data, context)

    bench = Bench(handle)
    replies = bench.run("a", "b")
    assert ends(replies) == [b"A", "number of batch response mismatched: 1 items for 2 rows"]
    assert replies[1]["error"] == "ModelFailed"
    assert bench.given == [({"piece": 1, "status": 200, "headers": {}}, b"one")]
    assert bench.called == [["a", "b"], ["a"]]
    assert replies[0]["headers"] == {"x-own": "1", "content-type": "text/x"}
    assert ends(Bench(handle).run("x", "b")) == [b"X", "Prediction failed: the handler raised ValueError"]


def test_pieces_go_to_the_rows_of_their_ids_in_order() -> None:
    """Callers may have chosen one id; a piece for nobody is dropped, and so is a message that is none."""
    given: list[tuple[int, bytes]] = []
    pieces = Pieces(["a", "b", "a"], lambda row, piece: given.append((row, piece)))

    class Sender:
        request_ids = ("a", "b", "a", "other")
        cl_socket = pieces

        def set_response_header(self, *said: object) -> None: ...

    send(Sender(), {0: b"1", 3: b"-", 2: b"2", 1: b""})
    send(Sender(), {0: b"3"})
    for nothing in (None, b"", bytearray()):
        pieces.sendall(nothing)
    assert given == [(0, b"1"), (2, b"2"), (1, b""), (0, b"3")]


def test_a_handler_knows_what_was_asked() -> None:
    """Header fields, the type of each part, and whether it is to explain, which no caller says by a header."""
    seen: list[Any] = []

    def handle(data: list[Any], context: Any) -> Any:
        seen.append({name: context.get_request_header(0, name) for name in ("X-a", "explain", "body")})
        return upper(data, context)

    Bench(handle).run("a", headers={"x-a": "1", "explain": "True"}, types={"body": "text/plain"})
    assert seen == [{"X-a": "1", "explain": "False", "body": {"content-type": "text/plain"}}]


def test_a_request_without_rows_has_its_headers() -> None:
    """And the one behind it its own."""
    seen: list[Any] = []

    def handle(data: list[Any], context: Any) -> Any:
        seen.append(([*data], [*context.request_ids.values()]))
        return upper(data, context)

    assert ends(Bench(handle).run(" ", "a b", "c")) == [b"", b"A B", b"C"]
    assert seen == [(["a", "b", "c"], ["id- ", "id-a b", "id-a b", "id-c"])]


@pytest.mark.parametrize("status", [200, 599, 199, 600, True, "200", None])
def test_a_status_is_one_of_an_answer(status: Any) -> None:
    """No interim one, no word."""

    def handle(data: list[Any], context: Any) -> Any:
        context.set_response_status(status, "", 0)
        return upper(data, context)

    (reply,) = Bench(handle).run("a")
    if status in (200, 599) and type(status) is int:
        assert reply["status"] == status
    else:
        assert reply == {"error": "ModelFailed", "text": f"the handler set status = {status!r}, must be in [200, 599]"}


def test_headers_are_the_handlers_texts() -> None:
    """In lower case, with its own content type before the envelope's, and as UTF-8 can have them."""

    def handle(data: list[Any], context: Any) -> Any:
        for name, value in (("Content-Type", "image/png"), ("X-N", 1), ("X-T", "\ud800"), ("ts_stream_next", "true")):
            context.set_response_header(0, name, value)
        return upper(data, context)

    (reply,) = Bench(handle).run("a")
    assert reply["headers"] == {"content-type": "image/png", "x-n": "1", "x-t": "?"}


class Untyped(Words):
    """Says nothing of what an answer is."""

    def answer(self, call: Call, results: Any) -> Answer:
        return Answer("", [])


def test_an_answer_may_have_no_type() -> None:
    """Then nothing is said of it."""
    assert Bench(envelope=Untyped()).run("a")[0]["headers"] == {}


class PredictionException(Exception):
    """By TorchServe's name."""

    def __init__(self, message: str, error_code: Any) -> None:
        super().__init__(message)
        self.message, self.error_code = message, error_code


@pytest.mark.parametrize(
    ("error", "reply"),
    [
        (InvalidInput("no \ud800"), {"error": "InvalidInput", "text": "no ?"}),
        (PredictionException("no", 400), {"error": "HandlerRefused", "text": "no", "status": 400}),
        (PredictionException("no", 599), {"error": "HandlerRefused", "text": "no", "status": 599}),
        (PredictionException("no", 399), {"error": "ModelFailed"}),
        (PredictionException("no", 600), {"error": "ModelFailed"}),
        (PredictionException("no", "400"), {"error": "ModelFailed"}),
        (type("Other", (PredictionException,), {})("no", 400), {"error": "ModelFailed"}),
    ],
)
def test_a_handler_may_refuse(error: Exception, reply: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """With a status of TorchServe's exception; anything else is its failure. Each is in the log with its traceback."""

    def handle(data: list[Any], context: Any) -> Any:
        raise error

    text = f"Prediction failed: the handler raised {type(error).__name__}"
    assert Bench(handle).run("a") == [{"text": text} | reply]
    (record,) = caplog.records
    assert (record.getMessage(), record.exc_info and record.exc_info[1]) == ("the handler raised", error)


def test_what_was_counted_is_told_once() -> None:
    """By the service, with the replies."""

    def handle(data: list[Any], context: Any) -> Any:
        context.metrics.add_counter("seen", len(data))
        return upper(data, context)

    bench = Bench(handle)
    bench.run("a", "b")
    assert len(bench.service.metrics()) == 1
    assert bench.service.metrics() == []
