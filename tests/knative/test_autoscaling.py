"""What a revision's annotations say of its scaling, with Knative's limits and defaults."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.knative.autoscaling import ANNOTATIONS, PREFIX, AnnotationError, Autoscaling
from torpor.knative.durations import duration, seconds


def of(**annotations: str) -> Autoscaling:
    return Autoscaling.of({PREFIX + name.replace("_", "-"): value for name, value in annotations.items()})


def test_nothing_said_is_knatives_default() -> None:
    """A hundred requests a pod at 70 %, a window of a minute, a tenth of it for panic."""
    scaling = of()
    assert (scaling.pod_target, scaling.window_s, scaling.panic_window_s) == (70, 60, 6)
    assert (scaling.min_scale, scaling.max_scale, scaling.initial_scale) == (0, 0, 1)


def test_a_pod_is_not_aimed_at_beyond_what_it_takes() -> None:
    """With containerConcurrency 32 a target of 100 is 22.4."""
    assert Autoscaling.of({PREFIX + "target": "100"}, 32).pod_target == pytest.approx(22.4)
    assert Autoscaling.of({PREFIX + "target": "10"}, 32).pod_target == pytest.approx(7)
    assert Autoscaling.of({}, 32).pod_target == pytest.approx(22.4)
    assert of(metric="rps").pod_target == pytest.approx(140)


def test_older_spellings_are_read() -> None:
    """As Knative's register.go lists them; of both the newer counts, and activation-scale never had one."""
    older = {"minScale": "2", "targetUtilizationPercentage": "80", "scaleToZeroPodRetentionPeriod": "5s"}
    scaling = Autoscaling.of({PREFIX + name: value for name, value in older.items()})
    assert (scaling.min_scale, scaling.target_utilization_percentage, scaling.retention_s) == (2, 80, 5)
    assert Autoscaling.of({PREFIX + "minScale": "2", PREFIX + "min-scale": "1"}).min_scale == 1
    assert Autoscaling.of({PREFIX + "activationScale": "5"}).activation_scale == 1


def test_an_error_names_the_annotation_as_it_is_written() -> None:
    """minScale and not min-scale, whether its value or its relation to max-scale is wrong."""
    for annotations in ({PREFIX + "minScale": "x"}, {PREFIX + "minScale": "4", PREFIX + "max-scale": "3"}):
        with pytest.raises(AnnotationError) as caught:
            Autoscaling.of(annotations)
        assert caught.value.name == PREFIX + "minScale"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("metric", "cpu", "one of concurrency, rps"),
        ("target", "0", "a number of at least 0.01"),
        ("target-utilization-percentage", "101", "a number in [1, 100]"),
        ("min-scale", "1.5", "a whole number of at least 0"),
        ("activation-scale", "1", "a whole number of at least 2"),
        ("window", "5s", "whole seconds, like 60s, in [6, 3600]"),
        ("window", "6500ms", "whole seconds, like 60s, in [6, 3600]"),
        ("target-burst-capacity", "-2", "a number of at least -1"),
        ("scale-to-zero-pod-retention-period", "2h", "whole seconds, like 60s, in [0, 3600]"),
        ("panic-threshold-percentage", "100", "a number in [110, 1000]"),
        ("min-scale", 1, "a string, a whole number of at least 0"),
        ("target", "nan", "a number of at least 0.01"),
    ],
)
def test_what_knative_refuses_is_refused(name: str, value: object, allowed: str) -> None:
    """Naming the annotation, its value and what it must be."""
    with pytest.raises(AnnotationError) as caught:
        Autoscaling.of({PREFIX + name: value})
    assert str(caught.value) == f"{PREFIX}{name} = {value!r}, must be {allowed}"


def test_at_least_as_many_as_at_most() -> None:
    """The two are checked against each other; 0 is no limit."""
    with pytest.raises(AnnotationError, match="min-scale = '3', must be at most max-scale, 2"):
        of(min_scale="3", max_scale="2")
    assert of(min_scale="3", max_scale="0").min_scale == 3


def test_each_annotation_is_read_into_its_field() -> None:
    """One value each that is not the default."""
    values = {"word": "rps", "int": "7", "float": "50", "duration": "42s"}
    for name, annotation in ANNOTATIONS.items():
        value = "120" if name == "panic-threshold-percentage" else values[annotation.kind]
        read = getattr(Autoscaling.of({PREFIX + name: value}), annotation.field)
        assert read == (value if annotation.kind == "word" else seconds(value) if "s" in value else float(value))


@given(st.integers(0, 10**6))
def test_durations_are_read_as_they_are_written(value_s: int) -> None:
    """Whole seconds, in whatever units they come."""
    assert seconds(duration(value_s)) == value_s


@pytest.mark.parametrize("text", ["", "6", "s", "6 s", "-6s", "6x", "6s!", "1.s5"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Go's parser refuses it too, but for the sign."""
    with pytest.raises(ValueError, match="is no duration, must be like 6s"):
        seconds(text)
