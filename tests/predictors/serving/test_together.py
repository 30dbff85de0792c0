"""v1 rows that differ in length: each padded and cut by itself, answered together."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from torpor.predictors.errors import DeadlineExceeded, InvalidInput, QueueFull, TorporError
from torpor.predictors.serving.together import Together

PATH = "/v1/models/padded:predict"


@pytest.fixture(scope="module")
def padded(serve):
    return serve("padded")


def instances(*rows: list[int]) -> bytes:
    return json.dumps({"instances": [{"ids": row, "mask": [1] * len(row)} for row in rows]}).encode()


def test_rows_of_different_lengths_are_one_request(connect, padded) -> None:
    """Every row gets its own, in order, without padding, as if it had come alone."""
    rows = [[1, 2, 3], [4], [5, 6], list(range(40)), [7, 8]]
    reply = connect(padded).request("POST", PATH, instances(*rows))
    expected = [{"doubled": [2 * n for n in row], "count": len(row)} for row in rows]
    assert reply.json() == {"predictions": expected}
    assert reply.headers["torpor-model-version"] == "1"


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (instances([1], [999, 2]), 400, "999 is not to this model's taste"),
        (
            b'{"instances": [{"ids": [1], "mask": [1]}, {"ids": [1, 2], "mask": [1]}]}',
            400,
            "axis 'tokens' = 1, must be 2",
        ),
        (
            instances(*[[1], [1, 2]] * 600),
            400,
            "instances = 1200 rows that are no tensor together, must be at most 1024",
        ),
    ],
)
def test_one_wrong_row_refuses_the_request(connect, padded, body: bytes, status: int, text: str) -> None:
    """With that row's error, once."""
    connection = connect(padded)
    reply = connection.request("POST", PATH, body)
    assert (reply.status, text in reply.error()) == (status, True), reply
    assert connection.request("POST", PATH, instances([1], [2, 3])).status == 200


def test_more_rows_than_the_queue_holds_are_refused_whole(serve, connect) -> None:
    """Those that had been queued leave it again."""
    server = serve("padded", "--max-queue-rows", "4")
    connection = connect(server)
    assert connection.request("POST", PATH, instances(*[[1], [2, 3]] * 4)).status == 503
    for _ in range(3):
        assert connection.request("POST", PATH, instances([1], [2, 3])).status == 200
    assert "torpor_queued_rows{" in (metrics := connection.request("GET", "/metrics").body.decode())
    assert any(line.startswith("torpor_queued_rows{") and line.endswith(" 0.0") for line in metrics.splitlines())


class Model:
    """Keeps what is started, to be answered as the test likes.

    refuses: the numbers that it does not take. fails: what it answers to the first one when it gets the second.
    """

    def __init__(self, refuses: dict[int, TorporError] | None = None, fails: TorporError | None = None) -> None:
        self.refuses, self.fails = refuses or {}, fails
        self.waiting: dict[int, Callable[[Any], None]] = {}
        self.cancelled: list[int] = []

    def start(self, request: int, headers: None, timeout_s: None, answer: Callable[[Any], None]) -> int:
        if request in self.refuses:
            raise self.refuses[request]
        if request == 1 and self.fails is not None:
            self.waiting[0](self.fails)
        self.waiting[request] = answer
        return request

    def cancel(self, started: int) -> None:
        self.cancelled.append(started)


def started(model: Any, count: int) -> tuple[Together, list[Any]]:
    """Requests that are numbers, and what they are answered together."""
    answers: list[Any] = []
    together = Together(model, answers.append)
    together.start(range(count), None, None)  # type: ignore[arg-type]
    return together, answers


def test_the_answer_has_all_in_the_order_of_the_requests() -> None:
    """Whatever order they end in, not before the last, and once."""
    model = Model()
    together, answers = started(model, 3)
    for number in (2, 0):
        model.waiting[number](f"{number}")
    assert not answers
    model.waiting[1]("1")
    assert answers == [["0", "1", "2"]]
    assert together.answer is None


def test_the_first_error_is_the_answer_and_the_only_one() -> None:
    """Nobody waits for the others any more; that they are answered all the same tells nobody."""
    model, error = Model(), InvalidInput("x")
    _, answers = started(model, 3)
    model.waiting[0]("0")
    model.waiting[1](error)
    assert (answers, model.cancelled) == ([error], [0, 1, 2])
    model.waiting[2](InvalidInput("y"))
    model.waiting[2]("2")
    assert answers == [error]


def test_who_has_cancelled_is_not_answered() -> None:
    """Whether the rest ends well or not."""
    model = Model()
    together, answers = started(model, 2)
    together.cancel()
    assert model.cancelled == [0, 1]
    for number in (0, 1):
        model.waiting[number](f"{number}")
    assert not answers


def test_a_request_that_is_refused_takes_back_those_before_it() -> None:
    """Its error is raised, and not answered as well."""
    model = Model(refuses={2: QueueFull("full", 1.0)})
    answers: list[Any] = []
    with pytest.raises(QueueFull):
        Together(model, answers.append).start(range(4), None, None)  # type: ignore[arg-type]
    assert (sorted(model.waiting), model.cancelled, answers) == ([0, 1], [0, 1], [])


def test_nothing_is_started_after_an_error() -> None:
    """A deadline may pass before all have begun: nobody would cancel those that come later."""
    error = DeadlineExceeded("late")
    model = Model(fails=error)
    _, answers = started(model, 4)
    assert (sorted(model.waiting), model.cancelled, answers) == ([0, 1], [0, 1], [error])


def test_what_padding_adds_is_told(start, connect_http1) -> None:
    """The first row runs at once, the two that come meanwhile as one batch, the shorter of them padded."""
    server = start("padded")
    assert connect_http1(server).request("POST", PATH, instances([1] * 4, [1] * 2, [1] * 3)).status == 200
    text = connect_http1(server).request("GET", "/metrics").body.decode()
    cells = dict(re.findall(r"^(torpor_\w*cells_total)\{.*\} (\S+)$", text, re.MULTILINE))
    assert cells == {"torpor_cells_total": "9.0", "torpor_padded_cells_total": "10.0"}
