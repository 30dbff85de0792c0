"""What a batch adds to the counts, and what of the policy is shown."""

import re

import pytest
from torpor.predictors.batching.bucket import Bucket
from torpor.predictors.batching.policy import Batch, BatchingPolicy, BatchingSettings, Slice
from torpor.predictors.batching.run_times import RunTimes
from torpor.predictors.serving.metrics import Histogram, ModelMetrics, ServerMetrics
from torpor.predictors.signature import Bound


def bound(rows: int, arrival_s: float, *sizes: int) -> Bound:
    made = Bound({}, rows, Bucket("x", sizes), sizes)
    made.arrival_s = arrival_s
    return made


def policy(most: int = 32) -> BatchingPolicy[Bound]:
    return BatchingPolicy(BatchingSettings(most), RunTimes())


def scraped(metrics: ModelMetrics) -> dict[str, float]:
    """What `/metrics` says of the model, without its labels of name and version."""
    server = ServerMetrics()
    server.models.append(metrics)
    lines = re.findall(r'^(torpor_\w+)\{model_name="m",model_version="1"(.*)\} (\S+)$', server.render().decode(), re.M)
    return {name + label: float(value) for name, label, value in lines}


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
    metrics = ModelMetrics("m", "1", policy())
    first, split = bound(2, 1.0, 3), bound(9, 1.5, 5)
    metrics.batch_ran(Batch([Slice(first, 0, 2), Slice(split, 0, 4)], 6, Bucket("x", (8,)), 2.0), 0.1)
    assert (metrics.cells, metrics.padded_cells) == (2 * 3 + 4 * 5, 6 * 5)
    metrics.batch_ran(Batch([Slice(split, 4, 9)], 5, Bucket("x", (8,)), 3.0), 0.1)
    assert (sum(metrics.queue_seconds.counts), metrics.queue_seconds.sum) == (2, 1.5)
    metrics.batch_ran(Batch([Slice(bound(4, 3.0), 0, 4)], 4, Bucket("x"), 3.0), 0.1)
    assert (metrics.cells, metrics.padded_cells) == (26 + 25 + 4, 30 + 25 + 4)


def test_what_the_policy_learned_is_shown() -> None:
    """The line, the times by rows up to the largest batch, who is expected; of the family that runs most."""
    known = policy(most=48)
    metrics = ModelMetrics("m", "1", known)
    assert "torpor_cell_seconds" not in scraped(metrics)
    for rows, length in ((1, 16), (2, 24), (8, 40)) * 2:
        known.run_times.observe(rows, Bucket("often", (length,)), 0.01 + 0.001 * rows * length)
    known.run_times.observe(1, Bucket("rarely"), 9.0)
    known.offer(bound(1, 0.0, 8), 0.0)
    known.take(0.0)
    shown = scraped(metrics)
    assert shown["torpor_batch_overhead_seconds"] == pytest.approx(0.01)
    assert shown["torpor_cell_seconds"] == pytest.approx(0.001)
    assert [name for name in shown if "torpor_batch_seconds" in name] == [
        f'torpor_batch_seconds,rows="{rows}"' for rows in (1, 2, 4, 8, 16, 32, 48)
    ]
    mean_cells = round((16 + 2 * 24 + 8 * 40) / 11)
    assert shown['torpor_batch_seconds,rows="48"'] == pytest.approx(0.01 + 0.001 * 48 * mean_cells, rel=0.02)
    assert shown["torpor_expected_rows"] == 1


def test_a_model_without_named_axes_shows_the_means_of_its_own_batches() -> None:
    """They are what its deadlines are judged by, not the line."""
    known = policy(most=4)
    for rows, seconds in ((1, 0.01), (2, 0.05), (4, 0.05)):
        known.run_times.observe(rows, Bucket("x"), seconds)
    shown = scraped(ModelMetrics("m", "1", known))
    assert [shown[f'torpor_batch_seconds,rows="{rows}"'] for rows in (1, 2, 4)] == [0.01, 0.05, 0.05]


def test_a_ceiling_is_shown_once_it_is_learned() -> None:
    """And how often memory ran out."""
    known = policy()
    metrics = ModelMetrics("m", "1", known)
    assert "torpor_ceiling_rows" not in scraped(metrics)
    known.ceilings.ran_out(Bucket("x"), 20)
    metrics.ran_out_of_memory()
    shown = scraped(metrics)
    assert (shown["torpor_ceiling_rows"], shown["torpor_out_of_memory_total"]) == (10, 1)
