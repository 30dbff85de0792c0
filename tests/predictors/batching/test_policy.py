"""The batching policy, told the time by hand: which rows go, when, and what is refused."""

import pytest
from torpor.predictors.batching import ceilings
from torpor.predictors.batching.bucket import Bucket
from torpor.predictors.batching.policy import BatchingPolicy, BatchingSettings, Item, State
from torpor.predictors.batching.run_times import RunTimes
from torpor.predictors.errors import InvalidInput, QueueFull

A, B = Bucket("a"), Bucket("b")
WAIT_S = 0.010


def policy(*, batch: int = 4, queue: int = 100, wait_s: float = WAIT_S, callers: int = 0) -> BatchingPolicy:
    """A policy that has lately seen `callers` rows outstanding, so that it waits for that many."""
    made = BatchingPolicy(BatchingSettings(batch, wait_s, queue), RunTimes())
    made.expected_rows = float(callers)
    return made


def offer(
    to: BatchingPolicy, now: float, *rows: int, bucket: Bucket = A, deadline_s: float | None = None
) -> list[Item]:
    items = [Item(count, bucket, deadline_s) for count in rows]
    for item in items:
        to.offer(item, now)
    return items


def taken(to: BatchingPolicy, now: float, *, flush: bool = False) -> list[Item] | None:
    batch = to.take(now, flush=flush)
    return None if batch is None else [piece.item for piece in batch.slices]


def test_a_lone_caller_never_waits() -> None:
    """With nobody else seen lately a row goes at once, again and again."""
    p = policy()
    for now in (0.0, 1.0, 1.001):
        items = offer(p, now, 1)
        batch = p.take(now)
        assert batch is not None
        assert [piece.item for piece in batch.slices] == items
        p.complete(batch, 0.0005)


def test_a_row_runs_alone_where_nobody_else_is() -> None:
    """Without having been offered; while it runs, whoever comes is not alone."""
    p = policy()
    item = Item(1, A)
    batch = p.take_alone(item, 3.0)
    assert batch is not None
    assert (batch.slices, batch.rows, batch.bucket, batch.taken_s) == ([(item, 0, 1)], 1, A, 3.0)
    assert (item.arrival_s, item.state, p.running_rows, p.queued_rows) == (3.0, State.TAKEN, 1, 0)
    assert p.take_alone(Item(1, A), 3.0) is None
    p.complete(batch, 0.1)
    assert p.take_alone(Item(1, A), 4.0) is not None


def test_only_a_full_batch_goes_ahead_while_others_can_come() -> None:
    """Rows of another family would not be in it; it is as large as there is memory for; an item that runs alone is one."""
    p = policy(callers=9)
    offer(p, 0.0, 1, 1, 1)
    offer(p, 0.0, 1, 1, bucket=B)
    assert p.take(9.0, ahead=True) is None
    p.ceilings.ran_out(A, 4)
    batch = p.take(9.0, ahead=True)
    assert batch is not None
    assert (batch.bucket, batch.rows) == (A, 2)
    few = policy(callers=9)
    few.ceilings.ran_out(A, 4)
    offer(few, 0.0, 1, 1)
    assert few.take(9.0, ahead=True) is not None
    lone = policy(callers=9)
    offer(lone, 0.0, 1, bucket=Bucket("c", alone=True))
    assert lone.take(0.0, ahead=True) is not None


def short(rows: int) -> float:
    """Seconds of a batch that is just short enough to go ahead."""
    return 0.0006 + 0.00012 * rows


def taken_ahead(
    running: int, queued: int, callers: int, seconds: float, *, overlaps: bool = False, others: int = 0
) -> int | None:
    """How many rows go, of 16 that may, while `running` run and `queued` wait, and as many as that usually take `seconds`."""
    p = policy(batch=16)
    offer(p, 0.0, *[1] * running)
    assert taken(p, 0.0) is not None
    p.run_times.observe(min(queued, 16), A, seconds)
    p.expected_rows = callers
    offer(p, 1.0, *[1] * queued)
    offer(p, 1.0, *[1] * others, bucket=B)
    batch = p.take(9.0, ahead=True, overlaps=overlaps)  # nobody waits for anybody any more
    return None if batch is None else batch.rows


