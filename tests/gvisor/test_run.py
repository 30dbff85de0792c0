"""The command that runs tests inside gVisor, from outside and from within."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

UNAVAILABLE = 69
RUN = Path(__file__).with_name("run.py")
IS_INSIDE = "gvisor" in platform.release()


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", RUN, *arguments], env=variables, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"PATH": ""}, "runsc is not on the PATH"),
        ({"RUNSC": "/none/runsc"}, "$RUNSC is /none/runsc, which is no program"),
    ],
)
def test_without_runsc_it_says_what_is_missing(variables: dict[str, str], text: str) -> None:
    """And what to do; no status of pytest's looks the same."""
    done = run(**variables)
    assert done.returncode == UNAVAILABLE
    assert text in done.stderr
    assert "set $RUNSC" in done.stderr


@pytest.mark.skipif(IS_INSIDE, reason="inside gVisor")
def test_tests_run_inside_and_their_status_comes_out() -> None:
    """The kernel there is gVisor's, and what is written to the root stays there."""
    done = run(str(Path(__file__)), "-k", "kernel", **os.environ)
    if done.returncode == UNAVAILABLE:
        pytest.skip(done.stderr)
    assert "1 passed" in done.stdout
    assert done.returncode == 0
    assert not Path("/written-inside").exists()
    assert run(str(Path(__file__)), "-k", "none_of_them", **os.environ).returncode == 5


@pytest.mark.skipif(not IS_INSIDE, reason="not inside gVisor")
def test_the_kernel_is_gvisors_and_the_root_can_be_written_to() -> None:
    """Run by the test above."""
    Path("/written-inside").write_text("gone with the container")
    assert not [*Path("/tmp").glob("torpor-bundle-*")]
