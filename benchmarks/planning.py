"""How long the planner's two simulations take, and how far they are apart.

The traffic is a day of bursts, 200 requests a second for ten minutes of every twenty, so that each hour has 100 a second on
average and three starts from zero. Its ninth hour is simulated request by request and by ticks. The predictor is a made-up
one, so that every machine has the same to do.
"""

import math
import time
from dataclasses import dataclass
from functools import cache

from torpor.knative.autoscaling import Autoscaling
from torpor.knative.plan import by_request, by_tick
from torpor.knative.plan.measurement import BatchTime, Measurement
from torpor.knative.plan.outcome import Outcome
from torpor.knative.plan.setup import Setup
from torpor.knative.plan.shape import rates
from torpor.knative.plan.table import PodTable
from torpor.knative.plan.traffic import Drawn
from torpor.predictors.batching.policy import BatchingSettings

from loads import Rate

HOUR = (8 * 3600.0, 9 * 3600.0)

SETUP = Setup(
    Measurement(
        "made up",
        (BatchTime(1, 1, 0.002), BatchTime(64, 1, 0.02)),
        request_s=0.0001,
        around_s=0.0005,
        cores=1.0,
        start={"all": 2.0},
        memory_bytes=1 << 28,
    ),
    Autoscaling(container_concurrency=64),
    BatchingSettings(max_batch_size=64, batch_timeout_s=0.002),
)


@cache
def day() -> Drawn:
    shape = "bursts 200/s of 10m every 20m for 24h"
    return Drawn(shape, rates(shape))


@dataclass(frozen=True)
class HourByRequest:
    """Seconds for an hour of 100 requests a second."""

    label: str

    def measure(self, seconds: float) -> Rate:
        hour = day().part(*HOUR)
        began_s = time.perf_counter()
        outcome = by_request.simulate(SETUP, hour)
        return Rate(time.perf_counter() - began_s, math.nan, math.nan, {"requests": outcome.requests})


@dataclass(frozen=True)
class DayByTick:
    """Seconds for a day, its table included."""

    label: str

    def measure(self, seconds: float) -> Rate:
        traffic = day()
        began_s = time.perf_counter()
        outcome = by_tick.simulate(SETUP, traffic, PodTable(SETUP, traffic))
        return Rate(time.perf_counter() - began_s, math.nan, math.nan, {"requests": outcome.requests})


@dataclass(frozen=True)
class Difference:
    """The largest of the differences in pod-seconds, share of cold starts and p95 on the hour, in percent."""

    label: str

    def measure(self, seconds: float) -> Rate:
        hour = day().part(*HOUR)
        by_requests = by_request.simulate(SETUP, hour)
        by_ticks = by_tick.simulate(SETUP, hour, PodTable(SETUP, hour))
        apart = {
            name: 100 * (theirs / ours - 1)
            for (name, ours), theirs in zip(_figures(by_requests).items(), _figures(by_ticks).values(), strict=True)
        }
        beside = {f"{name}, %": value for name, value in apart.items()} | _figures(by_requests)
        return Rate(max(map(abs, apart.values())), math.nan, math.nan, beside)


def _figures(outcome: Outcome) -> dict[str, float]:
    return {
        "pod-seconds": outcome.pod_seconds,
        "cold share": outcome.cold_share,
        "p95 ms": 1e3 * outcome.latencies.at(0.95),
    }
