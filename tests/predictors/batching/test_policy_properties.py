"""Whatever happens in whatever order: every row offered comes back exactly once, as answer or as error."""

import operator
from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torpor.predictors.batching.bucket import Bucket
from torpor.predictors.batching.policy import Batch, BatchingPolicy, BatchingSettings, Item, State
from torpor.predictors.batching.run_times import RunTimes
from torpor.predictors.errors import InvalidInput, QueueFull

BUCKETS = [
    Bucket("fixed"), Bucket("tokens", (8,)), Bucket("tokens", (16,)), Bucket("tokens", (64,)), Bucket("one", (8,), True),
]  # fmt: skip


class PolicyMachine(RuleBasedStateMachine):
    """Offers, departures, deadlines and batches in any order, on a clock that only goes forward."""

    @initialize(batch=st.integers(1, 8), wait_s=st.sampled_from([0.0, 0.002, 1.0]), queue=st.integers(1, 40))
    def start(self, batch: int, wait_s: float, queue: int) -> None:
        self.limits = BatchingSettings(batch, wait_s, queue)
        self.policy = BatchingPolicy(self.limits, RunTimes())
        self.now = 0.0
        self.live: list[Item] = []
        self.returned: dict[int, list[int]] = defaultdict(list)
        """By item: the rows that came back, as answer or as error."""
        self.running: list[Batch] = []
        self.kept: list[Item] = []

    @rule(rows=st.integers(1, 50), bucket=st.sampled_from(BUCKETS), patience_s=st.none() | st.floats(0.001, 2.0))
    def offer(self, rows: int, bucket: Bucket, patience_s: float | None) -> None:
        item = Item(rows, bucket, None if patience_s is None else self.now + patience_s)
        before = self.policy.queued_rows
        try:
            self.policy.offer(item, self.now)
        except InvalidInput:
            assert rows > self.limits.max_queue_rows
        except QueueFull:
            assert before + rows > self.limits.max_queue_rows
            assert self.policy.queued_rows == before
        else:
            self.live.append(item)
            self.kept.append(item)

    @rule(rows=st.integers(1, 2), bucket=st.sampled_from(BUCKETS))
    def take_alone(self, rows: int, bucket: Bucket) -> None:
        item = Item(rows, bucket)
        others = self.policy.queued_rows + self.policy.running_rows
        batch = self.policy.take_alone(item, self.now)
        if batch is None:
            assert rows > 1 or others or self.policy.expected_rows > 1
            return
        assert (rows, others, batch.rows) == (1, 0, 1)
        self.kept.append(item)
        self.running.append(batch)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.live))
        waiting = self.waiting(item)
        self.policy.cancel(item)
        self.give_back(item, waiting)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def cancel_running(self, data: st.DataObject) -> None:
        piece = data.draw(st.sampled_from(data.draw(st.sampled_from(self.running)).slices))
        waiting = self.waiting(piece.item) if piece.item in self.live else []
        self.policy.cancel(piece.item)
        self.give_back(piece.item, waiting)

    @rule(seconds=st.floats(0, 0.5))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        waiting = {id(item): self.waiting(item) for item in self.live}
        for item in self.policy.expire(self.now):
            assert item.deadline_s is not None
            assert item.deadline_s <= self.now
            self.give_back(item, waiting[id(item)])

    @rule(flush=st.booleans())
    def take(self, flush: bool) -> None:
        wake_s = self.policy.wake_at(self.now)
        batch = self.policy.take(self.now, flush=flush)
        if batch is None:
            assert wake_s is None or wake_s > self.now or not self.policy.queued_rows
            return
        assert 1 <= batch.rows <= self.policy.ceilings.rows(batch.bucket, self.limits.max_batch_size)
        assert batch.rows == sum(piece.stop - piece.start for piece in batch.slices)
        assert {piece.item.bucket.family for piece in batch.slices} == {batch.bucket.family}
        assert not batch.bucket.alone or len(batch.slices) == 1
        for piece in batch.slices:
            assert all(map(operator.le, piece.item.bucket.axes, batch.bucket.axes))
            if piece.item.state is State.TAKEN and piece.item in self.live:
                self.live.remove(piece.item)
        self.running.append(batch)

    @precondition(lambda self: self.running)
    @rule(seconds=st.floats(0.0001, 1.0))
    def complete(self, seconds: float) -> None:
        batch = self.running.pop(0)
        self.policy.complete(batch, seconds)
        for item, start, stop in batch.slices:
            self.returned[id(item)] += range(start, stop)

    @precondition(lambda self: any(batch.rows > 1 for batch in self.running))
    @rule(data=st.data())
    def run_out_of_memory(self, data: st.DataObject) -> None:
        """All of a batch, or a part of what a poison left of it, did not run; the others are answered."""
        batch = data.draw(st.sampled_from([batch for batch in self.running if batch.rows > 1]))
        self.running.remove(batch)
        self.policy.complete(batch, None)
        short = data.draw(st.sets(st.sampled_from(range(len(batch.slices))), min_size=1))
        rows = data.draw(st.integers(2, batch.rows))
        for n, (item, start, stop) in enumerate(batch.slices):
            if n not in short or item.state is State.GONE:
                self.returned[id(item)] += range(start, stop)
            elif item not in self.live:
                self.live.append(item)
        self.policy.retry(batch, [batch.slices[n] for n in sorted(short)], rows)
        assert self.policy.ceilings.rows(batch.bucket, self.limits.max_batch_size) <= rows // 2

    def waiting(self, item: Item) -> list[int]:
        """The rows of the item that are neither back nor in a batch."""
        gone = {*self.returned[id(item)]}
        for batch in self.running:
            gone |= {row for piece in batch.slices if piece.item is item for row in range(piece.start, piece.stop)}
        return [row for row in range(item.rows) if row not in gone]

    def give_back(self, item: Item, rows: list[int]) -> None:
        """The rows that wait are refused."""
        self.returned[id(item)] += rows
        if item in self.live:
            self.live.remove(item)

    @invariant()
    def the_counts_are_right(self) -> None:
        if hasattr(self, "policy"):
            assert self.policy.queued_rows == sum(len(self.waiting(item)) for item in self.live)
            assert self.policy.queued_deadlines == sum(item.deadline_s is not None for item in self.live)
            assert self.policy.running_rows == sum(batch.rows for batch in self.running)

    def teardown(self) -> None:
        """At the end everything that waits can be had by flushing, and then every row has come back exactly once."""
        if not hasattr(self, "policy"):
            return
        while self.policy.queued_rows:
            self.take(flush=True)
        while self.running:
            self.complete(0.1)
        for item in self.kept:
            assert sorted(self.returned[id(item)]) == [*range(item.rows)]


TestPolicy = PolicyMachine.TestCase
TestPolicy.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
