"""The console script `torpor`, and `python -m torpor.predictors`.

It heeds SIGTERM before it imports anything that takes time: process 1 of a container has no default action for it, and a
signal that comes earlier is lost until the kubelet kills the container. What is left is the start of Python itself.
"""

import signal
import sys


def main() -> int:
    """Run the command; the process's exit status."""
    # Until the server sets its own there is nothing to drain.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    from . import command

    return command.main()


if __name__ == "__main__":
    sys.exit(main())
