"""Fuzz a decoder: `tests/fuzz/run.py TARGET --runs 100000`.

New inputs that reach new code are kept in `.fuzz/TARGET` and used by the next run; what breaks is written to
`.fuzz/TARGET.crash-…`, and `--replay FILE` runs it again. Needs `pip install atheris`; a replay does not.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOUND = HERE.parent.parent / ".fuzz"
NAMES = sorted(path.name for path in (HERE / "corpus").iterdir())
sys.path.insert(0, str(HERE))  # python -P does not


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", metavar="TARGET", choices=NAMES, help=", ".join(NAMES))
    parser.add_argument("--list", action="store_true", help="print the targets' names")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs to try (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=0, help="end after so many seconds, if that is sooner")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations; 0 takes another each time")
    parser.add_argument("--forget", action="store_true", help="neither read nor keep anything in .fuzz")
    parser.add_argument(
        "--minimise", action="store_true", help="make the corpus anew: the smallest inputs that reach as much"
    )
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one input, without atheris")
    options = parser.parse_args()
    if options.list:
        print(*NAMES, sep="\n")
    elif options.target is None:
        parser.error("which TARGET?")
    elif options.replay is not None:
        from targets import TARGETS

        TARGETS[options.target](options.replay.read_bytes())
    else:
        _fuzz(options)


def _fuzz(options: argparse.Namespace) -> None:
    import atheris

    with atheris.instrument_imports(include=["torpor"]):
        from targets import TARGETS

    corpus = HERE / "corpus" / options.target
    found = FOUND / options.target
    found.mkdir(parents=True, exist_ok=True)
    flags = [f"-runs={options.runs}", f"-max_total_time={options.seconds}", "-print_final_stats=1", "-timeout=10"]
    flags += [f"-artifact_prefix={found}.", "-max_len=1024", f"-seed={options.seed}"]
    flags += [f"-dict={words}" for words in HERE.glob("*.dict") if words.stem in options.target]
    folders = [corpus] if options.forget else [found, corpus]
    atheris.Setup([sys.argv[0], *flags, *map(str, folders)], TARGETS[options.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
