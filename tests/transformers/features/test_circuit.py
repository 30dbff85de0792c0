"""When Redis is asked: by hand where the numbers are few, and by any sequence of events."""

from hypothesis import given
from hypothesis import strategies as st
from torpor.transformers.features.circuit import Circuit, State


def test_some_failures_in_a_row_open_it() -> None:
    """An answer between them begins anew."""
    circuit = Circuit(failures=3, pause_s=1.0)
    assert [circuit.failed(0.0), circuit.failed(0.0)] == [False, False]
    circuit.succeeded()
    assert [circuit.failed(0.1) for _ in range(3)] == [False, False, True]
    assert circuit.state is State.OPEN


def test_one_probes_after_the_pause() -> None:
    """One and not all; whether it closes is up to that one, and a failure costs another pause."""
    circuit = Circuit(failures=1, pause_s=1.0)
    assert circuit.failed(5.0)
    assert not circuit.probes(5.9)
    assert [circuit.probes(6.0), circuit.probes(6.0)] == [True, False]
    assert not circuit.failed(6.5)
    assert [circuit.probes(7.4), circuit.probes(7.5)] == [False, True]
    assert circuit.succeeded()
    assert circuit.is_closed
    assert not circuit.succeeded()


def test_what_was_under_way_does_not_put_the_probe_off() -> None:
    """Reads that began before it opened fail when it is open."""
    circuit = Circuit(failures=1, pause_s=1.0)
    circuit.failed(0.0)
    circuit.failed(0.9)
    assert circuit.probes(1.0)


@given(st.lists(st.tuples(st.sampled_from(["ok", "fail", "probe"]), st.floats(0, 3)), max_size=60))
def test_it_never_sticks(events: list[tuple[str, float]]) -> None:
    """After anything a pause and an answer close it, and nobody probes one that is closed or probed already."""
    circuit, now_s = Circuit(failures=2, pause_s=1.0), 0.0
    for event, wait_s in events:
        now_s += wait_s
        before = circuit.state
        if event == "ok":
            circuit.succeeded()
            assert circuit.is_closed
        elif event == "fail":
            assert circuit.failed(now_s) == (before is State.CLOSED and circuit.state is State.OPEN)
        else:
            assert circuit.probes(now_s) == (before is State.OPEN and circuit.state is State.HALF_OPEN)
    if circuit.state is State.HALF_OPEN:
        circuit.failed(now_s)
    if not circuit.is_closed:
        assert circuit.probes(now_s + 1.0)
        circuit.succeeded()
    assert circuit.is_closed