@pytest.mark.parametrize(
    ("running", "queued", "callers", "goes"),
    [
        (12, 9, 21, True),
        (12, 8, 20, False),  # less than three quarters of what runs, which may join it
        (12, 9, 22, False),  # somebody is on the way
        (6, 6, 12, True),
        (5, 5, 10, False),  # less than three quarters of half a full one
    ],
)
def test_a_short_batch_goes_ahead_when_all_are_here(running: int, queued: int, callers: int, goes: bool) -> None:
    """If it is about as large as what they would make together with those who come back: else it waits for these."""
    assert taken_ahead(running, queued, callers, short(queued)) == (queued if goes else None)


def test_a_batch_that_is_not_short_waits_for_those_who_come_back() -> None:
    """What one more batch costs is more than what the device would wait; one that nobody knows is taken for long."""
    for seconds in (short(9) + 1e-6, 0.0):
        assert taken_ahead(12, 9, 21, seconds) is None
        assert taken_ahead(12, 9, 21, seconds, overlaps=True) is None


def test_a_full_batch_goes_ahead_if_it_is_short_or_the_device_overlaps() -> None:
    """It may wait for other reasons: its rows' deadlines count, and a device that is free sooner takes it."""
    assert taken_ahead(12, 16, 99, short(16)) == 16
    assert taken_ahead(12, 16, 99, short(16) + 1e-6) is None
    assert taken_ahead(12, 16, 99, 9.0, overlaps=True) == 16


def test_rows_of_another_family_make_no_batch_larger_that_goes_ahead() -> None:
    assert taken_ahead(8, 5, 18, short(5), others=5) is None


def test_a_row_does_not_run_alone_where_others_are() -> None:
    """Some wait, some are expected, or it is two rows: then it is queued like any other."""
    p = policy(callers=3)
    assert p.take_alone(Item(1, A), 0.0) is None
    p = policy()
    assert p.take_alone(Item(2, A), 0.0) is None
    offer(p, 0.0, 1)
    assert p.take_alone(Item(1, B), 0.0) is None


def test_callers_that_come_alone_are_expected_no_longer() -> None:
    """After a burst it takes as many batches as it would with rows that are queued."""
    p = policy(callers=1)
    p.expected_rows = 1.4
    batch = p.take_alone(Item(1, A), 0.0)
    assert batch is not None
    assert p.expected_rows == pytest.approx(0.8 * 1.4 + 0.2)


def test_rows_wait_for_callers_that_were_here_lately() -> None:
    """Of three callers one is back: it waits for the others, and goes with them as soon as they are here."""
    p = policy(callers=3)
    first = offer(p, 0.0, 1)
    assert p.take(0.001) is None
    others = offer(p, 0.002, 1, 1)
    assert taken(p, 0.002) == first + others


def test_callers_whose_rows_are_running_are_not_waited_for() -> None:
    """Who waits for an answer cannot come: the rows that run count as present."""
    p = policy(batch=2, callers=4)
    offer(p, 0.0, 1, 1)
    running = p.take(0.0)
    assert running is not None
    assert running.rows == 2
    rest = offer(p, 0.001, 1, 1)
    assert taken(p, 0.001) == rest


def test_a_row_waits_no_longer_than_the_batch_timeout() -> None:
    """When the expected callers stay away, the timeout of the oldest row ends the wait, and wake_at names that time."""
    p = policy(callers=3)
    items = offer(p, 1.0, 1)
    assert p.wake_at(1.0) == pytest.approx(1.0 + WAIT_S)
    assert p.take(1.0 + WAIT_S - 1e-6) is None
    assert taken(p, 1.0 + WAIT_S) == items


