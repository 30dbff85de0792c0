"""The command `torpor features`: what it is called with. What it does is imported when it is run (`features/warming.py`)."""

import argparse
from typing import Any

FLAGS = {
    "features": "declaration of a row: float32[rows, 32]",
    "url": "where Redis is, $TORPOR_FEATURES_URL if nobody says",
    "prefix": "of the keys in Redis",
    "ttl_s": "seconds that a row lives",
    "missing_ttl_s": "seconds that it is remembered that a key has no row",
    "load_timeout_s": "seconds that the loader has for a batch",
}
"""Parameters of a `FeatureTable` that the command line may give."""


def add_command(commands: Any) -> None:
    """Add `features warm` to the sub-commands of `torpor`."""
    features = commands.add_parser("features", help="fill the cache of features")
    parser: argparse.ArgumentParser = features.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "warm",
        help="load the features of keys into Redis",
        description="Loads the features of keys into Redis, where they are not there yet. Ends with 0 when all are, with 1 "
        "when Redis or the loader failed, with 2 when a setting is wrong.",
    )
    parser.add_argument(
        "source", metavar="FOLDER|MODULE:LOADER",
        help="a folder whose model.toml has the parameters of torpor.transformers.features:Features, or the loader alone",
    )  # fmt: skip
    parser.add_argument("--keys", required=True, metavar="FILE|-", help="keys, one a line; - is the standard input")
    for name, text in FLAGS.items():
        parser.add_argument("--" + name.replace("_", "-"), dest=name, help=text + "; else model.toml's")
    parser.add_argument("--batch", type=_whole, default=1000, metavar="N", help="keys of one call of the loader (1000)")
    parser.add_argument("--parallel", type=_whole, default=4, metavar="N", help="calls at once (4)")
    parser.add_argument("--refresh", action="store_true", help="load what is there, too, and let it live anew")
    parser.set_defaults(run=_run)


def _whole(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 1 << 16:
        raise argparse.ArgumentTypeError(f"{text}, must be in [1, {1 << 16}]")
    return number


def _run(options: argparse.Namespace, began_s: float) -> int:
    from .features.warming import warm

    return warm(options, began_s)
