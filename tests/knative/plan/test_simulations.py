"""A revision under traffic: request by request against what can be worked out, and by ticks against that."""

import math
from dataclasses import replace
from typing import Any

import pytest
from torpor.knative.autoscaling import Autoscaling
from torpor.knative.plan import by_request, by_tick
from torpor.knative.plan.measurement import BatchTime, BatchTimes, Measurement
from torpor.knative.plan.outcome import Latencies, Outcome
from torpor.knative.plan.setup import Platform, Setup
from torpor.knative.plan.shape import rates
from torpor.knative.plan.table import PodTable
from torpor.knative.plan.traffic import Drawn, Recorded
from torpor.predictors.batching.load import Arrival, Call, Trace
from torpor.predictors.batching.policy import BatchingSettings

MEASURED = Measurement(
    "made up", (BatchTime(1, 1, 0.010), BatchTime(32, 1, 0.041)), 0.001, 0.0, 1.0, {"all": 1.5}, 1 << 28
)


def setup(batch: int = 32, timeout_s: float = 60, **scaling: Any) -> Setup:
    platform = Platform(pod_start_s=0.5, hop_s=0.0)
    return Setup(MEASURED, Autoscaling(**scaling), BatchingSettings(batch, 0.0), timeout_s, platform)


def at(*times: float, patience_s: float | None = None) -> Recorded:
    return Recorded.of("given", Trace([Arrival(time, Call(patience_s=patience_s)) for time in times]))


def described(shape: str) -> Drawn:
    return Drawn(shape, rates(shape))


def test_a_request_at_zero_waits_for_a_pod() -> None:
    """0.5 s of the cluster, 1.5 s of the process, a batch of 10 ms and 1 ms around it."""
    outcome = by_request.simulate(setup(), at(0.0))
    assert outcome.latencies.at(1.0) == pytest.approx(2.011, rel=0.01)
    assert (outcome.cold, outcome.wakes, outcome.pods_started, outcome.cold_share) == (1, 1, 1, 1.0)


def test_a_pod_that_is_there_answers_at_once() -> None:
    """And the same pod the next one, at no more than 100 a second."""
    outcome = by_request.simulate(setup(min_scale=1), at(0.0, 0.5, 0.5))
    assert (outcome.cold, outcome.wakes, outcome.pods_started) == (0, 0, 0)
    assert outcome.latencies.at(0.3) == pytest.approx(0.011, rel=0.01)


def test_rows_that_wait_share_a_batch() -> None:
    """Of 33 at once the first one runs alone, 32 follow together: the policy is the server's own."""
    outcome = by_request.simulate(setup(min_scale=1, container_concurrency=0), at(*[0.0] * 33))
    assert outcome.latencies.at(1.0) == pytest.approx(0.011 + 0.041 + 0.032, rel=0.02)


def test_container_concurrency_holds_requests_back() -> None:
    """With 1 at a time there is no batch."""
    outcome = by_request.simulate(setup(min_scale=1, max_scale=1, container_concurrency=1), at(*[0.0] * 10))
    assert outcome.latencies.at(1.0) == pytest.approx(10 * 0.011, rel=0.02)


def test_queue_proxy_refuses_where_the_activator_would_hold() -> None:
    """As a cluster did with containerConcurrency 1 and target-burst-capacity 0: of 20 at once 11 were answered."""
    held = {"container_concurrency": 1, "min_scale": 1, "max_scale": 1}
    traffic = at(0.0, *[6.0] * 20)
    assert by_request.simulate(setup(**held), traffic).refused == 0
    assert by_request.simulate(setup(**held, target_burst_capacity=0), traffic).refused == 9


def test_a_start_counts_against_the_timeout() -> None:
    """Not ready in time is a 504."""
    outcome = by_request.simulate(setup(timeout_s=1), at(0.0, 0.5))
    assert (outcome.timed_out, outcome.latencies.total) == (2, 0)


def test_a_deadline_that_passes_in_the_queue_is_a_504() -> None:
    """The policy drops it."""
    outcome = by_request.simulate(setup(batch=1, min_scale=1, max_scale=1), at(*[0.0] * 5, patience_s=0.02))
    assert outcome.timed_out > 0
    assert outcome.timed_out + outcome.latencies.total == 5


def test_pods_count_from_their_creation_until_they_are_gone() -> None:
    """Ready after 2 s, known to be after 10.5, from then a window of 6 s, 31 s to drain; within the traffic's time."""
    outcome = by_request.simulate(setup(window_s=6, container_concurrency=10), at(0.0, 100.0, 100.5))
    first = 10.5 + 6 + 31
    assert outcome.pod_seconds == pytest.approx(first + 1, abs=0.1)
    assert outcome.ready_pod_seconds == pytest.approx(8.5 + 6, abs=0.1)
    assert sum(slot.pods for slot in outcome.slots) * outcome.slot_s == pytest.approx(outcome.pod_seconds)


def test_a_quick_start_is_known_at_once() -> None:
    """The kubelet waits a second for its first answer and asks again ten later: 0.9 s are within it, 1.1 s are not."""

    def starting(seconds: float) -> Setup:
        return replace(setup(), measurement=replace(MEASURED, start={"all": seconds}))

    assert starting(0.9).known_after_s == 0
    assert starting(1.1).known_after_s == pytest.approx(8.9)
    assert starting(10.5).known_after_s == 0
    assert starting(11.5).known_after_s == pytest.approx(8.5)