def test_a_burst_is_expected_again_at_once() -> None:
    """The peak counts, not the mean: eight that came together are waited for the next time."""
    p = policy(batch=8)
    offer(p, 0.0, *[1] * 8)
    batch = p.take(0.0)
    assert batch is not None
    p.complete(batch, 0.001)
    offer(p, 0.001, *[1] * 7)
    assert p.take(0.001) is None
    offer(p, 0.002, 1)
    assert p.take(0.002) is not None


def test_what_is_due_already_wakes_now() -> None:
    """Not in the past, where no timer can be set."""
    p = policy(callers=3)
    offer(p, 0.0, 1)
    assert p.wake_at(1.0) == 1.0


def test_callers_that_stay_away_are_forgotten() -> None:
    """After a burst, waits in vain become rarer and end: a lone caller is served at once again."""
    p = policy(callers=64)
    now, waits = 0.0, 0
    for _ in range(40):
        offer(p, now, 1)
        if p.take(now) is None:
            waits += 1
            now += WAIT_S
            assert p.take(now) is not None
        p.running_rows = 0
        now += 1.0
    assert waits < 25
    offer(p, now, 1)
    assert p.take(now) is not None


def test_a_full_batch_goes_at_once() -> None:
    """max_batch_size rows of a bucket need no company; what is left over waits."""
    p = policy(callers=100)
    items = offer(p, 0.0, 1, 1, 2, 1)
    assert taken(p, 0.0) == items[:3]
    assert p.take(0.0) is None
    assert p.queued_rows == 1


def test_buckets_do_not_mix() -> None:
    """Rows of different families never share a batch, and the older one goes first."""
    p = policy(callers=100)
    b = offer(p, 0.0, 1, bucket=B)
    a = offer(p, 0.001, 1, bucket=A)
    assert taken(p, 1.0) == b
    assert taken(p, 1.0) == a


@pytest.mark.parametrize("rows", [3, 4])
def test_a_request_of_several_rows_is_not_split_while_it_fits_a_batch(rows: int) -> None:
    """Rows that don't fit beside two others wait for the next batch, in one piece, and if they fill it."""
    p = policy(callers=100)
    items = offer(p, 0.0, 2, rows)
    assert taken(p, 0.0) == items[:1]
    assert taken(p, 1.0) == items[1:]


def test_an_oversized_request_is_split_and_fills_batches() -> None:
    """Ten rows with batches of four: 4, 4 and 2, in order, and the last batch takes company along."""
    p = policy(callers=100)
    (big,) = offer(p, 0.0, 10)
    offer(p, 0.0, 1)
    spans = []
    while (batch := p.take(1.0)) is not None:
        spans.append([(piece.item is big, piece.start, piece.stop) for piece in batch.slices])
    assert spans == [[(True, 0, 4)], [(True, 4, 8)], [(True, 8, 10), (False, 0, 1)]]


def test_a_deadline_ends_the_wait_in_time_for_the_run() -> None:
    """A batch that takes 4 ms leaves at the latest 4 ms before its earliest deadline."""
    p = policy(callers=100)
    p.run_times.observe(1, A, 0.004)
    items = offer(p, 0.0, 1, deadline_s=0.008)
    assert p.wake_at(0.0) == pytest.approx(0.004)
    assert p.take(0.0039) is None
    assert taken(p, 0.0041) == items


def timed(milliseconds_a_row: float = 1.0, **options: int) -> BatchingPolicy:
    """A policy that expects many callers and knows what rows of either bucket cost."""
    p = policy(callers=100, **options)
    for bucket in (A, B):
        for rows in (1, 2, 4):
            p.run_times.observe(rows, bucket, rows * milliseconds_a_row / 1000)
    return p


def test_a_deadline_leaves_time_for_the_rows_that_wait() -> None:
    """One row of 1 ms goes 1 ms before its deadline, not as early as a full batch would have to."""
    p = timed()
    offer(p, 0.0, 1, deadline_s=0.008)
    assert p.wake_at(0.0) == pytest.approx(0.007)


