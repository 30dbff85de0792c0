"""Fuzz a decoder: `tests/fuzz/run.py TARGET --runs 100000`. Needs atheris (the extra `fuzz`); a replay does not.

Inputs that reach new code are kept in `.fuzz/TARGET`, and the next run goes on from them; one that breaks something is
written to `.fuzz/TARGET.crash-…` (`--replay` runs it again). `--minimise` takes the smallest set of inputs that reaches as
much as all do into the committed corpus.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOUND = HERE.parent.parent / ".fuzz"
NAMES = sorted(path.name for path in (HERE / "corpus").iterdir())
MOST_BYTES = 1024
sys.path.insert(0, str(HERE))  # PYTHONSAFEPATH leaves it out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", metavar="TARGET", choices=NAMES, help=", ".join(NAMES))
    parser.add_argument("--list", action="store_true", help="print the targets' names")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs to try (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=0, help="end after so many seconds, if that is sooner")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations; 0 takes another each time")
    parser.add_argument("--forget", action="store_true", help="begin with the corpus alone, and keep nothing")
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE", help="run these inputs")
    parser.add_argument("--minimise", action="store_true", help="renew the corpus")
    parser.add_argument("--libfuzzer", nargs=argparse.REMAINDER, help="give libFuzzer what follows, and nothing else")
    options = parser.parse_args()
    if options.list:
        print(*NAMES, sep="\n")
    elif options.target is None:
        parser.error("TARGET is missing")
    elif options.replay:
        replay(options.target, options.replay)
    elif options.libfuzzer is not None:
        fuzz(options.target, options.libfuzzer)
    elif options.minimise:
        minimise(options.target)
    else:
        limits = [f"-runs={options.runs}", f"-max_total_time={options.seconds}", f"-seed={options.seed}"]
        run(options.target, limits, keeps=not options.forget)


def replay(target: str, files: list[Path]) -> None:
    from targets import TARGETS

    for file in files:
        try:
            TARGETS[target](file.read_bytes())
        except Exception:
            print(f"{file}:", file=sys.stderr)
            raise


def run(target: str, limits: list[str], *, keeps: bool) -> None:
    """Mutate what is there. What is new goes to the first folder."""
    found = FOUND / target
    found.mkdir(parents=True, exist_ok=True)
    words = [f"-dict={file}" for file in HERE.glob("*.dict") if file.stem in target]
    flags = [f"-max_len={MOST_BYTES}", "-timeout=10", "-print_final_stats=1", f"-artifact_prefix={found}."]
    if keeps:
        fuzz(target, [*limits, *flags, *words, str(found), str(HERE / "corpus" / target)])
    with tempfile.TemporaryDirectory() as forgotten:
        # In a process of its own, for libFuzzer ends the one that it runs in.
        again = [sys.executable, __file__, target, "--libfuzzer", *limits, *flags, *words, forgotten]
        sys.exit(subprocess.run([*again, str(HERE / "corpus" / target)], check=False).returncode)


def minimise(target: str) -> None:
    corpus = HERE / "corpus" / target
    with tempfile.TemporaryDirectory() as least:
        merge = ["-merge=1", "-use_counters=0", f"-max_len={MOST_BYTES}", least, str(FOUND / target), str(corpus)]
        subprocess.run([sys.executable, __file__, target, "--libfuzzer", *merge], check=True)
        for file in corpus.iterdir():
            file.unlink()
        for file in Path(least).iterdir():
            (corpus / file.name[:12]).write_bytes(file.read_bytes())


def fuzz(target: str, arguments: list[str]) -> None:
    """Does not return."""
    import atheris

    with atheris.instrument_imports(include=["torpor"]):
        from targets import TARGETS

    # To merge, libFuzzer runs its own command again, by a shell.
    atheris.Setup([f"{sys.executable} {__file__} {target} --libfuzzer", *arguments], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
