"""What a handler counts, from its side to Prometheus's families: added up, bounded, under names that nobody else has."""

from types import SimpleNamespace
from typing import Any

import pytest
from torpor.predictors.torchserve import handler_metrics
from torpor.predictors.torchserve.handler_metrics import HandlerMetrics
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