def test_a_far_deadline_does_not_lengthen_the_wait() -> None:
    """The batch timeout counts as for anybody."""
    p = timed()
    offer(p, 0.0, 1, deadline_s=9.0)
    assert p.wake_at(0.0) == pytest.approx(WAIT_S)


def test_a_deadline_leaves_time_for_one_batch_of_many_rows() -> None:
    """Eight rows with a deadline are two batches: the first has time enough behind an older full one."""
    p = timed()
    older = offer(p, 0.0, 4, bucket=B)
    offer(p, 0.005, *[1] * 8, deadline_s=0.007)
    assert taken(p, 0.005) == older


def test_expired_items_are_dropped_and_returned() -> None:
    """An item whose deadline has come is never run; the others are."""
    p = policy(callers=100)
    late = offer(p, 0.0, 1, deadline_s=0.005)
    kept = offer(p, 0.0, 1, deadline_s=9.0)
    assert p.next_deadline_s() == 0.005
    assert p.expire(0.005) == late
    assert late[0].state is State.GONE
    assert taken(p, 1.0) == kept


def test_a_cancelled_item_is_not_run_and_frees_its_place() -> None:
    """The rows of a caller that left count no longer: for the batch, for the queue's limit."""
    p = policy(queue=2, callers=100)
    first, second = offer(p, 0.0, 1, 1)
    p.cancel(first)
    third = offer(p, 0.0, 1)
    assert taken(p, 1.0) == [second, *third]
    p.cancel(second)  # it runs: nothing to drop
    assert p.queued_rows == 0


def test_the_newest_is_refused_when_the_queue_is_full() -> None:
    """Over max_queue_rows a request is refused as a whole, with the time to come back; the others stay."""
    p = policy(queue=4)
    p.run_times.observe(4, A, 8.0)
    items = offer(p, 0.0, 3)
    with pytest.raises(QueueFull, match=r"queued rows = 3, must stay within 4") as refused:
        offer(p, 0.0, 2)
    assert refused.value.retry_after_s > 1.0
    items += offer(p, 0.0, 1)
    assert taken(p, 0.0) == items


def test_who_is_refused_comes_back_in_a_second_at_the_earliest() -> None:
    """However soon the queue is empty, and when nobody knows."""
    p = policy(queue=1)
    offer(p, 0.0, 1)
    assert p.refusal().retry_after_s == 1.0


def test_a_request_larger_than_the_queue_is_the_callers_error() -> None:
    """What can never fit is refused for good, not for a retry."""
    with pytest.raises(InvalidInput, match=r"rows = 5, must be in \[1, 4\]"):
        offer(policy(queue=4), 0.0, 5)


def test_flush_waits_for_nobody() -> None:
    """A draining server sends what it has."""
    p = policy(callers=100)
    items = offer(p, 0.0, 1)
    assert taken(p, 0.0, flush=True) == items


def test_clear_gives_up_everything_that_waits() -> None:
    """After clear nothing is left to take, and every waiting item has been handed back once."""
    p = policy(callers=100)
    gone, *items = offer(p, 0.0, 1, 1, 2) + offer(p, 0.0, 1, bucket=B)
    p.cancel(gone)
    assert p.clear() == items
    assert p.queued_rows == 0
    assert p.take(9.0, flush=True) is None


def short_and_long(overhead_s: float) -> tuple[BatchingPolicy, list[Item], list[Item]]:
    """Rows of 8 and of 16 cells wait; a batch costs `overhead_s` and 1 ms a cell."""
    p = policy(callers=100)
    short, long = Bucket("tokens", (8,)), Bucket("tokens", (16,))
    for cells in (short, long):
        for rows in (1, 2, 4):
            p.run_times.observe(rows, cells, overhead_s + 0.001 * rows * cells.cells)
    return p, offer(p, 0.0, 1, bucket=short), offer(p, 0.0, 1, bucket=long)