def test_every_request_is_accounted_for() -> None:
    """Answered, refused or timed out."""
    traffic = described("bursts 300/s of 20s every 60s over 1/s for 2m")
    for settings in ({"container_concurrency": 4}, {"container_concurrency": 0, "window_s": 6.0}, {"max_scale": 1}):
        outcome = by_request.simulate(setup(**settings), traffic)
        assert outcome.latencies.total + outcome.refused + outcome.timed_out == traffic.requests == outcome.requests
        assert sum(slot.requests for slot in outcome.slots) == traffic.requests
    for settings in ({"container_concurrency": 4, "max_scale": 2}, {"window_s": 6.0}):
        ticked = by_tick.simulate(setup(**settings), traffic, PodTable(setup(**settings), traffic))
        total = ticked.latencies.total + ticked.refused + ticked.timed_out
        assert total == pytest.approx(traffic.requests, rel=0.001)


def test_more_than_a_pod_can_do_makes_pods() -> None:
    """In panic, and only up to max-scale."""
    traffic = described("poisson 1/s for 1m then poisson 400/s for 1m")
    assert by_request.simulate(setup(batch=1, container_concurrency=2), traffic).most_pods > 5
    assert by_request.simulate(setup(batch=1, container_concurrency=2, max_scale=3), traffic).most_pods == 3


def test_a_surge_late_in_a_second_counts_whole() -> None:
    """The activator's first average is of the time since the first request: 20 for 0.1 s are 20 and not 2.

    So the tick after sees 10 in two seconds, for which pods of 7 must be two.
    """
    traffic = Recorded("late", [(1.9, 1, (), None)] * 20, 10)
    outcome = by_request.simulate(setup(container_concurrency=10), traffic)
    assert [slot.pods for slot in outcome.slots[:2]] == pytest.approx([0.05, 2])


@pytest.mark.parametrize(
    ("shape", "settings", "p95_apart"),
    [
        ("bursts 100/s of 2m every 5m for 15m", {"container_concurrency": 64}, 0.05),
        ("ramp 0/s to 200/s for 5m then quiet for 5m", {"container_concurrency": 0, "max_scale": 3}, 0.05),
        ("poisson 60/s for 8m", {"container_concurrency": 16, "min_scale": 2, "target_burst_capacity": 0}, 0.05),
        # Its p95 is of those that waited behind a cold start, which the pods let through in batches and not as a fluid.
        ("bursts 100/s of 1m every 4m for 12m", {"container_concurrency": 8, "window_s": 20.0, "max_scale": 4}, 0.2),
    ],
)
def test_ticks_come_to_the_same(shape: str, settings: dict[str, Any], p95_apart: float) -> None:
    """Within 5 % in pod-seconds, cold starts and p95: on hours the benchmark `plan` asks for it, here on minutes."""
    traffic = described(shape)
    one_by_one = by_request.simulate(setup(**settings), traffic)
    ticked = by_tick.simulate(setup(**settings), traffic, PodTable(setup(**settings), traffic))
    assert ticked.wakes == one_by_one.wakes
    assert ticked.pod_seconds == pytest.approx(one_by_one.pod_seconds, rel=0.05)
    assert ticked.cold_share == pytest.approx(one_by_one.cold_share, rel=0.05, abs=0.0005)
    assert ticked.latencies.at(0.95) == pytest.approx(one_by_one.latencies.at(0.95), rel=p95_apart)


def test_the_same_traffic_gives_the_same() -> None:
    """Everything that is drawn has a seed."""
    one, other = (by_request.simulate(setup(), described("poisson 20/s for 2m")).summary() for _ in range(2))
    assert one == other


def test_times_of_batches_are_lines_between_those_measured() -> None:
    """By rows, then by cells, and on beyond them; never less for more."""
    times = BatchTimes((BatchTime(1, 8, 1.0), BatchTime(4, 8, 4.0), BatchTime(1, 32, 2.0), BatchTime(4, 32, 8.0)))
    assert (times(1, 8), times(2, 8), times(4, 20)) == (1.0, 2.0, 6.0)
    assert (times(8, 8), times(4, 56), times(1, 1)) == (8.0, 12.0, 1.0)
    noisy = BatchTimes((BatchTime(1, 1, 2.0), BatchTime(2, 1, 1.0)))
    assert noisy(2, 1) == noisy(4, 1) == 2.0


def test_latencies_are_kept_to_half_a_percent() -> None:
    """Shares of a mixture, by weight."""
    latencies = Latencies()
    latencies.add(0.01, 90)
    latencies.add(2.0, 10)
    assert latencies.at(0.5) == pytest.approx(0.01, rel=0.006)
    assert latencies.at(0.95) == pytest.approx(2.0, rel=0.006)
    assert latencies.mean_s == pytest.approx(0.209, rel=0.006)
    assert Latencies().at(0.5) == 0.0


def test_a_pod_is_spread_over_the_slots_it_lived_in() -> None:
    """Cut to the traffic's time."""
    outcome = Outcome.over(6.0)
    outcome.count_pod(-1.0, 1.0, 3.0, math.inf)
    assert [slot.pods for slot in outcome.slots] == [1.0, 1.0, 1.0]
    assert [slot.ready for slot in outcome.slots] == [0.5, 0.5, 0.0]
    assert (outcome.pod_seconds, outcome.ready_pod_seconds) == (6.0, 2.0)


def test_a_full_pod_does_what_its_batches_allow() -> None:
    """32 rows in 41 ms and 1 ms each: 438 a second; with one at a time 91."""
    traffic = described("poisson 1/s for 1m")
    assert PodTable(setup(container_concurrency=64), traffic).most_rate == pytest.approx(438, rel=0.05)
    assert PodTable(setup(container_concurrency=1), traffic).most_rate == pytest.approx(91, rel=0.05)
    slow = replace(MEASURED, request_s=0.1)
    assert PodTable(replace(setup(), measurement=slow), traffic).most_rate < 10
