"""What a batch adds to the counts."""

from torpor.predictors.batching.bucket import Bucket
from torpor.predictors.batching.policy import Batch, Slice
from torpor.predictors.serving.metrics import Histogram, ModelMetrics
from torpor.predictors.signature import Bound


def bound(rows: int, arrival_s: float, *sizes: int) -> Bound:
    made = Bound({}, rows, Bucket("x", sizes), sizes)
    made.arrival_s = arrival_s
    return made


def test_values_observed_together_count_as_one_by_one() -> None:
    """Whether they fall under one bound or under several."""
    for values in ([], [0.1], [0.1, 0.2, 0.3], [0.1, 0.6, 0.9, 5.0]):
        together, single = Histogram((0.5, 1.0)), Histogram((0.5, 1.0))
        together.observe_sorted(values)
        for value in values:
            single.observe(value)
        assert (together.counts, together.sum) == (single.counts, single.sum)


def test_padding_and_waiting_are_counted_once_a_request() -> None:
    """Cells as sent and as run; of a split request only the first part's wait."""
    metrics = ModelMetrics("m", "1", lambda: 0)
    first, split = bound(2, 1.0, 3), bound(9, 1.5, 5)
    metrics.batch_ran(Batch([Slice(first, 0, 2), Slice(split, 0, 4)], 6, Bucket("x", (8,)), 2.0), 0.1)
    assert (metrics.cells, metrics.padded_cells) == (2 * 3 + 4 * 5, 6 * 5)
    metrics.batch_ran(Batch([Slice(split, 4, 9)], 5, Bucket("x", (8,)), 3.0), 0.1)
    assert (sum(metrics.queue_seconds.counts), metrics.queue_seconds.sum) == (2, 1.5)
    metrics.batch_ran(Batch([Slice(bound(4, 3.0), 0, 4)], 4, Bucket("x"), 3.0), 0.1)
    assert (metrics.cells, metrics.padded_cells) == (26 + 25 + 4, 30 + 25 + 4)
