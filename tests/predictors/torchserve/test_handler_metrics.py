"""What a handler counts, from its side to Prometheus's families: added up, bounded, under names that nobody else has."""

from types import SimpleNamespace
from typing import Any

import pytest
from torpor.predictors.torchserve import handler_metrics
from torpor.predictors.torchserve.handler_metrics import HandlerMetrics
from torpor.predictors.torchserve.worker import metrics
from torpor.predictors.torchserve.worker.metrics import Metrics, Noted


def samples(counted: HandlerMetrics) -> dict[str, float]:
    """By name and labels."""
    families = counted.families({"model_name": "m"})
    return {
        " ".join([sample.name, *(f"{k}={v}" for k, v in sample.labels.items() if k != "model_name")]): sample.value
        for family in families
        for sample in family.samples
    }


def test_counts_are_added_up_and_of_gauges_the_last_stands() -> None:
    """Of several workers, and of what comes between two answers."""
    counted = HandlerMetrics("m")
    for _ in range(2):
        worker = Metrics("m", Noted())
        for value in (1, 2):
            worker.add_counter("pots", value, 0)
            worker.add_percent("full", value * 10, 0)
        updates = worker.noted.take()
        assert [values for *_, values in updates] == [[3], [20]]
        assert worker.noted.take() == []
        counted.take(updates)
    assert samples(counted) == {"pots_total ModelName=m Level=Model": 6.0, "full ModelName=m Level=Model": 20.0}


def test_dimensions_that_are_given_are_not_given_again() -> None:
    """TorchServe's own are added where they are missing, and its enumeration says a kind."""
    worker, dimension = Metrics("m", Noted()), SimpleNamespace(name="Level", value="Low")
    worker.add_metric("heat", 1, "C", None, [dimension], SimpleNamespace(value="gauge"))
    assert worker.noted.take() == [("heat", "gauge", [("Level", "Low")], [1.0])]


def test_what_a_handler_counts_is_of_its_kind() -> None:
    """By TorchServe's methods, with its dimensions: of a request its model, else that it is an error."""
    worker, dimension = Metrics("m", Noted()), SimpleNamespace(name="Of", value="x")
    of_request, of_none = [("ModelName", "m"), ("Level", "Model")], [("Level", "Error")]
    worker.add_counter("counted", 1, 0, [dimension])
    worker.add_time("took", 2, 0, "s", [dimension])
    worker.add_time("lasted", 3, metric_type="histogram")
    worker.add_size("large", 4, 0, dimensions=[dimension])
    worker.add_size("small", 5, unit="kB", metric_type="counter")
    worker.add_percent("full", 6, 0, [dimension], "histogram")
    worker.add_error("failed", 7, [dimension])
    worker.add_metric("other", 8)
    worker.add_metric("odd", 9, metric_type="Nothing")
    worker.add_metric("none", 10, dimensions=None)
    assert worker.noted.take() == [
        ("counted", "counter", [("Of", "x"), *of_request], [1.0]),
        ("took", "gauge", [("Of", "x"), *of_request], [2.0]),
        ("lasted", "histogram", of_none, [3.0]),
        ("large", "gauge", [("Of", "x"), *of_request], [4.0]),
        ("small", "counter", of_none, [5.0]),
        ("full", "histogram", [("Of", "x"), *of_request], [6.0]),
        ("failed", "counter", [("Of", "x"), *of_none], [7.0]),
        ("other", "counter", of_none, [8.0]),
        ("odd", "counter", of_none, [9.0]),
        ("none", "counter", of_none, [10.0]),
    ]
    units = {name: metric.unit for name, metric in worker.noted.metrics.items()}
    assert units == {
        "counted": "Count", "took": "s", "lasted": "ms", "large": "MB", "small": "kB", "full": "percent", "failed": "unit",
        "other": "unit", "odd": "unit", "none": "unit",
    }  # fmt: skip


@pytest.mark.parametrize("unit", ["ms", "s", "MB", "kB", "GB", "B", "h", ""])
def test_a_unit_is_one_of_torchserves(unit: str) -> None:
    """Else the handler hears of it, as from TorchServe."""
    worker = Metrics("m", Noted())
    for add, units, allowed in (
        (worker.add_time, ("ms", "s"), "ms or s"),
        (worker.add_size, ("MB", "kB", "GB", "B"), "MB, kB, GB or B"),
    ):
        if unit in units:
            add("x", 1, unit=unit)
        else:
            with pytest.raises(ValueError, match=f"unit = '{unit}', must be {allowed}"):
                add("x", 1, unit=unit)


