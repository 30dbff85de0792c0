"""Where an answer ends, whatever pieces it comes in."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.knative.up.http1_answer import Answer
from torpor.predictors.errors import PredictorFailed

ANSWERS = {
    "length": ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", True),
    "chunks": ("GET", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n", True),
    "interim": ("POST", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n", True),
    "head": ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n", True),
    "empty": ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", True),
    "close": ("GET", b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi", False),
    "old": ("GET", b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", False),
}


@given(st.sampled_from([*ANSWERS]), st.lists(st.integers(0, 120), max_size=6))
def test_every_split_ends_with_the_last_byte(name: str, cuts: list[int]) -> None:
    """And passes every byte on, unchanged and in order."""
    method, data, keeps_alive = ANSWERS[name]
    answer, passed, ends = Answer(method), b"", []
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, stop in itertools.pairwise(edges):
        piece, has_ended = answer.feed(data[start:stop])
        passed += piece
        ends.append(has_ended)
    assert passed == data
    assert ends == [False] * (len(ends) - 1) + [True]
    assert answer.keeps_alive is keeps_alive


def test_without_a_length_it_ends_with_the_connection() -> None:
    """RFC 9112, 6.3, point 8."""
    answer = Answer("GET")
    assert answer.feed(b"HTTP/1.1 200 OK\r\n\r\n") == (b"HTTP/1.1 200 OK\r\n\r\n", False)
    assert answer.feed(b"more") == (b"more", False)
    assert answer.ends_with_connection


@pytest.mark.parametrize("data", [
    b"SSH-2.0-OpenSSH\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nz\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"x" * (300 << 10),
])  # fmt: skip
def test_what_is_no_answer_is_said(data: bytes) -> None:
    """Bytes behind its end too: they would be taken for the next answer."""
    with pytest.raises(PredictorFailed):
        Answer("GET").feed(data)
