"""The batching policy in virtual time: what a schedule does with a load on a device, without the device.

The policy is the server's own, driven as the server drives it (`serving/batcher.py`): told of arrivals, ends of batches
and its timer. Simulated are the load, and a device that takes `overhead + cell_s * rows * cells` for a batch padded to
its longest row. What HTTP and the event loop cost is not in it, so a rate is what a server can at most come near.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from ..errors import InvalidInput, QueueFull
from .bucket import Bucket, rounded
from .load import FAMILY, Call, Load
from .policy import Batch, BatchingPolicy, BatchingSettings, State
from .run_times import WARM_UP_SIZE, RunTimes

_PROGRESS_REQUESTS = 1000

Device = Callable[[int, int], float]
"""Seconds that a batch takes, of rows and of cells a row."""


class LinearDevice:
    """A device whose time is a line; noise: sigma of the logarithm of a factor of 1 that each batch draws."""

    def __init__(self, overhead_s: float, cell_s: float, noise: float = 0.0, seed: int = 0) -> None:
        self._overhead_s = overhead_s
        self._cell_s = cell_s
        self._noise = noise
        self._chance = random.Random(seed)

    def __call__(self, rows: int, cells: int) -> float:
        factor = self._chance.lognormvariate(0.0, self._noise) if self._noise else 1.0
        return (self._overhead_s + self._cell_s * rows * cells) * factor


class Ran(NamedTuple):
    """One batch. cells: of its rows as sent; padded_cells: as run."""

    seconds: float
    rows: int
    cells: int
    padded_cells: int


@dataclass
class Report:
    """What came of a load. Latencies are of answered calls, from their arrival; times in seconds.

    refused: calls that the queue had no room for. expired: whose deadline passed while they waited; late: in their batch.
    """

    batches: list[Ran] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    rows: int = 0
    refused: int = 0
    expired: int = 0
    late: int = 0
    seconds: float = 0.0
    queued_row_seconds: float = 0.0
    most_queued_rows: int = 0

    def latency_s(self, share: float) -> float:
        """The latency that `share` of the answered calls stay within (nearest rank); nan without any."""
        ordered = sorted(self.latencies_s)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan

    def summary(self) -> dict[str, float]:
        """The figures by name, each with its unit; times 0 rather than nan where nothing ran."""
        batches, seconds = self.batches, self.seconds or math.inf
        padded = sum(batch.padded_cells for batch in batches)
        figures = {
            "requests": len(self.latencies_s) + self.refused + self.expired,
            "seconds": self.seconds,
            "requests_per_s": len(self.latencies_s) / seconds,
            "rows_per_s": self.rows / seconds,
            **{f"latency_p{percent}_ms": 1e3 * self.latency_s(percent / 100) for percent in (50, 95, 99)},
            "batches": len(batches),
            "rows_per_batch": sum(batch.rows for batch in batches) / max(1, len(batches)),
            "padding_percent": 100 * (1 - sum(batch.cells for batch in batches) / padded) if padded else 0.0,
            "device_busy_percent": 100 * sum(batch.seconds for batch in batches) / seconds,
            "queued_rows_mean": self.queued_row_seconds / seconds,
            "queued_rows_max": self.most_queued_rows,
            "refused": self.refused,
            "deadlines_missed": self.expired + self.late,
        }
        return {name: 0.0 if math.isnan(value) else value for name, value in figures.items()}


def simulate(
    load: Load,
    device: Device,
    settings: BatchingSettings,
    run_times: RunTimes | None = None,
    default_patience_s: float | None = None,
    progress: Callable[[int, float], None] = lambda requests, now: None,
    learned: bool = False,
) -> Report:
    """Run the load to its end.

    run_times: what the policy learns with, empty. default_patience_s: deadline of calls that bring none.
    progress: called at times with the requests that are through and the virtual time.
    learned: the device's times are a server's, which learns them by the cells of buckets, whose sizes are rounded up.
    """
    return _Simulation(load, device, settings, run_times or RunTimes(), default_patience_s, progress, learned).run()


class _Simulation:
    def __init__(
        self,
        load: Load,
        device: Device,
        settings: BatchingSettings,
        run_times: RunTimes,
        default_patience_s: float | None,
        progress: Callable[[int, float], None],
        learned: bool,
    ) -> None:
        self._load = load
        self._device = device
        self._policy: BatchingPolicy[Call] = BatchingPolicy(settings, run_times)
        self._default_patience_s = default_patience_s
        self._progress = progress
        self._learned = learned
        self._report = Report()
        self._scheduled = load.scheduled()
        # (time, sequence, what happens): a call comes, a batch ends, or None: the timer.
        self._events: list[tuple[float, int, Call | Batch[Call] | None]] = []
        self._sequence = count()
        self._busy = False
        self._timer_s = math.inf
        self._began_s = 0.0

    def run(self) -> Report:
        report, policy, events = self._report, self._policy, self._events
        following = next(self._scheduled, None)
        if following is None:
            return report
        self._warm_up(len(following.call.sizes))
        now = self._began_s = following.arrival_s
        while following is not None or events:
            before_s = now
            event: Call | Batch[Call] | None
            if following is not None and (not events or following.arrival_s <= events[0][0]):
                now, event = following
                following = next(self._scheduled, None)
            else:
                now, _, event = heappop(events)
            report.queued_row_seconds += policy.queued_rows * (now - before_s)
            if isinstance(event, Call):
                self._arrive(event, now)
            elif event is not None:
                self._end(event, now)
            else:
                self._timer_s = math.inf
                self._step(now)
            report.most_queued_rows = max(report.most_queued_rows, policy.queued_rows)
        return report

    def _warm_up(self, axes: int) -> None:
        """The policy's prior, as a server's start gives it."""
        bucket = Bucket(FAMILY, rounded([WARM_UP_SIZE] * axes))
        for rows in (1, min(4, self._policy.settings.max_batch_size)):
            self._policy.run_times.observe(rows, bucket, self._device(rows, bucket.cells))

    def _arrive(self, call: Call, now: float) -> None:
        patience_s = self._default_patience_s if call.patience_s is None else call.patience_s
        if patience_s is not None:
            call.deadline_s = now + patience_s
        try:
            self._policy.offer(call, now)
        except QueueFull as refusal:
            self._report.refused += 1
            self._through(now, now + refusal.retry_after_s)
        except InvalidInput:  # more rows than any queue holds
            self._report.refused += 1
            self._through(now, now)
        else:
            self._step(now)

    def _step(self, now: float) -> None:
        policy = self._policy
        for _ in policy.expire(now):
            self._report.expired += 1
            self._through(now, now)
        if not self._busy and (batch := policy.take(now)) is not None:
            self._busy = True
            longest = tuple(map(max, zip(*[piece.item.sizes for piece in batch.slices], strict=True)))
            cells = math.prod(longest)
            ran = Ran(
                self._device(batch.rows, batch.bucket.cells if self._learned else cells),
                batch.rows,
                sum((stop - start) * call.cells for call, start, stop in batch.slices),
                batch.rows * cells,
            )
            self._report.batches.append(ran)
            self._push(now + ran.seconds, batch)
        wake_s = policy.next_deadline_s() if self._busy else policy.wake_at(now)
        if wake_s is not None and wake_s < self._timer_s:
            self._timer_s = wake_s
            self._push(wake_s, None)

    def _end(self, batch: Batch[Call], now: float) -> None:
        self._busy = False
        self._report.seconds = now - self._began_s
        self._policy.complete(batch, self._report.batches[-1].seconds)
        self._step(now)  # before the answers, as the server has it
        for call, start, stop in batch.slices:
            call.answered_rows += stop - start
            if call.answered_rows < call.rows or call.state is State.GONE:
                continue
            self._report.latencies_s.append(now - call.arrival_s)
            self._report.rows += call.rows
            self._report.late += call.deadline_s is not None and call.deadline_s < now
            self._through(now, now)

    def _through(self, now: float, back_s: float) -> None:
        """A call is answered or refused; its caller may send its next at `back_s`."""
        report = self._report
        report.seconds = now - self._began_s
        if (arrival := self._load.after(back_s)) is not None:
            self._push(arrival.arrival_s, arrival.call)
        requests = len(report.latencies_s) + report.refused + report.expired
        if requests % _PROGRESS_REQUESTS == 0:
            self._progress(requests, now)

    def _push(self, at_s: float, event: Call | Batch[Call] | None) -> None:
        heappush(self._events, (at_s, next(self._sequence), event))
