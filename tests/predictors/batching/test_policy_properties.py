"""Whatever happens in whatever order: every row offered comes back exactly once, as answer or as error."""

from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torpor.predictors.batching.bucket import Bucket
from torpor.predictors.batching.policy import Batch, BatchingPolicy, BatchingSettings, Item
from torpor.predictors.batching.run_times import RunTimes
from torpor.predictors.errors import InvalidInput, QueueFull

BUCKETS = [Bucket("fixed"), Bucket("tokens", (8,)), Bucket("tokens", (16,)), Bucket("tokens", (64,))]


class PolicyMachine(RuleBasedStateMachine):
    """Offers, departures, deadlines and batches in any order, on a clock that only goes forward."""

    @initialize(batch=st.integers(1, 8), wait_s=st.sampled_from([0.0, 0.002, 1.0]), queue=st.integers(1, 40))
    def start(self, batch: int, wait_s: float, queue: int) -> None:
        self.limits = BatchingSettings(batch, wait_s, queue)
        self.policy = BatchingPolicy(self.limits, RunTimes())
        self.now = 0.0
        self.live: list[Item] = []
        self.returned: dict[int, list[tuple[int, int]]] = defaultdict(list)
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

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.live))
        self.policy.cancel(item)
        self.give_back(item, item.taken_rows, item.rows)

    @rule(seconds=st.floats(0, 0.5))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for item in self.policy.expire(self.now):
            assert item.deadline_s is not None
            assert item.deadline_s <= self.now
            self.give_back(item, item.taken_rows, item.rows)

    @rule(flush=st.booleans())
    def take(self, flush: bool) -> None:
        wake_s = self.policy.wake_at(self.now)
        batch = self.policy.take(self.now, flush=flush)
        if batch is None:
            assert wake_s is None or wake_s > self.now or not self.policy.queued_rows
            return
        assert 1 <= batch.rows <= self.limits.max_batch_size
        assert batch.rows == sum(piece.stop - piece.start for piece in batch.slices)
        assert {piece.item.bucket.family for piece in batch.slices} == {batch.bucket.family}
        for piece in batch.slices:
            assert piece.item.bucket.joined(batch.bucket) == batch.bucket
            self.give_back(piece.item, piece.start, piece.stop)
        self.running.append(batch)

    @precondition(lambda self: self.running)
    @rule(seconds=st.floats(0.0001, 1.0))
    def complete(self, seconds: float) -> None:
        self.policy.complete(self.running.pop(0), seconds)

    def give_back(self, item: Item, start: int, stop: int) -> None:
        """Rows `start` to `stop` are answered or refused; they follow on what came back before."""
        spans = self.returned[id(item)]
        if start < stop:
            assert start == (spans[-1][1] if spans else 0)
            spans.append((start, stop))
        if stop == item.rows and item in self.live:
            self.live.remove(item)

    @invariant()
    def the_counts_are_right(self) -> None:
        if hasattr(self, "policy"):
            assert self.policy.queued_rows == sum(item.rows - item.taken_rows for item in self.live)
            assert self.policy.running_rows == sum(batch.rows for batch in self.running)

    def teardown(self) -> None:
        """At the end everything that waits can be had by flushing, and then every row has come back once."""
        if not hasattr(self, "policy"):
            return
        while self.policy.queued_rows:
            self.take(flush=True)
        for item in self.kept:
            spans = self.returned[id(item)]
            assert spans[0][0] == 0
            assert spans[-1][1] == item.rows


TestPolicy = PolicyMachine.TestCase
TestPolicy.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
