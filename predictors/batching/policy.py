"""The batching policy: a state machine over rows that wait, with the time as a parameter.

    offer(item, now)    an item (the rows of one request) joins the queue of its bucket, or QueueFull is raised
    cancel(item)        its caller left: the rows that still wait are dropped
    clear()             all items that wait, dropped
    expire(now)         the items whose deadline has passed, dropped
    take(now)           the batch to run on a device that is free, or None: waiting is better
    take_alone(item, now)   a batch of this item, which was not offered, or None: others are there or expected
    wake_at(now)        when to ask `take` again, if nothing else happens before
    complete(batch, s)  the batch has run for that many seconds
    retry(batch, …)     there was no memory for it: it waits again, and batches like it become smaller

No clock, no I/O, no arrays: the same code runs under the server, in tests and in simulations.

**When a batch goes.** A device is free and one of these holds: a bucket has as many rows as a batch may; its oldest item
has waited for `batch_timeout_s`; a deadline would be missed by waiting longer (learned run time, and at once while none
is); or waiting cannot bring anybody: its items run alone, the queue is full, or everyone who was here lately is here
again. The last compares the rows queued and running with `expected_rows`, the peak of recent batches: a lone caller
never waits, sixty-four callers in a loop form full batches.

**What goes into it.** The bucket that is due first gives its items in order of arrival. Is there room left, other
buckets of its family join as long as the padding costs less than the guests' share of the batch overhead (`RunTimes`).
An item is split over batches only if it alone exceeds what a batch may have: `max_batch_size` rows, or fewer where the
device had no memory for that many (`Ceilings`).
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush
from itertools import count
from typing import Any, Generic, NamedTuple, TypeVar

from ..errors import InvalidInput, QueueFull
from .bucket import Bucket
from .ceilings import Ceilings
from .run_times import RunTimes

_DECAY = 0.8
"""How much of the peak of rows outstanding is kept from one batch to the next: a burst is forgotten in ten batches."""

_HAND_OVER_S, _TURNAROUND_S = 0.0006, 0.00012
"""For how long a device stands idle between batches that it does not get ahead: until the answers of one are read and the next
is sent; and, if both were one, until the server has answered its callers and has their next requests, of each row of the half.

