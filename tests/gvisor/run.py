"""Tests inside gVisor: `make gvisor`, or `make gvisor ARGS='tests/predictors/serving -k drain'` (pytest's arguments).

Without arguments it is every test of predictors and transformers that needs no cluster. It takes root and gVisor's runsc,
which is $RUNSC or on the PATH. The exit status is pytest's; 69 without runsc.
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from environments import UnavailableError  # noqa: E402
from sandbox import contained  # noqa: E402

UNAVAILABLE = 69
"""EX_UNAVAILABLE of sysexits.h: pytest's own statuses end at 5."""

TESTS = ("tests/predictors", "tests/transformers")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="run.py", usage="run.py [-h] [PYTEST_ARGUMENT ...]", description="Runs pytest inside gVisor (runsc).",
        epilog=f"Without arguments: {' and '.join(TESTS)}.",
    )  # fmt: skip
    _, arguments = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    pytest = str(Path(sys.executable).with_name("pytest"))
    command = [pytest, "-p", "no:cacheprovider", "-m", "not cluster", *(arguments or TESTS)]
    variables = os.environ | {"PYTHONSAFEPATH": "1"}
    try:
        with contained("runsc", ["--network=none", "--overlay2=none"], command, variables, ROOT) as container:
            # Through a pipe: gVisor keeps an offset of its own in a file that is its output.
            with subprocess.Popen(
                container.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    sys.stdout.buffer.write(line)
                    sys.stdout.flush()
            return process.returncode
    except UnavailableError as reason:
        print(f"no test was run: {reason}", file=sys.stderr)
        return UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
