"""Traffic: in words, of a file; by requests and by seconds it is the same."""

import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.knative.plan.shape import rates
from torpor.knative.plan.traffic import Drawn, Mix, Recorded, Traffic
from torpor.predictors.batching.load import Lengths
from torpor.predictors.batching.trace import read_trace
from torpor.predictors.settings import SettingError


def counted(traffic: Traffic) -> list[int]:
    counts = [0] * len(traffic.counts)
    for request in traffic.arrivals():
        counts[int(request.sent_s)] += 1
    return counts


@pytest.mark.parametrize(
    ("text", "length_s", "first", "last", "mean"),
    [
        ("poisson 100/s for 1h", 3600, 100, 100, 100),
        ("poisson 30/min for 10m", 600, 0.5, 0.5, 0.5),
        ("poisson 36/h for 10s", 10, 0.01, 0.01, 0.01),
        ("quiet for 1m30s", 90, 0, 0, 0),
        ("ramp 0/s to 50/s for 100s", 100, 0, 49.5, 24.75),
        ("bursts 200/s of 30s every 2m for 4m", 240, 200, 0, 50),
        ("bursts 200/s of 30s every 2m over 4/s for 4m", 240, 200, 4, 53),
        ("daily 2/s to 42/s for 24h", 86_400, 7.858, 7.858, 22),
        ("quiet for 10s  then poisson 4/s for 10s", 20, 0, 4, 2),
    ],
)
def test_a_described_shape_is_rates(text: str, length_s: int, first: float, last: float, mean: float) -> None:
    """One for each second."""
    found = rates(text)
    assert (len(found), found[0]) == (length_s, pytest.approx(first, abs=0.01))
    assert found[-1] == pytest.approx(last, abs=0.01)
    assert sum(found) / len(found) == pytest.approx(mean, abs=0.01)


def test_a_day_is_lowest_at_three_and_highest_at_fifteen() -> None:
    """A second day repeats the first."""
    found = rates("daily 2/s to 42/s for 48h")
    assert (found[3 * 3600], found[15 * 3600]) == (pytest.approx(2), pytest.approx(42))
    assert found[27 * 3600] == pytest.approx(2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("poison 100/s for 1h", "--shape: 'poison 100/s for 1h', must be like 'poisson 100/s for 1h', "),
        ("poisson 100/s for 1h then", "'poisson 100/s for 1h then', must be like"),
        ("poisson 100 for 1h", "must be like"),
        ("poisson 100/s for 1x", "--shape: 'poisson 100/s for 1x': '1x' is no duration, must be like 6s"),
        ("quiet for 100ms", "100ms must be in [1s, 2678400s]"),
        ("poisson 1/s for 500h then poisson 1/s for 500h", "--shape: 3.6e+06 s in all, must be in [1, 2678400]"),
    ],
)
def test_what_is_no_shape_is_said_to_be_none(text: str, message: str) -> None:
    """By the part, and what it must be."""
    with pytest.raises(SettingError) as raised:
        rates(text)
    assert message in str(raised.value)


def test_drawn_requests_are_those_that_are_counted() -> None:
    """Each time the same, in order; another seed has others; the mean is the rate's."""
    traffic = Drawn("some", [50.0] * 200, seed=3)
    assert counted(traffic) == traffic.counts
    times = [request.sent_s for request in traffic.arrivals()]
    assert times == sorted(times) == [request.sent_s for request in traffic.arrivals()]
    assert times != [request.sent_s for request in Drawn("some", [50.0] * 200, seed=4).arrivals()]
    assert traffic.requests / 200 == pytest.approx(50, abs=4 * math.sqrt(50 / 200))


@given(st.integers(0, 9), st.integers(1, 20))
def test_a_part_has_the_requests_of_the_whole(begin: int, length: int) -> None:
    """At the same times less its begin."""
    traffic = Drawn("some", [3.0] * 30)
    part = traffic.part(begin, begin + length)
    there = [r.sent_s - begin for r in traffic.arrivals() if begin <= r.sent_s < begin + length]
    assert [request.sent_s for request in part.arrivals()] == pytest.approx(there)
    assert counted(part) == part.counts
    assert part.duration_s == length


def test_rows_have_the_size_that_is_given() -> None:
    """Of one named axis, log-normal."""
    mix = Mix(2, Lengths(20, 4, 128))
    requests = [*Drawn("some", [100.0] * 10, mix).arrivals()]
    assert {request.rows for request in requests} == {2}
    assert 15 < sorted(request.sizes[0] for request in requests)[len(requests) // 2] < 25
    assert Drawn("some", [1.0], mix).sample(0.0, random.Random(0)).sizes


def test_a_file_begins_with_its_first_request(tmp_path: Path) -> None:
    """Whatever its clock; rows, sizes and deadlines are kept."""
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,rows,tokens,deadline_s\n1000.5,1,23,0.5\n1002.0,2,81,\n")
    traffic = Recorded.of("trace", read_trace(path))
    first, second = traffic.arrivals()
    assert (first.sent_s, first.rows, first.sizes, first.deadline_s) == (0.0, 1, (23,), 0.5)
    assert (second.sent_s, second.rows, second.sizes, second.deadline_s) == (1.5, 2, (81,), None)
    assert (traffic.counts, traffic.duration_s) == ([1, 1], 2.0)
    assert [request.sent_s for request in traffic.part(1, 2).arrivals()] == [0.5]


def test_the_busiest_stretch_is_found() -> None:
    """Or all of it, where it is no longer than that."""
    traffic = Drawn("some", rates("poisson 1/s for 20s then poisson 50/s for 10s then poisson 1/s for 20s"))
    assert traffic.busiest_s(10) == (20, 30)
    assert traffic.busiest_s(60) == (0, 50)
