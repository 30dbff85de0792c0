"""The architecture as imports: who may import whom, and what the serving path must not cost."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "kserve", "kubernetes", "pandas", "fastapi", "grpc", "transformers", "uvicorn", "cloudevents"}

FORBIDDEN = {
    "predictors/batching": {"numpy", "asyncio", "time", *HEAVY, "protocol", "serving", "runtime"},
    "predictors/protocol": {"asyncio", *HEAVY, "serving", "runtime", "batching"},
    "predictors/serving": {*HEAVY, "runtime"},
    "predictors/torchserve": {*HEAVY, "runtime", "ts"},
    "predictors/torchserve/worker": {"asyncio", *HEAVY, "runtime", "serving", "ts"},
    "predictors/migration": {"kserve", "kubernetes", "pandas", "fastapi", "transformers", "uvicorn", "serving"},
    "predictors/runtime": {"kserve", "kubernetes", "hpack", "serving"},
    "edge": {"asyncio", *HEAVY, "serving", "runtime"},
    "knative": {"torch", "runtime", "kserve", "pandas", "fastapi", "transformers", "uvicorn"},
    "transformers": {"torch", "kubernetes", "pandas", "fastapi", "transformers", "uvicorn"},
}
"""What no module of a folder may import, outside packages and torpor's own."""

ALLOWED = {"predictors/torchserve/worker/tensors.py": {"torch"}}
"""It is imported where a handler has imported that (`test_a_handler_need_not_have_torch`)."""


def imported(file: Path) -> set[str]:
    """Top-level packages, and for relative imports the folders that they go through."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")
            sibling = node.level == 1 and file.parent.name != "predictors"
            names.update([] if sibling else module[:1])
    return names


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_folders_import_only_what_they_may(folder: str) -> None:
    """The layout is the architecture."""
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for file in files:
        wrong = (imported(file) & FORBIDDEN[folder]) - ALLOWED.get(str(file.relative_to(ROOT)), set())
        assert not wrong, f"{file.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_only_the_composition_root_brings_serving_and_runtime_together() -> None:
    """The command, and the catalog, which knows what to load; the adapter to KServe's SDK alone imports kserve."""
    both = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "predictors").rglob("*.py")
        if {"serving", "runtime"} <= imported(file)
    }
    assert both == {"predictors/catalog.py", "predictors/command.py"}
    kserve = {str(f.relative_to(ROOT)) for f in (ROOT / "predictors").rglob("*.py") if "kserve" in imported(f)}
    assert kserve == {"predictors/kserve_model.py"}


def test_waiting_knows_no_wall_clock() -> None:
    """A clock that is set while the server runs changes no deadline: what follows it is the Date field (`formatdate`), spans,
    which are compared with those of other machines, and the time that a worker's description says.
    """
    theirs = {ROOT / "predictors/serving/tracing.py", ROOT / "predictors/torchserve/description.py"}
    for file in sorted({*(ROOT / "predictors").rglob("*.py")} - theirs):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                read = f"{node.value.id}.{node.attr}"
                assert read not in ("time.time", "time.time_ns", "datetime.now", "datetime.datetime"), f"{file}: {read}"


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after running `code`."""
    script = f"{code}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_serving_path_imports_nothing_heavy() -> None:
    """All that a request goes through, and not one of the packages that make a cold start slow."""
    modules = loaded_by(
        "import torpor.predictors.command, torpor.predictors.serving.app, torpor.predictors.serving.lifecycle\n"
        "import torpor.predictors.serving.server, torpor.predictors.runtime.executor"
    )
    assert not modules & (
        HEAVY | {"scipy", "prometheus_client", "h2", "httpx", "shtab", "opentelemetry", "ml_dtypes", "ruamel"}
    )


def test_ready_made_transformers_import_their_libraries_when_they_are_loaded() -> None:
    """Each is an extra, which who serves another class need not have."""
    modules = loaded_by("import torpor.transformers.features, torpor.transformers.image, torpor.transformers.text")
    assert not modules & (HEAVY | {"redis", "hiredis", "PIL", "tokenizers", "prometheus_client"})
    command = loaded_by("import torpor.transformers.features_command, torpor.predictors.simulate")
    assert command == loaded_by("import torpor.predictors.simulate")


def test_the_client_imports_nothing_heavy() -> None:
    """grpcio comes with the first request over gRPC; torch and kserve are for the predictor's side."""
    modules = loaded_by(
        "from torpor.transformers.client import PredictorClient; PredictorClient('a:1', 'm', 'grpc-v2')"
    )
    assert not modules & (HEAVY | {"scipy", "prometheus_client", "httpx", "h2", "ml_dtypes"})


def test_the_codec_of_events_imports_nothing_heavy() -> None:
    """The package cloudevents comes with the first event that the Python API takes or gives, by one module."""
    modules = loaded_by("import torpor.transformers.events, torpor.transformers.events.python_sdk")
    assert not modules & (HEAVY | {"numpy", "asyncio", "redis", "nats"})
    assert not loaded_by("import torpor.transformers.events.receiver") & (HEAVY | {"redis", "nats"})
    importers = {
        str(file.relative_to(ROOT))
        for folder in ("predictors", "transformers")
        for file in (ROOT / folder).rglob("*.py")
        if "cloudevents" in imported(file)
    }
    assert importers == {"transformers/events/python_sdk.py"}


def test_who_makes_or_reads_a_bundle_needs_no_tuf() -> None:
    """It comes with the first signature, by two modules; no other command waits for it."""
    modules = loaded_by("import torpor.edge.command, torpor.edge.bundle, torpor.edge.difference, torpor.edge.layout")
    assert not modules & (HEAVY | {"tuf", "securesystemslib", "cryptography", "numpy", "asyncio"})
    importers = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "edge").rglob("*.py")
        if imported(file) & {"tuf", "cryptography"}
    }
    assert importers == {"edge/repository.py", "edge/trust.py"}


def test_the_authors_import_is_nearly_free() -> None:
    """`import torpor.predictors`, in a model's file, brings the errors and nothing else."""
    assert not loaded_by("import torpor.predictors") & (HEAVY | {"numpy", "asyncio", "orjson", "hpack"})


def test_transformers_is_never_ours() -> None:
    """Hugging Face's package keeps its name, from the repository's root too."""
    code = "import transformers; print(transformers.__file__)"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert str(ROOT / "transformers") not in done.stdout


def test_the_committed_schemas_are_the_compiled_proto_files(tmp_path: Path) -> None:
    """`make schemas` was run after the last change of a .proto file."""
    folder = ROOT / "predictors/protocol/schemas"
    out = tmp_path / "schemas.binpb"
    command = [sys.executable, "-P", "-m", "grpc_tools.protoc", f"-I{folder}", f"--descriptor_set_out={out}"]
    subprocess.run([*command, *sorted(map(str, folder.glob("*.proto")))], check=True)
    assert out.read_bytes() == (folder / "schemas.binpb").read_bytes()


def test_the_image_has_every_dependency() -> None:
    """The Dockerfile names what it takes from the lock; a dependency that it forgets is missed by the first start."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    taken = re.search(r"grep -i -E '\^\(([^)]*)\)==", (ROOT / "Dockerfile").read_text())
    assert taken is not None
    named = {name.replace("_", "-").lower() for name in taken[1].split("|")}
    assert {re.split(r"[^\w-]", need)[0] for need in needed} <= named