def test_lengths_share_a_batch_when_padding_is_cheaper_than_a_batch() -> None:
    """Eight padded cells at 1 ms are worth an overhead of 50 ms: one batch, padded to the longer."""
    p, short, long = short_and_long(overhead_s=0.050)
    batch = p.take(1.0)
    assert batch is not None
    assert [piece.item for piece in batch.slices] == short + long
    assert batch.bucket.axes == (16,)


def test_lengths_do_not_share_a_batch_when_padding_is_dearer() -> None:
    """With an overhead of 2 ms the same padding does not pay: two batches."""
    p, short, long = short_and_long(overhead_s=0.002)
    assert taken(p, 1.0) == short
    assert taken(p, 1.0) == long


def test_lengths_share_no_batch_while_nothing_is_known_of_its_cost() -> None:
    """Padding could be dear."""
    p = policy()
    items = [offer(p, 0.0, 1, bucket=Bucket("tokens", (cells,))) for cells in (8, 16)]
    assert [taken(p, 0.0), taken(p, 0.0)] == items


@pytest.mark.parametrize(
    ("hosts", "guests", "shared"), [(1, 1, True), (1, 3, True), (2, 2, True), (3, 1, False), (3, 3, False)]
)
def test_padding_may_cost_the_guests_share_of_the_overhead(hosts: int, guests: int, shared: bool) -> None:
    """Eight padded cells a host at 1 ms: less than an overhead of 50 ms each time, but a single guest has a quarter of it.

    Three guests are a single one where there is room for no more.
    """
    p, *_ = short_and_long(overhead_s=0.050)
    p.clear()
    short = offer(p, 0.0, *[1] * hosts, bucket=Bucket("tokens", (8,)))
    long = offer(p, 0.0, *[1] * guests, bucket=Bucket("tokens", (16,)))
    assert taken(p, 1.0) == (short + long if shared else short)


def test_a_batch_without_memory_waits_again_for_a_smaller_one() -> None:
    """It is back at the front, in order, and goes in halves; later ones are as small, those of another family are not."""
    p = policy(batch=8)
    items = offer(p, 0.0, 1, 1, 1, 1, 1, 1)
    batch = p.take(0.0)
    late = offer(p, 0.0, 1)
    assert batch is not None
    p.complete(batch, None)
    p.retry(batch, batch.slices, 6)
    assert p.queued_rows == 7
    assert taken(p, 0.0) == items[:3]
    assert taken(p, 0.0) == items[3:]
    assert taken(p, 0.1) == late
    others = offer(p, 1.0, 1, 1, 1, 1, bucket=B)
    assert taken(p, 2.0) == others


def test_an_item_above_the_ceiling_is_split() -> None:
    """Four rows that were not to be split are, once the device has memory for two only."""
    p = policy()
    (item,) = offer(p, 0.0, 4)
    batch = p.take(0.0)
    assert batch is not None
    p.complete(batch, None)
    p.retry(batch, batch.slices, 4)
    spans = []
    while (batch := p.take(0.0)) is not None:
        spans += [(piece.item is item, piece.start, piece.stop) for piece in batch.slices]
    assert spans == [(True, 0, 2), (True, 2, 4)]
    assert item.state is State.TAKEN


def test_a_ceiling_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """When enough batches ran below it they may be as large as before; those that failed say nothing."""
    monkeypatch.setattr(ceilings, "_TRIAL_BATCHES", 2)
    p = policy()
    p.ceilings.ran_out(A, 4)
    for seconds, lowest in ((None, 2), (0.1, 2), (None, 2), (0.1, None)):
        offer(p, 0.0, 1)
        batch = p.take(0.0)
        assert batch is not None
        p.complete(batch, seconds)
        assert p.ceilings.lowest() == lowest


