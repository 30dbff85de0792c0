"""Take each check out of `edge/` in turn, and see a test fail: `python -P tests/edge/remove_checks.py [MODULE[:LINE] ...]`.

Not a test itself, since it runs them once for each of some 440 checks:

- a raise, and a call that ends in one or syncs: without it a power cut must spoil something;
- an `if` that only returns, goes on, leaves a loop, raises or yields a finding, and each side of an `or` in its condition;
- an except clause that does not raise: what it catches goes through.

A process for each check, two at a time, is forked from one that has imported what tests need, and runs them until one fails:
those named after the module, those that import it, the rest. It prints the checks that no test misses, and ends with 1.
"""

import ast
import compileall
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SYNCS = ("sync", "sync_folder", "update_root")
SLOW = ("test_fleet.py", "test_offline.py", "test_client.py")
AT_A_TIME = 2
LONGEST_S = 900
"""A test that waits for ever without a check has missed it."""


@dataclass(frozen=True)
class Removal:
    """source: of the module without the check."""

    module: Path
    line: int
    check: str
    source: str

    def __str__(self) -> str:
        return f"{self.module.relative_to(ROOT)}:{self.line}: {self.check}"


def removals(module: Path) -> Iterator[Removal]:
    text = module.read_text()
    for number in range(len(list(_checks(ast.parse(text))))):
        tree = ast.parse(text)
        node, name, remove = list(_checks(tree))[number]
        remove()
        yield Removal(module, node.lineno, name[:110], ast.unparse(ast.fix_missing_locations(tree)))


Check = tuple[ast.stmt | ast.expr | ast.excepthandler, str, Callable[[], None]]


def _checks(tree: ast.Module) -> Iterator[Check]:
    """Where each is, its text, and what takes it out."""
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            for index, statement in enumerate(body if isinstance(body, list) else ()):
                if isinstance(statement, ast.Raise) or _is_call_of_a_check(statement) or _is_guard(statement):
                    rest = statement.orelse if isinstance(statement, ast.If) else []
                    yield statement, ast.unparse(statement).split("\n")[0], _replaced(body, index, rest or [ast.Pass()])
                test = statement.test if isinstance(statement, ast.If) and _ends(statement.body) else None
                if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
                    for at, side in enumerate(test.values):
                        yield side, f"or {ast.unparse(side)}", _replaced(test.values, at, [ast.Constant(False)])
        if isinstance(node, ast.ExceptHandler) and not isinstance(node.body[-1], ast.Raise):
            yield node, ast.unparse(node).split("\n")[0], _replaced(node.body, 0, [ast.Raise()])


def _replaced(nodes: list[Any], index: int, by: list[Any]) -> Callable[[], None]:
    return lambda: nodes.__setitem__(slice(index, index + 1), by)


def _is_call_of_a_check(statement: ast.stmt) -> bool:
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call):
        return False
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    return "check" in name or name in SYNCS


def _is_guard(statement: ast.stmt) -> bool:
    """Not one that raises: its raise is taken out by itself."""
    return isinstance(statement, ast.If) and _ends(statement.body, ast.Return, ast.Continue, ast.Break)


def _ends(body: list[ast.stmt], *kinds: type[ast.stmt]) -> bool:
    is_finding = isinstance(body[-1], ast.Expr) and isinstance(body[-1].value, ast.Yield)
    return is_finding or isinstance(body[-1], kinds or (ast.Return, ast.Continue, ast.Break, ast.Raise))


def tests_for(module: Path) -> list[Path]:
    """The narrowest first."""
    dotted = "torpor.edge." + ".".join(module.relative_to(ROOT / "edge").with_suffix("").parts)

    def width(test: Path) -> tuple[int, str]:
        if test.stem == f"test_{module.stem}":
            return 0, test.name
        return (1 if f"from {dotted} import" in test.read_text() else 2), test.name

    return sorted((test for test in (ROOT / "tests" / "edge").glob("test_*.py") if test.name not in SLOW), key=width)


def start(removal: Removal, tree: Path, folder: Path) -> int:
    """The process that runs the tests without the check, all of what it starts in its group; its status is 0 if none failed."""
    shutil.copytree(tree, folder)
    (folder / "torpor" / "edge" / removal.module.relative_to(ROOT / "edge")).write_text(removal.source)
    if process := os.fork():
        return process
    os.setsid()
    signal.alarm(LONGEST_S)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    os.environ |= {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    sys.path.insert(0, str(folder))
    os.chdir(ROOT)
    status = 1
    try:
        options = ["-x", "-q", "-p", "no:cacheprovider", "--basetemp", str(folder / "tests")]
        status = pytest.main([*options, *map(str, tests_for(removal.module))])
    finally:
        os._exit(status)


def survivors(wanted: list[Removal]) -> Iterator[Removal]:
    """Those that no test misses, as they are found; how far it is goes to stderr. Raises SystemExit if a test fails anyway."""
    with tempfile.TemporaryDirectory(prefix="torpor-checks-") as place:
        tree = Path(place) / "tree"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "edge", tree / "torpor" / "edge", ignore=ignored)
        compileall.compile_dir(tree, quiet=1)
        process = start(
            Removal(init := ROOT / "edge" / "__init__.py", 0, "", init.read_text()), tree, Path(place) / "whole"
        )
        if os.waitpid(process, 0)[1]:
            raise SystemExit("a test fails where nothing was taken out")
        running: dict[int, Removal] = {}
        left = list(enumerate(wanted))
        while left or running:
            while left and len(running) < AT_A_TIME:
                number, removal = left.pop(0)
                running[start(removal, tree, Path(place) / str(number))] = removal
            process, status = os.wait()
            removal = running.pop(process)
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
            shutil.rmtree(Path(place) / str(wanted.index(removal)), ignore_errors=True)
            print(f"\r{len(wanted) - len(left) - len(running)} of {len(wanted)}", end="", file=sys.stderr, flush=True)
            if status == 0:
                yield removal
    print(file=sys.stderr)


def main() -> int:
    asked = [argument.partition(":")[::2] for argument in sys.argv[1:]]
    wanted = [
        removal
        for module in sorted((ROOT / "edge").rglob("*.py"))
        for removal in removals(module)
        if not asked or any(module.stem == stem and line in ("", str(removal.line)) for stem, line in asked)
    ]
    # What nearly every test imports, and torpor itself not.
    import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401
    import grpc  # noqa: F401
    import h2.connection  # noqa: F401
    import numpy  # noqa: F401
    import safetensors.numpy  # noqa: F401
    import tuf.api.metadata  # noqa: F401

    found = 0
    for removal in survivors(wanted):
        found += 1
        print(removal, flush=True)
    print(f"{len(wanted) - found} checks are missed by a test, {found} are not")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