def test_a_metric_is_found_by_its_name_and_one_of_a_name(caplog: pytest.LogCaptureFixture) -> None:
    """It is what it was when it was added; each value is in the log, as TorchServe has it there."""
    caplog.set_level("DEBUG")
    worker = Metrics("m", Noted())
    worker.request_ids = {1: "its-id"}
    metric = worker.add_metric_to_cache("pots", "count", ["kind", "ModelName"], "HISTOGRAM")
    assert worker.get_metric("pots") is metric
    with pytest.raises(KeyError):
        worker.get_metric("pans")
    for value in (1, 2):
        worker.add_metric("pots", value, "other", 1, [SimpleNamespace(name="kind", value="green")], "counter")
    metric.add_or_update(3, ["green", "n"], "mine")
    metric.update(4)
    worker.add_counter("pans", 5, 0)
    labels = [("kind", "green"), ("ModelName", "m")]
    assert worker.noted.take() == [
        ("pots", "histogram", labels, [1.0, 2.0]),
        ("pots", "histogram", [("kind", "green"), ("ModelName", "n")], [3.0]),
        ("pots", "histogram", [], [4.0]),
        ("pans", "counter", [("ModelName", "m"), ("Level", "Model")], [5.0]),
    ]
    assert caplog.messages == [
        "pots.count:1|#kind:green,ModelName:m|requestID:its-id",
        "pots.count:2|#kind:green,ModelName:m|requestID:its-id",
        "pots.count:3|#kind:green,ModelName:n|requestID:mine",
        "pots.count:4|#|requestID:",
        "pans.Count:5|#ModelName:m,Level:Model|requestID:",
    ]


def test_what_waits_for_an_answer_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of names, and of a histogram's values; what is there already still counts."""
    monkeypatch.setattr(metrics, "_MOST_WAITING", 2)
    noted = Noted()
    for name in ("a", "b", "c", "a"):
        noted.note((name, "counter", ()), 1.0)
    assert [(name, values) for name, *_, values in noted.take()] == [("a", [2.0]), ("b", [1.0])]
    for value in (1.0, 2.0, 3.0):
        noted.note(("a", "histogram", ()), value)
    assert noted.take() == [("a", "histogram", [], [1.0, 2.0])]


def test_what_is_no_number_is_not_counted() -> None:
    """It costs its request nothing; nor is a count taken back."""
    worker = Metrics("m", Noted())
    metric = worker.add_metric_to_cache("pots", "count", ["kind"])
    for value in ("many", None, float("nan"), float("inf")):
        metric.add_or_update(value, ["green"])
    assert worker.noted.take() == []
    metric.add_or_update(-1, ["green"])
    counted = HandlerMetrics("m")
    counted.take(worker.noted.take())
    assert samples(counted) == {"pots_total kind=green": 0.0}


def test_a_label_of_whatever_callers_send_has_a_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is there goes on, and the log says it once."""
    monkeypatch.setattr(handler_metrics, "_MOST_SERIES", 2)
    counted = HandlerMetrics("m")
    for value in ("a", "b", "c", "d", "a"):
        counted.take([("seen", "counter", [("who", value)], [1.0])])
    assert samples(counted) == {"seen_total who=a": 2.0, "seen_total who=b": 1.0}
    assert caplog.messages == ["m: metrics of its handler beyond 2 are dropped"]


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("a b-c", "a_b_c"),
        ("torpor_x", "handler_torpor_x"),
        ("1st", "handler_1st"),
        ("", "handler_"),
        ("ä", "handler__"),
    ],
)
def test_a_name_is_one_that_prometheus_can_have(said: str, name: str) -> None:
    """And none of the server's own; a name stays what it was first."""
    counted = HandlerMetrics("m")
    updates: list[Any] = [(said, "gauge", [("model_name", "x")], [1.0]), (said, "counter", [], [5.0])]
    counted.take(updates)
    assert samples(counted) == {f"{name} handler_model_name=x": 1.0}
