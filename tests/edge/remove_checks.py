"""Take each check out of `edge/` in turn, and see a test fail: `python tests/edge/remove_checks.py [MODULE ...]`.

Not a test itself, since it runs them once for each check, some 70 times. A check is a `raise Refused`, a call that ends in
one, or a sync: without it a power cut must spoil something. It prints the checks that no test misses, and ends with 1.
"""

import ast
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CALLS = {"_check_form", "_check_key", "_check_apart", "_check_names", "_check_parts",
         "_check_profile", "_check_space", "_check_valid", "check", "sync",
         "sync_folder", "update_root"}  # fmt: skip
TESTS = ("test_bundle.py", "test_trust.py", "test_node.py", "test_k3s.py", "test_command.py", "test_profile.py",
         "test_systemd.py", "test_doctor.py", "test_rollout.py", "test_origin.py", "test_agent.py", "test_receiver.py",
         "test_fleet_command.py")  # fmt: skip


def checks(tree: ast.Module) -> Iterator[tuple[list[ast.stmt], int, str]]:
    """The body that has it, where in that, and how to name it."""
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            for index, statement in enumerate(body if isinstance(body, list) else ()):
                call = statement.exc if isinstance(statement, ast.Raise) else getattr(statement, "value", None)
                if not isinstance(statement, ast.Raise | ast.Expr) or not isinstance(call, ast.Call):
                    continue
                name = getattr(call.func, "id", getattr(call.func, "attr", ""))
                if name == "Refused" if isinstance(statement, ast.Raise) else name in CALLS:
                    yield body, index, f"{statement.lineno}: {ast.unparse(statement)[:110]}"


def is_missed(module: Path, source: str) -> bool:
    """Whether a test fails with this in the module's place."""
    with tempfile.TemporaryDirectory(prefix="torpor-checks-") as folder:
        package = Path(folder) / "torpor" / "edge"
        package.mkdir(parents=True)
        for file in (ROOT / "edge").rglob("*.py"):
            copy = package / file.relative_to(ROOT / "edge")
            copy.parent.mkdir(exist_ok=True)
            copy.write_text(source if file == module else file.read_text())
        command = [Path(sys.executable).with_name("pytest"), "-x", "-q", "-p", "no:cacheprovider"]
        tests = [ROOT / "tests" / "edge" / name for name in TESTS]
        variables = os.environ | {"PYTHONPATH": folder, "PYTHONSAFEPATH": "1"}
        return (
            subprocess.run([*command, *tests], cwd=ROOT, env=variables, capture_output=True, check=False).returncode
            != 0
        )


def main() -> int:
    missed, unmissed = 0, []
    for module in sorted((ROOT / "edge").rglob("*.py")):
        if module.name == "command.py" or (sys.argv[1:] and module.stem not in sys.argv[1:]):
            continue
        for number in range(sum(1 for _ in checks(ast.parse(module.read_text())))):
            tree = ast.parse(module.read_text())
            body, index, name = list(checks(tree))[number]
            body[index] = ast.Pass()
            if is_missed(module, ast.unparse(ast.fix_missing_locations(tree))):
                missed += 1
            else:
                unmissed.append(f"{module.relative_to(ROOT)}:{name}")
                print(unmissed[-1], flush=True)
    print(f"{missed} checks are missed by a test, {len(unmissed)} are not")
    return 1 if unmissed else 0


if __name__ == "__main__":
    sys.exit(main())
