"""`torpor up`: the same YAML as on a cluster, on one machine. Nothing of it is imported before the command runs."""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

_EXAMPLE = """\
example: a model that sleeps at zero; its image's /opt/torpor/examples are ./examples here

  torpor up examples/minilm/inferenceservice.yaml --map /opt/torpor/examples=examples
"""


def add_command(commands: Any) -> None:
    """Add `up` to the sub-commands of `torpor`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "up",
        help="run InferenceServices, Knative Services, Broker and Triggers on this machine",
        description="Runs what the files describe, one process a component, to zero and back. Ctrl-C lets what is under way "
        "finish, a second one ends at once. Exit statuses: 0 it ended in order; 1 it could not start; 130 it was cut.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="YAML files")
    parser.add_argument("--host", default="127.0.0.1", help="address of all ports (default 127.0.0.1)")
    parser.add_argument(
        "--port", type=_port, default=8080,
        help="of the first component; the other components, the page and the broker take those behind it; 0: free ones "
        "(default 8080)",
    )  # fmt: skip
    parser.add_argument(
        "--map", type=_map, action="append", default=[], metavar="FROM=TO",
        help="what the cluster or the image has under another name: replaced in commands, arguments, environment and "
        "storageUri; {nats} in TO is the address of the NATS server",
    )  # fmt: skip
    parser.add_argument(
        "--image", action="append", default=[], metavar="PATTERN",
        help="images, besides those named torpor, whose entrypoint is `torpor serve`; * for any text",
    )  # fmt: skip
    parser.add_argument("--state", type=Path, default=Path(".torpor-up"), metavar="FOLDER",
                        help="fetched models, pvc/CLAIM, NATS' data (default .torpor-up)")  # fmt: skip
    parser.set_defaults(run=_run)


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65_000:
        raise argparse.ArgumentTypeError(f"{text}, must be in [0, 65000]")
    return value


def _map(text: str) -> tuple[str, str]:
    known, equals, local = text.partition("=")
    if not known or not equals:
        raise argparse.ArgumentTypeError(f"{text!r}, must be FROM=TO")
    return known, local


def _run(options: argparse.Namespace, began_s: float) -> int:
    import uvloop

    from .up.container import IMAGES
    from .up.documents import UpError, read_documents
    from .up.machine import Machine, Settings
    from .up.services import plan
    from .up.terminal import Terminal

    async def run() -> int:
        planned = plan(read_documents(options.files))
        names = [service.name for service in planned.services]
        settings = Settings(options.host, options.port, options.state, options.map, (*IMAGES, *options.image))
        return await Machine(planned, settings, Terminal([*names, "broker"])).run()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run())
    except UpError as error:
        print(f"torpor up: {error}", file=sys.stderr)
        return 1
