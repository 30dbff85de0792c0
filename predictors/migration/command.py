"""`torpor migrate`: TorchServe's archives to model folders that behave the same."""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings import SettingError

if TYPE_CHECKING:
    from .report import Outcome

_REPORTS = ("report.md", "report.json")

_EXAMPLE = """\
examples:

  torpor migrate mnist.mar out --sample digit.png --sample v1.json
  torpor migrate /mnt/models out --storage-uri s3://bucket/models && torpor serve out/mnist

A sample is a JSON file with `instances` (v1) or `inputs` (v2), or any other file: the body of a prediction.
status: 0 where every model is migrated and no compared answer differs, 1 where not, 2 for wrong arguments
"""


def add_command(commands: Any) -> None:
    """Add `migrate` to the sub-commands of `torpor`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "migrate",
        help="make model folders of TorchServe's archives",
        description="Writes for each archive a model folder (class, model.toml, safetensors) with an InferenceService, and "
        "report.md and report.json, which say what could not be carried over. Then it serves each archive and its folder, "
        "asks both the same, and compares. It runs the archives' code.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="ARCHIVE|FOLDER",
                        help="a .mar, .tar.gz or unpacked archive, a folder of them, or KServe's storage folder")  # fmt: skip
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="the folder to write: a folder each model, and the reports"
    )
    parser.add_argument("--sample", type=Path, action="append", default=[], metavar="FILE",
                        help="a request to compare by, repeatable; else some are made where a row's form is known")  # fmt: skip
    parser.add_argument("--protocol", choices=("v1", "v2"), default="v1",
                        help="by which a handler that runs whole was called; a folder has one (default v1)")  # fmt: skip
    parser.add_argument("--tolerance", type=_tolerance, default=1e-4, metavar="NUMBER",
                        help="by how much numbers may differ, relatively; absolutely a tenth (default 0.0001)")  # fmt: skip
    parser.add_argument("--storage-uri", default="pvc://models", metavar="URI",
                        help="where the folders will lie, for the InferenceServices (default pvc://models)")  # fmt: skip
    parser.add_argument("--unpickle", action="store_true",
                        help="read weights that hold more than tensors: whatever the file says runs here")  # fmt: skip
    parser.set_defaults(run=_run)


def _tolerance(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}, must be in [0, 1]")
    return value


def _run(options: argparse.Namespace, began_s: float) -> int:
    from . import report

    out: Path = options.out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingError(f"{out}: is there already, must be an empty folder or none")
    for sample in options.sample:
        if not sample.is_file():
            raise SettingError(f"--sample {sample}: no such file")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside OUT, and renamed when it is whole: what is called OUT is never half of it.
    making = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        outcomes = _migrate_all(options, making)
        if any(outcome.migrated for outcome in outcomes):
            for file, text in zip(_REPORTS, (report.as_markdown(outcomes), report.as_json(outcomes)), strict=True):
                (making / file).write_text(text)
            # A pod reads it under another user, and an unpacked archive is its owner's alone.
            for path in (making, *making.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)
            making.replace(out)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    print(report.as_table(outcomes))
    if any(outcome.migrated for outcome in outcomes):
        print(f"{out}: {', '.join((*(outcome.name for outcome in outcomes if outcome.migrated), *_REPORTS))}")
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


def _migrate_all(options: argparse.Namespace, making: Path) -> "list[Outcome]":
    """Raises SettingError for what is no archive."""
    from ..catalog import Outside
    from ..runtime.cores import usable_cores
    from ..torchserve.place import has_archives
    from ..torchserve.store import ArchiveStore
    from .folder import NotCarriedError, migrate
    from .report import Outcome
    from .service import inference_service

    source: Path = options.source
    if not source.exists():
        raise SettingError(f"{source}: no such file or folder")
    if not has_archives(source):
        raise SettingError(f"{source}: no archive, and none in it")
    store = ArchiveStore.of(source.resolve(), Outside({}, os.environ), usable_cores(), None)
    outcomes: list[Outcome] = []
    for name in store.names():
        if name.startswith(".") or "/" in name or name in _REPORTS:
            raise SettingError(f"{source}: model {name!r}: no folder of OUT can be called so")
        model = store.model(name)
        default, *others = model.versions()
        _progress(f"{name}: is carried over")
        outcome = Outcome(name, model.archives[0].path.name)
        outcomes.append(outcome)
        folder = making / name
        try:
            assembled = model.assemble(default)
            migrated = migrate(name, assembled, folder, options.protocol, options.unpickle)
        except (NotCarriedError, SettingError) as error:
            outcome.reason = str(error)
            shutil.rmtree(folder, ignore_errors=True)
            continue
        migrated.left += [f"version {version}: migrate its archive by itself" for version in others]
        (folder / "inferenceservice.yaml").write_text(inference_service(migrated, options.storage_uri))
        outcome.migrated = migrated
        _compare(options, outcome, assembled.config)
    return outcomes


def _compare(options: argparse.Namespace, outcome: "Outcome", config: Any) -> None:
    from . import samples
    from .comparison import NotServedError, compare
    from .folder import NotCarriedError

    migrated = outcome.migrated
    assert migrated is not None
    try:
        given = [samples.of_file(path, migrated) for path in options.sample]
        chosen = given or samples.generated(migrated)
        outcome.rows = compare(migrated, config, chosen, options.tolerance, options.unpickle, _progress)
    except (NotServedError, NotCarriedError) as error:
        outcome.reason = str(error)


def _progress(text: str) -> None:
    print(f"torpor: {text}", file=sys.stderr, flush=True)