One that takes longer than that had better wait for those who come back and join it. Measured on two cores (docs/decisions.md).
"""

_NEARLY = 0.75
"""One that is not full has so much of the rows that run, or of half of a full one if that is more."""


@dataclass(frozen=True, slots=True)
class BatchingSettings:
    """How one model's rows are batched.

    max_batch_size: most rows that the model gets at once (Triton's name), in [1, 65536].
    batch_timeout_s: longest time that the oldest item waits for company while a device is free, in seconds; it is not
        waited out when nobody is expected. 0: never wait.
    max_queue_rows: rows that may wait; what comes on top is refused at once. An item larger than this never fits.
    """

    max_batch_size: int = 32
    batch_timeout_s: float = 0.002
    max_queue_rows: int = 4096

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "BatchingSettings":
        """From the resolved settings of a model (`settings.py`)."""
        return cls(settings["max_batch_size"], settings["batch_timeout_micros"] / 1e6, settings["max_queue_rows"])


class State(Enum):
    """Where an item is: QUEUED (some rows wait), TAKEN (all rows are in batches), GONE (cancelled or expired).

    Of an item that is GONE nothing waits; rows in a batch run to its end.
    """

    QUEUED = 1
    TAKEN = 2
    GONE = 3


class Item:
    """The rows of one request: `rows` >= 1 of them, of one `bucket`; `deadline_s` on the clock of `now`, or None.

    Waiting are the rows from `taken_rows` on, and before them the spans of `again`, whose batches found no memory.
    What most items never change is an attribute of the class: one is made for every request.
    """

    deadline_s: float | None = None
    arrival_s: float = 0.0
    taken_rows: int = 0
    again: tuple[tuple[int, int], ...] = ()
    state: State = State.QUEUED

    def __init__(self, rows: int, bucket: Bucket, deadline_s: float | None = None) -> None:
        self.rows = rows
        self.bucket = bucket
        if deadline_s is not None:
            self.deadline_s = deadline_s

    @property
    def waiting_rows(self) -> int:
        return self.rows - self.taken_rows + sum(stop - start for start, stop in self.again)


ItemT = TypeVar("ItemT", bound=Item)

_QUEUED, _TAKEN, _GONE = State  # a member of an Enum is looked up in Python


class Slice(NamedTuple, Generic[ItemT]):
    """Rows `start` to `stop` of an item, as they stand in a batch."""

    item: ItemT
    start: int
    stop: int


@dataclass(slots=True, eq=False)
class Batch(Generic[ItemT]):
    """What runs at once: `rows` rows in `slices`, in order, padded to `bucket`; formed at `taken_s`."""

    slices: list[Slice[ItemT]]
    rows: int
    bucket: Bucket
    taken_s: float


@dataclass(slots=True)
class _Queue(Generic[ItemT]):
    """The items of one bucket in order of arrival; those that are GONE are skipped when they come to the front."""

    bucket: Bucket
    cells: int
    rows: int = 0
    items: deque[ItemT] = field(default_factory=deque)
    deadlines: list[tuple[float, int, ItemT]] = field(default_factory=list)
    """A heap; items that no longer wait stay in it until they come to its top."""

    def oldest(self) -> ItemT:
        """The item that has waited longest; the queue must hold rows."""
        items = self.items
        while (item := items[0]).state is _GONE:
            items.popleft()
        return item

    def earliest_deadline_s(self) -> float:
        """Infinity while no item has one."""
        deadlines = self.deadlines
        while deadlines and deadlines[0][2].state is not _QUEUED:
            heappop(deadlines)
        return deadlines[0][0] if deadlines else math.inf


class BatchingPolicy(Generic[ItemT]):
    """One model's queue; `now` must not go back between calls."""

    def __init__(self, settings: BatchingSettings, run_times: RunTimes) -> None:
        self.settings = settings
        self.run_times = run_times
        self.ceilings = Ceilings()
        self.queued_rows = 0
        self.running_rows = 0
        self.expected_rows = 0.0
        """The peak of rows queued and running, as of late: so many are waited for."""
        self.queued_deadlines = 0
        """How many items wait that have a deadline: most models never see one, and need not look."""
        self._no_deadline_before_s = math.inf
        self._queues: dict[Bucket, _Queue[ItemT]] = {}
        self._sequence = count()

    def refusal(self) -> QueueFull:
        """The error for a request that does not fit, with the time that the queue needs to empty."""
        limit = self.settings.max_queue_rows
        seconds = sum(self.run_times.estimate_s(queue.rows, queue.bucket) for queue in self._queues.values())
        return QueueFull(f"queued rows = {self.queued_rows}, must stay within {limit}", max(1.0, seconds))

    def offer(self, item: ItemT, now: float) -> None:
        """Queue the item. Raises QueueFull; InvalidInput for one that even an empty queue could not hold."""
        limit = self.settings.max_queue_rows
        if item.rows > limit:
            raise InvalidInput(f"rows = {item.rows}, must be in [1, {limit}]")
        if self.queued_rows + item.rows > limit:
            raise self.refusal()
        queue = self._queues.get(item.bucket) or self._queue(item.bucket)  # mostly a call less
        item.arrival_s = now
        queue.items.append(item)
        queue.rows += item.rows
        self.queued_rows += item.rows
        if item.deadline_s is not None:
            self._watch_deadline(queue, item, item.deadline_s)

    def cancel(self, item: ItemT) -> None:
        """Drop the rows of the item that still wait; those that run will not wait again."""
        was_queued = item.state is State.QUEUED
        item.state = State.GONE
        if not was_queued:
            return
        if item.deadline_s is not None:
            self.queued_deadlines -= 1
        queue = self._queues[item.bucket]
        self._remove_rows(queue, item.waiting_rows)

    def expire(self, now: float) -> list[ItemT]:
        """Drop and return the items whose deadline has come."""
        expired: list[ItemT] = []
        if now < self._no_deadline_before_s:  # mostly so: no need to look at each queue
            return expired
        for queue in list(self._queues.values()):
            while queue.earliest_deadline_s() <= now:
                item = heappop(queue.deadlines)[2]
                self.cancel(item)
                expired.append(item)
        self._no_deadline_before_s = min((q.earliest_deadline_s() for q in self._queues.values()), default=math.inf)
        return expired

    def clear(self) -> list[ItemT]:
        """Drop and return all items of which rows wait."""
        items = [item for queue in self._queues.values() for item in queue.items if item.state is State.QUEUED]
        for item in items:
            self.cancel(item)
        return items

    def take(
        self, now: float, *, flush: bool = False, ahead: bool = False, overlaps: bool = True
    ) -> Batch[ItemT] | None:
        """The batch that a free device should run now, or None if waiting is better.

        flush: wait for nobody, the server is draining. ahead: no device is free. Then a full batch goes, if the devices do
        something of it meanwhile (overlaps), and a short one that is full or has all who can come. Expired items must have
        been dropped (`expire`) before.
        """
        if ahead and not self._may_go_ahead():
            return None
        due_s, first = math.inf, None
        for queue in self._queues.values():
            if (queue_due_s := self._due_s(queue)) < due_s:
                due_s, first = queue_due_s, queue
        if first is None or not (flush or due_s <= now or self._nobody_can_come()):
            return None
        if ahead and not self._goes_ahead(first.bucket, overlaps):
            return None
        self._expect(self.queued_rows + self.running_rows)
        slices: list[Slice[ItemT]] = []
        bucket = first.bucket
        rows = self._fill(first, slices, self._most_rows(bucket))
        # A batch that is full, rows without axes and an empty queue only spare the search: it would find nobody.
        if rows < self.settings.max_batch_size and bucket.axes and not bucket.alone and self._queues:
            bucket, rows = self._join_neighbours(bucket, slices, rows)
        self.running_rows += rows
        return Batch(slices, rows, bucket, now)

    def take_alone(self, item: ItemT, now: float) -> Batch[ItemT] | None:
        """A batch of a single row that has not been offered, if nothing waits or runs and nobody else is expected."""
        if item.rows != 1 or self.queued_rows or self.running_rows or self.expected_rows >= 1.5:
            return None
        self._expect(1)
        item.arrival_s = now
        item.state = _TAKEN
        self.running_rows = 1
        return Batch([Slice(item, 0, 1)], 1, item.bucket, now)

    def wake_at(self, now: float) -> float | None:
        """When `take` should be asked again while a device is free: never before `now`; None with an empty queue."""
        if not self.queued_rows:
            return None
        if self._nobody_can_come():
            return now
        return max(now, min(map(self._due_s, self._queues.values())))

    def next_deadline_s(self) -> float | None:
        """When `expire` should be asked while no device is free: no item that waits has an earlier deadline."""
        return self._no_deadline_before_s if self.queued_deadlines else None

    def complete(self, batch: Batch[ItemT], seconds: float | None) -> None:
        """The batch left its device after `seconds`; None if it failed and its time says nothing."""
        self.running_rows -= batch.rows
        if seconds is not None:
            self.run_times.observe(batch.rows, batch.bucket, seconds)
            if self.ceilings.steps:
                self.ceilings.ran(batch.bucket, self.settings.max_batch_size)

    def retry(self, batch: Batch[ItemT], slices: Iterable[Slice[ItemT]], rows: int) -> None:
        """After `complete`: there was no memory for `rows` >= 2 rows of the batch at once, and `slices` did not run.

        They wait again, at the front of their queues and for smaller batches; not those of items that are GONE.
        """
        self.ceilings.ran_out(batch.bucket, rows)
        for item, start, stop in reversed([*slices]):
            if item.state is State.GONE:
                continue
            queue = self._queue(item.bucket)
            if item.state is State.TAKEN:
                item.state = State.QUEUED
                queue.items.appendleft(item)
                if item.deadline_s is not None:
                    self._watch_deadline(queue, item, item.deadline_s)
            item.again = ((start, stop), *item.again)
            queue.rows += stop - start
            self.queued_rows += stop - start

    def _expect(self, outstanding: int) -> None:
        """A batch begins while so many rows wait or run."""
        self.expected_rows = max(outstanding, _DECAY * self.expected_rows + (1 - _DECAY) * outstanding)

    def _nobody_can_come(self) -> bool:
        if self.queued_rows >= self.settings.max_queue_rows:
            return True
        return self.queued_rows + self.running_rows > self.expected_rows - 0.5  # a mean: half a row is nobody

    def _may_go_ahead(self) -> bool:
        """What spares most arrivals during a batch the search for the first queue that is due."""
        if self.queued_rows >= self.settings.max_batch_size or self.ceilings.steps:
            return True
        return self._all_are_here(self.queued_rows) or any(queue.bucket.alone for queue in self._queues.values())

    def _goes_ahead(self, bucket: Bucket, overlaps: bool) -> bool:
        family = [queue.rows for queue in self._queues.values() if queue.bucket.family == bucket.family]
        rows = min(sum(family), self._most_rows(bucket))
        is_full = bucket.alone or rows == self._most_rows(bucket)
        if is_full and overlaps:
            return True
        expected_s = self.run_times.estimate_s(rows, bucket)
        is_short = 0 < expected_s <= _HAND_OVER_S + rows * _TURNAROUND_S
        return is_short and (is_full or self._all_are_here(rows))

    def _all_are_here(self, rows: int) -> bool:
        """Whether so many rows are a batch of its own, and nobody else can come before one ends."""
        least = _NEARLY * max(self.running_rows, self.settings.max_batch_size / 2)
        return rows >= least and self._nobody_can_come()

    def _most_rows(self, bucket: Bucket) -> int:
        most = self.settings.max_batch_size
        return self.ceilings.rows(bucket, most) if self.ceilings.steps else most

    def _due_s(self, queue: _Queue[ItemT]) -> float:
        """When the queue's first batch must go, at the latest; its oldest item's arrival if waiting gains nothing."""
        bucket, rows = queue.bucket, queue.rows
        due_s = arrival_s = queue.oldest().arrival_s
        most = self.settings.max_batch_size if not self.ceilings.steps else self._most_rows(bucket)
        if rows < most and not bucket.alone:
            due_s += self.settings.batch_timeout_s
        if queue.deadlines:
            run_s = self.run_times.estimate_s(min(rows, most), bucket)
            due_s = min(due_s, queue.earliest_deadline_s() - run_s if run_s else arrival_s)
        return due_s

    def _fill(self, queue: _Queue[ItemT], slices: list[Slice[ItemT]], room: int) -> int:
        """Move items from the queue's front into `slices` while they fit into `room` rows; the rows moved."""
        moved = 0
        alone = queue.bucket.alone
        while queue.rows > moved and moved < room:
            item = queue.oldest()
            again = item.again
            start, end = again[0] if again else (item.taken_rows, item.rows)
            stop = end
            if stop - start > room - moved:
                if item.rows <= self._most_rows(queue.bucket):
                    break
                stop = start + room - moved
            slices.append(Slice(item, start, stop))
            moved += stop - start
            if again:
                item.again = again = ((stop, end), *again[1:]) if stop < end else again[1:]
            else:
                item.taken_rows = stop
            if not again and item.taken_rows == item.rows:
                item.state = _TAKEN
                if item.deadline_s is not None:
                    self.queued_deadlines -= 1
                queue.items.popleft()
            if alone:
                break
        self._remove_rows(queue, moved)
        return moved

    def _join_neighbours(self, bucket: Bucket, slices: list[Slice[ItemT]], rows: int) -> tuple[Bucket, int]:
        """Let other buckets of the family join where the padding costs less than their rows' share of the overhead.

        Not less than all of it: left here, they would not run alone, but with rows of their length that come meanwhile.
        """
        overhead_s, slope_s = self.run_times.coefficients(bucket.family)
        own_cells = bucket.cells
        for queue in self._nearest(bucket):
            joined = bucket.joined(queue.bucket)
            room = self._most_rows(joined) - rows
            if room <= 0:  # `_fill` would find as much
                continue
            guests = min(queue.rows, room)
            cells = joined.cells
            padding = rows * (cells - own_cells) + guests * (cells - queue.cells)
            if slope_s * padding * (rows + guests) >= overhead_s * guests:
                continue
            moved = self._fill(queue, slices, room)
            if moved:
                bucket, own_cells, rows = joined, cells, rows + moved
                if rows == self.settings.max_batch_size:
                    break
        return bucket, rows

    def _nearest(self, bucket: Bucket) -> Iterable[_Queue[ItemT]]:
        family = [queue for queue in self._queues.values() if queue.bucket.family == bucket.family]
        cells = bucket.cells
        return sorted(family, key=lambda queue: abs(queue.cells - cells))

    def _queue(self, bucket: Bucket) -> _Queue[ItemT]:
        queue = self._queues.get(bucket)
        if queue is None:
            queue = self._queues[bucket] = _Queue(bucket, bucket.cells)
        return queue

    def _watch_deadline(self, queue: _Queue[ItemT], item: ItemT, deadline_s: float) -> None:
        heappush(queue.deadlines, (deadline_s, next(self._sequence), item))
        self.queued_deadlines += 1
        if deadline_s < self._no_deadline_before_s:
            self._no_deadline_before_s = deadline_s

    def _remove_rows(self, queue: _Queue[ItemT], rows: int) -> None:
        queue.rows -= rows
        self.queued_rows -= rows
        if not queue.rows:
            self._queues.pop(queue.bucket, None)
