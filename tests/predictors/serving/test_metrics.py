"""What a batch adds to the counts, and what of the policy is shown."""

import re

import pytest
from torpor.predictors.batching.bucket import Bucket
from torpor.predictors.batching.policy import Batch, BatchingPolicy, BatchingSettings, Slice, State
from torpor.predictors.batching.run_times import RunTimes
from torpor.predictors.errors import ModelFailed
from torpor.predictors.serving.merged_metrics import merged
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


def test_a_batchs_time_is_observed_once_for_each_request_that_ends_with_it() -> None:
    """As KServe counts; failed ones and those whose callers left end too, one that runs on or again does not yet."""
    metrics = ModelMetrics("m", "1", policy())
    answered, failed, split = bound(2, 1.0), bound(1, 1.0), bound(3, 1.5)
    answered.state, failed.state, split.state = State.TAKEN, State.GONE, State.TAKEN
    split.answer = print
    slices = [Slice(answered, 0, 2), Slice(failed, 0, 1), Slice(split, 0, 1)]
    metrics.batch_ran(Batch(slices, 4, Bucket("x"), 2.0), 0.25)
    assert (metrics.predict_seconds.count, metrics.predict_seconds.sum, metrics.answered) == (2, 0.5, 1)
    split.answer = None
    metrics.batch_ran(Batch([Slice(split, 1, 3)], 2, Bucket("x"), 3.0), 0.5)
    assert (metrics.predict_seconds.count, metrics.predict_seconds.sum, metrics.answered) == (3, 1.0, 2)
    assert metrics.device_seconds == 0.75


def test_a_request_is_timed_from_its_arrival_to_the_end_of_its_last_batch() -> None:
    """Once it is answered: neither what failed nor what runs on."""
    metrics = ModelMetrics("m", "1", policy())
    answered, failed, split = bound(2, 1.0), bound(1, 1.0), bound(3, 1.5)
    answered.state, failed.state, split.state = State.TAKEN, State.GONE, State.TAKEN
    split.answer = print
    slices = [Slice(answered, 0, 2), Slice(failed, 0, 1), Slice(split, 0, 1)]
    metrics.batch_ran(Batch(slices, 4, Bucket("x"), 2.0), 0.25)
    assert (metrics.request_seconds.count, metrics.request_seconds.sum) == (1, 1.25)
    split.answer = None
    metrics.batch_ran(Batch([Slice(split, 1, 3)], 2, Bucket("x"), 3.0), 0.5)
    assert (metrics.request_seconds.count, metrics.request_seconds.sum) == (2, 1.25 + 2.0)


def test_tritons_names_are_told_for_what_is_counted() -> None:
    """With its labels, and without the `_total` that Triton does not have; two processes' are summed."""
    server = ServerMetrics()
    metrics = ModelMetrics("m", "1", policy())
    server.models.append(metrics)
    first, second = bound(2, 1.0), bound(1, 1.5)
    first.state = second.state = State.TAKEN
    metrics.batch_ran(Batch([Slice(first, 0, 2), Slice(second, 0, 1)], 3, Bucket("x"), 2.0), 0.25)
    server.failed("m", "1", ModelFailed("no"))
    server.failed("m", "1", KeyError())
    server.failed("other", "1", ModelFailed("no"))
    text = server.render().decode()
    tritons = re.findall(r'^nv_inference_(\w+)\{model="m",version="1"\} (\S+)$', text, re.M)
    told = {name: float(value) for name, value in tritons}
    assert told == {
        "request_success": 2, "request_failure": 2, "count": 3, "exec_count": 1, "queue_duration_us": 1.5e6,
        "compute_infer_duration_us": 0.5e6, "request_duration_us": 2e6,
    }  # fmt: skip
    assert "# TYPE nv_inference_count counter" in text
    assert 'torpor_failures_total{error="internal",model_name="m",model_version="1"} 1.0' in text
    both = merged([("0", text), ("1", text)])
    assert 'nv_inference_count{model="m",version="1"} 6.0' in both
    assert 'torpor_failures_total{error="ModelFailed",model_name="other",model_version="1"} 2.0' in both


FIRST, SECOND = (
    f"""# HELP served_total Requests.
# TYPE served_total counter
served_total{{model="a"}} {count}.0
served_total{{model="b"}} 1.0
# HELP wait_seconds Waiting.
# TYPE wait_seconds histogram
wait_seconds_bucket{{le="0.5"}} {count}.0
wait_seconds_bucket{{le="+Inf"}} {count + 1}.0
wait_seconds_count {count + 1}.0
wait_seconds_sum 0.25
# HELP queued Rows.
# TYPE queued gauge
queued{{model="a"}} {count}.0
"""
    for count in (2, 5)
)
"""What two processes say."""


def told(text: str) -> dict[str, float]:
    return {series: float(value) for series, value in re.findall(r"^([a-z].*) (\S+)$", text, re.M)}


def test_what_is_counted_is_counted_together() -> None:
    """By its labels, a histogram by its bounds; what one process alone has is there too."""
    only = "# HELP other_total Others.\n# TYPE other_total counter\nother_total 4.0\n"
    assert told(merged([("0", FIRST), ("1", SECOND + only)], gauges=False)) == {
        'served_total{model="a"}': 7, 'served_total{model="b"}': 2, "other_total": 4,
        'wait_seconds_bucket{le="0.5"}': 7, 'wait_seconds_bucket{le="+Inf"}': 9, "wait_seconds_count": 9,
        "wait_seconds_sum": 0.5,
    }  # fmt: skip


def test_a_gauge_stands_for_each_process() -> None:
    """Their sum may mean nothing; counts have no label for it, and are merged again with others when a process ends."""
    both = merged([("0", FIRST), ("1", SECOND)])
    assert {series: value for series, value in told(both).items() if "process" in series} == {
        'queued{model="a",process="0"}': 2, 'queued{model="a",process="1"}': 5,
    }  # fmt: skip
    assert "# HELP served_total Requests.\n# TYPE served_total counter" in both
    again = merged([("", both), ("", SECOND)], gauges=False)
    assert told(again)['served_total{model="a"}'] == 12


def test_a_devices_own_memory_is_shown_once() -> None:
    """However many models are on it; of a device without any, nothing is."""
    server = ServerMetrics()
    server.models += [ModelMetrics(name, "1", policy(), lambda: {"cuda:0": 1 << 20}) for name in "ab"]
    server.models.append(ModelMetrics("c", "1", policy()))
    shown = re.findall(r"^torpor_device_memory_bytes(.*)$", server.render().decode(), re.M)
    assert shown == ['{device="cuda:0"} 1.048576e+06']


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
