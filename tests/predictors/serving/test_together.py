"""v1 rows that differ in length: each padded and cut by itself, answered together."""

import json

import pytest

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
