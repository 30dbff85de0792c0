"""TorchServe archives, made by hand as `torch-model-archiver` lays them out."""

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "MAR-INF/MANIFEST.json"


def manifest(name: str, handler: str = "handler.py", version: str = "1.0", **model: Any) -> dict[str, Any]:
    """A manifest's object; `model` has more of the model's keys."""
    said = {"modelName": name, "handler": handler, "modelVersion": version, **model}
    return {"createdOn": "01/01/2026 00:00:00", "runtime": "python", "model": said, "archiverVersion": "0.12.0"}


def write_mar(path: Path, files: Mapping[str, str | bytes], said: Mapping[str, Any] | None = None) -> Path:
    """A .mar with these files; `said` is its manifest, by default that of a `handler.py` and the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(MANIFEST, json.dumps(said if said is not None else manifest(path.stem)))
    return path


def write_tgz(path: Path, files: Mapping[str, str | bytes], said: Mapping[str, Any], top: str) -> Path:
    """The same as a gzipped tar whose members are below one folder."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {**files, MANIFEST: json.dumps(said)}.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_storage(folder: Path, snapshot: Mapping[str, Any] | None, more: str = "") -> Path:
    """KServe's storage folder around the archives that are in its model-store."""
    (folder / "config").mkdir(parents=True, exist_ok=True)
    (folder / "model-store").mkdir(exist_ok=True)
    lines = ["inference_address=http://0.0.0.0:8085", "metrics_format=prometheus", "NUM_WORKERS=1", more]
    if snapshot is not None:
        text = json.dumps({"name": "startup.cfg", "modelCount": len(snapshot), "models": snapshot})
        lines.append(f"model_snapshot={text}")
    (folder / "config" / "config.properties").write_text("\n".join(lines) + "\n")
    return folder


def entry(file: str, **more: Any) -> dict[str, Any]:
    """A version in a snapshot."""
    said = {
        "defaultVersion": True,
        "marName": file,
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": 1,
        "maxBatchDelay": 10,
    }
    return said | more
