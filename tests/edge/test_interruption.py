"""A signal that asks a loop to end: it is heeded where the loop only waits, and nowhere else."""

import signal

import pytest
from torpor.edge.agent import Stopped
from torpor.edge.interruption import Interruption


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_wait_at_once(number: signal.Signals) -> None:
    stop = Interruption()
    with stop.heeded(), pytest.raises(Stopped), stop.interruptible():
        signal.raise_signal(number)


def test_a_signal_in_the_middle_of_work_counts_at_the_next_wait() -> None:
    """What is done is done to its end."""
    stop = Interruption()
    with stop.heeded():
        with stop.interruptible():
            pass
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            stop.wait(0)


def test_signals_mean_what_they_meant_before_once_the_loop_is_left() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interruption().heeded():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