def test_rows_run_again_while_later_rows_of_their_item_run() -> None:
    """Of an item over two batches the first has no memory: its rows come again, the others once."""
    p = policy()
    offer(p, 0.0, 7)
    first, second = p.take(0.0), p.take(1.0)
    assert first is not None
    assert second is not None
    p.complete(first, None)
    p.retry(first, first.slices, 4)
    spans = []
    while (batch := p.take(1.0)) is not None:
        spans += [(piece.start, piece.stop) for piece in batch.slices]
    assert spans == [(0, 2), (2, 4)]


def test_a_deadline_counts_again_for_rows_that_run_again() -> None:
    """What was taken in time and comes back expires like anything that waits."""
    p = policy()
    (item,) = offer(p, 0.0, 2, deadline_s=1.0)
    batch = p.take(0.0)
    assert batch is not None
    p.complete(batch, None)
    p.retry(batch, batch.slices, 2)
    assert p.next_deadline_s() == 1.0
    assert p.expire(1.0) == [item]
    assert p.queued_rows == 0


def test_larger_rows_have_the_ceiling_of_smaller_ones() -> None:
    """Rows of 8 tokens ran out: those of 16 get no more, and neither does a batch that both would share."""
    p, *_ = short_and_long(overhead_s=9.0)
    p.clear()
    p.ceilings.ran_out(Bucket("tokens", (16,)), 4)
    short = offer(p, 0.0, 1, 1, 1, bucket=Bucket("tokens", (8,)))
    long = offer(p, 0.0, 1, 1, 1, bucket=Bucket("tokens", (24,)))
    assert taken(p, 1.0) == long[:2]  # a full batch
    assert taken(p, 1.0) == short
    short = offer(p, 1.0, 1, bucket=Bucket("tokens", (8,)))
    assert taken(p, 2.0) == long[2:] + short


def test_a_bucket_at_its_ceiling_goes_at_once() -> None:
    """Two rows fill a batch of which the device can have two: waiting would bring nothing."""
    p = policy(callers=100)
    p.ceilings.ran_out(A, 4)
    items = offer(p, 0.0, 1, 1)
    assert taken(p, 0.0) == items


def test_a_full_queue_waits_for_nobody() -> None:
    """Who is expected would be refused."""
    p = policy(batch=32, queue=2, callers=100)
    items = offer(p, 0.0, 1)
    assert p.take(0.0) is None
    items += offer(p, 0.0, 1)
    assert p.wake_at(0.0) == 0.0
    assert taken(p, 0.0) == items


def test_items_that_run_alone_wait_for_nobody() -> None:
    """However many are expected, each is a batch of its own, in order of arrival; a large one is still split."""
    p = policy(callers=100)
    alone = Bucket("a", (8,), alone=True)
    items = offer(p, 0.0, 1, 6, 1, bucket=alone)
    assert p.wake_at(0.0) == 0.0
    batches = []
    while (batch := p.take(0.0)) is not None:
        batches.append([(piece.item, piece.stop - piece.start) for piece in batch.slices])
    assert batches == [[(items[0], 1)], [(items[1], 4)], [(items[1], 2)], [(items[2], 1)]]


def test_items_that_run_alone_join_no_neighbour() -> None:
    """However cheap the padding would be."""
    p, *_ = short_and_long(overhead_s=9.0)
    p.clear()
    items = [offer(p, 0.0, 1, bucket=Bucket("tokens", (cells,), alone=True))[0] for cells in (8, 16)]
    assert [taken(p, 0.0), taken(p, 0.0)] == [[item] for item in items]


def test_a_deadline_is_not_waited_out_while_run_times_are_unknown() -> None:
    """With a timeout longer than its deadline an item would expire beside a free device."""
    p = policy(callers=100, wait_s=9.0)
    items = offer(p, 0.0, 1, deadline_s=5.0)
    assert p.wake_at(0.0) == 0.0
    assert taken(p, 0.0) == items


def test_an_empty_policy_needs_no_timer() -> None:
    """Nothing waits: nothing to take, nothing to wake for."""
    p = policy()
    assert p.take(0.0) is None
    assert p.wake_at(0.0) is None
    assert p.next_deadline_s() is None
