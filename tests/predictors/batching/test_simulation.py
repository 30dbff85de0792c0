"""The policy in virtual time: figures that can be worked out by hand, and loads of every kind."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.predictors.batching.load import Arrival, Call, ClosedLoop, Lengths, Load, Poisson, Trace
from torpor.predictors.batching.policy import BatchingSettings
from torpor.predictors.batching.simulation import LinearDevice, Report, simulate


def run(load: Load, *, overhead_s: float = 0.1, cell_s: float = 0.0, batch: int = 4, **options: float) -> Report:
    settings = BatchingSettings(batch, options.pop("wait_s", 0.0), int(options.pop("queue", 100)))
    return simulate(load, LinearDevice(overhead_s, cell_s), settings, **options)  # type: ignore[arg-type]


def trace(*arrivals: tuple[float, Call]) -> Trace:
    return Trace([Arrival(at_s, call) for at_s, call in arrivals])


def one_row(chance: random.Random) -> Call:
    return Call()


def test_a_lone_call_takes_its_batch() -> None:
    """One row of three cells: overhead and cells, no wait."""
    report = run(trace((5.0, Call(1, (3,)))), cell_s=0.01)
    assert report.latencies_s == [pytest.approx(0.13)]
    assert report.seconds == pytest.approx(0.13)
    assert [batch[1:] for batch in report.batches] == [(1, 3, 3)]


def test_what_comes_meanwhile_shares_a_batch() -> None:
    """Three arrive while one runs: the second batch has them, padded to the longest, and they wait for both."""
    report = run(trace((0.0, Call(1, (8,))), *((0.05, Call(1, (n,))) for n in (4, 6, 8))))
    assert [batch.rows for batch in report.batches] == [1, 3]
    assert (report.batches[1].cells, report.batches[1].padded_cells) == (18, 24)
    assert report.latencies_s == pytest.approx([0.1, 0.15, 0.15, 0.15])
    assert report.summary()["padding_percent"] == pytest.approx(100 * (1 - 26 / 32))
    assert report.most_queued_rows == 3
    assert report.queued_row_seconds == pytest.approx(3 * 0.05)


def test_a_trace_may_be_out_of_order() -> None:
    """Logs are written when a request ends."""
    report = run(trace((1.0, Call()), (0.0, Call())))
    assert report.latencies_s == pytest.approx([0.1, 0.1])
    assert report.seconds == pytest.approx(1.1)


def test_the_timer_ends_a_wait() -> None:
    """Four were here, one comes back: it waits out the timeout, and its latency shows it."""
    report = run(trace(*((0.0, Call()) for _ in range(5)), (1.0, Call())), wait_s=0.05)
    assert report.latencies_s[-1] == pytest.approx(0.15)


def test_callers_in_a_loop_fill_the_device() -> None:
    """Eight callers, batches of up to four that take 100 ms: forty rows a second, and the device is never idle."""
    report = run(ClosedLoop(8, 400, one_row))
    assert report.summary()["rows_per_s"] == pytest.approx(40, rel=0.01)
    assert report.summary()["device_busy_percent"] == pytest.approx(100, rel=0.01)
    assert report.summary()["latency_p50_ms"] == pytest.approx(199)


def test_deadlines_are_missed_in_the_queue_and_in_the_batch() -> None:
    """A batch takes 100 ms: who has 50 ms is answered late, who waits behind it expires; who has more is in time."""
    report = run(trace((0.0, Call(patience_s=0.05)), (0.01, Call(patience_s=0.05)), (0.01, Call(patience_s=1.0))))
    assert (report.late, report.expired, len(report.latencies_s)) == (1, 1, 2)
    assert report.summary()["deadlines_missed"] == 2
    report = run(trace((0.0, Call()), (0.01, Call(patience_s=9.0))), default_patience_s=0.05)
    assert (report.late, report.expired) == (1, 0)


def test_a_full_queue_refuses() -> None:
    """Two rows may wait; callers in a loop come back after the time that they are told."""
    report = run(trace(*((0.0, Call()) for _ in range(5)), (9.0, Call(3))), queue=2)
    assert (report.refused, len(report.latencies_s)) == (3, 3)
    report = run(ClosedLoop(5, 20, one_row), queue=2)
    assert report.refused + len(report.latencies_s) == 20


def test_an_oversized_call_is_answered_once() -> None:
    """Ten rows in batches of four."""
    report = run(trace((0.0, Call(10))))
    assert [batch.rows for batch in report.batches] == [4, 4, 2]
    assert report.latencies_s == pytest.approx([0.3])
    assert report.rows == 10


def test_a_poisson_load_has_its_rate_and_its_lengths() -> None:
    """The same seed gives the same load."""
    lengths = Lengths(20, 4, 128)
    load = Poisson(50.0, 4000, lambda chance: Call(1, lengths.draw(chance)), seed=1)
    arrivals = [*load.scheduled()]
    assert arrivals[-1].arrival_s == pytest.approx(80, rel=0.05)
    sizes = sorted(arrival.call.sizes[0] for arrival in arrivals)
    assert sizes[2000] == pytest.approx(20, abs=1)
    assert (sizes[0], sizes[-1]) == (4, 128)
    again = [*load.scheduled()]
    assert [(a.arrival_s, a.call.sizes) for a in arrivals] == [(a.arrival_s, a.call.sizes) for a in again]


def test_nothing_ran_is_no_figure() -> None:
    """An empty load, and one that is refused: zeros, not an error."""
    assert run(trace()).summary()["requests_per_s"] == 0
    refused = run(trace((0.0, Call(101)))).summary()
    assert (refused["refused"], refused["latency_p99_ms"], refused["padding_percent"]) == (1, 0, 0)


def test_progress_is_told() -> None:
    """At every thousandth request."""
    told: list[int] = []
    settings = BatchingSettings()
    simulate(ClosedLoop(8, 2500, one_row), LinearDevice(0.01, 0), settings, progress=lambda n, now: told.append(n))
    assert told == [1000, 2000]


calls = st.builds(
    Call,
    st.integers(1, 12),
    st.tuples(st.integers(1, 40)),
    st.none() | st.floats(0.001, 0.5),
)


@given(
    st.lists(st.tuples(st.floats(0, 1), calls), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.01, 0.3]),
    st.integers(1, 30),
)
def test_every_call_comes_to_an_end(arrivals: list[tuple[float, Call]], wait_s: float, queue: int) -> None:
    """Answered, expired or refused, whatever comes when; no answer is quicker than its own batch, no device does two."""
    report = run(trace(*arrivals), wait_s=wait_s, queue=queue, cell_s=0.001)
    assert len(report.latencies_s) + report.refused + report.expired == len(arrivals)
    assert min(report.latencies_s, default=1.0) >= 0.101 - 1e-9
    assert sum(batch.seconds for batch in report.batches) <= report.seconds + 1e-9
    assert not math.isnan(sum(report.summary().values()))
