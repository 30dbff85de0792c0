"""In which column the soak counts a request that was not answered right: what is excused, and what never is.

A pod is asked to die at 10 s, listens no more at 12, and is no endpoint any more at 15.
"""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"

sys.path.insert(0, str(BENCHMARKS))  # for these imports alone: other modules there must hide nobody's
try:
    from first_answers import Attempt
    from soak import Kill, column
finally:
    sys.path.remove(str(BENCHMARKS))

KILLED = [Kill(100.0, 101.0, 102.0), Kill(10.0, 12.0, 15.0)]


@pytest.mark.parametrize(
    ("sent_s", "ended_s", "expected"),
    [
        (5.0, 9.9, "lost"),  # ended before the pod was asked to die
        (5.0, 10.0, "inside"),
        (12.0, 13.0, "inside"),
        (12.1, 13.0, "lost"),  # sent when nothing listened there any more
        (100.5, 100.6, "inside"),  # of another kill
    ],
)
def test_a_request_without_an_answer_is_excused_if_it_was_on_its_way_while_a_pod_died(
    sent_s: float, ended_s: float, expected: str
) -> None:
    assert column(Attempt("lost", "the connection ended", sent_s, 0, ended_s), KILLED) == expected


@pytest.mark.parametrize(
    ("sent_s", "expected"),
    [(9.9, "refused after"), (10.0, "refused before"), (15.0, "refused before"), (15.1, "refused after")],
)
def test_a_refusal_is_excused_from_the_kill_until_the_endpoint_has_gone(sent_s: float, expected: str) -> None:
    assert column(Attempt("refused", "503", sent_s, 0, sent_s + 0.1), KILLED) == expected


@pytest.mark.parametrize(
    ("reason", "sent_s", "expected"),
    [("502 bad gateway", 13.0, "refused before"), ("503 no pod", 13.0, "refused before"), ("503 no pod", 16.0, "lost"),
     ("500 failed", 13.0, "lost")],
)  # fmt: skip
def test_what_the_ingress_says_of_a_pod_that_has_gone_is_a_refusal_and_later_a_loss(
    reason: str, sent_s: float, expected: str
) -> None:
    assert column(Attempt("lost", reason, sent_s, 0, sent_s + 0.1), KILLED) == expected


def test_a_wrong_answer_is_never_excused() -> None:
    assert column(Attempt("wrong", "of revision 7", 11.0, 0, 11.5), KILLED) == "wrong"


@pytest.mark.parametrize("outcome", ["lost", "refused"])
def test_without_a_kill_nothing_is_excused(outcome: str) -> None:
    expected = {"lost": "lost", "refused": "refused after"}[outcome]
    assert column(Attempt(outcome, "503", 11.0, 0, 11.5), []) == expected
