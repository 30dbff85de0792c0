"""The archive as torpor serves it, and the migrated folder, asked the same: each served for as long as its calls take."""

import http.client
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..torchserve.archive import stem
from ..torchserve.properties import Config
from .folder import Migrated
from .samples import Call, Sample

_ANSWER_S = 300.0
_LEAVING_S = 30.0
_READY = re.compile(r"ready in .* on .*:(\d+)$")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes


@dataclass(frozen=True)
class Row:
    """What came of a sample. difference: "" where they agree. notes: in what the answers are written differently."""

    sample: str
    protocol: str
    theirs: int
    ours: int
    difference: str = ""
    notes: str = ""


class NotServedError(Exception):
    """A server did not start, or went; the message has what it said last."""


def compare(
    migrated: Migrated, config: Config, samples: Sequence[Sample], tolerance: float, unpickle: bool, progress: Progress
) -> list[Row]:
    """Raises NotServedError. With no samples both are started all the same."""
    with tempfile.TemporaryDirectory(prefix="torpor-migrate-") as name:
        environment = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"} if unpickle else {}
        progress(f"{migrated.name}: the archive is served")
        with _serving(_storage(Path(name), migrated, config), migrated.name, environment) as port:
            theirs = [_ask(port, sample.theirs) for sample in samples]
    progress(f"{migrated.name}: the folder is served")
    with _serving(migrated.folder, migrated.name, {}) as port:
        ours = [_ask(port, sample.ours) for sample in samples]
    return [_compared(*pair, tolerance) for pair in zip(samples, theirs, ours, strict=True)]


def _storage(root: Path, migrated: Migrated, config: Config) -> Path:
    """The archive alone, under the settings that change what its handler gets."""
    (root / "config").mkdir()
    (root / "model-store").mkdir()
    archive = migrated.archive.resolve()
    # By a name of our own: a comma in it would be the configuration's.
    (root / "model-store" / f"archive{archive.name.removeprefix(stem(archive))}").symlink_to(archive)
    lines = [
        f"service_envelope={config.service_envelope}",
        f"decode_input_request={str(config.decode_input_request).lower()}",
        f"limit_max_image_pixels={str(config.limit_max_image_pixels).lower()}",
        "default_workers_per_model=1",
    ]
    (root / "config" / "config.properties").write_text("\n".join(lines) + "\n")
    return root


@contextmanager
def _serving(place: Path, name: str, environment: dict[str, str]) -> Iterator[int]:
    """Its port, once it is ready. Raises NotServedError."""
    command = [
        sys.executable, "-P", "-m", "torpor.predictors", "serve", str(place), "--model-name", name, "--host", "127.0.0.1",
        "--port", "0", "--drain-quiet-s", "0",
    ]  # fmt: skip
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TORPOR_")}
    kept["PYTHONDONTWRITEBYTECODE"] = "1"  # the folder is to be as it was written
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=kept | environment)
    assert process.stderr is not None
    said: list[str] = []
    try:
        for line in process.stderr:
            said.append(line)
            if match := _READY.search(line):
                break
        else:
            raise NotServedError(f"{place}: did not start: " + " ".join("".join(said[-3:]).split()))
        # Nobody reads its log any more, and it must not wait for that.
        threading.Thread(target=said.extend, args=(process.stderr,), daemon=True).start()
        yield int(match[1])
    finally:
        process.terminate()
        try:
            process.wait(_LEAVING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ask(port: int, call: Call) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_S)
    try:
        connection.request("POST", call.path, call.body, {"content-type": call.content_type})
        response = connection.getresponse()
        return Answer(response.status, response.read())
    except (OSError, http.client.HTTPException) as error:
        raise NotServedError(f"{call.path}: no answer: {error or type(error).__name__}") from None
    finally:
        connection.close()


def _compared(sample: Sample, theirs: Answer, ours: Answer, tolerance: float) -> Row:
    def row(difference: str = "", notes: str = "") -> Row:
        return Row(sample.name, sample.protocol, theirs.status, ours.status, difference, notes)

    if theirs.status != ours.status:
        refused = ours if ours.status >= 400 else theirs
        return row(f"status: {refused.body[:200].decode('utf-8', 'replace')}")
    if theirs.status >= 400:
        return row(notes="both refuse")
    notes = ""
    if sample.protocol == "predictions":
        (own,) = json.loads(ours.body)["predictions"]
        same = difference(_value(theirs.body), own, tolerance)
        notes = "the folder by v1"
    elif sample.protocol == "v2":
        same, notes = _of_outputs(json.loads(theirs.body)["outputs"], json.loads(ours.body)["outputs"], tolerance)
    else:
        same = difference(json.loads(theirs.body), json.loads(ours.body), tolerance)
    return row(same, notes)


def _of_outputs(theirs: list[Any], ours: list[Any], tolerance: float) -> tuple[str, str]:
    """The difference of v2's data, flat, and notes of what else is written otherwise."""
    if len(theirs) != len(ours):
        return f"{len(theirs)} outputs, {len(ours)}", ""
    notes: list[str] = []
    for his, own in zip(theirs, ours, strict=True):
        found = difference([*_flat(his["data"])], [_parsed(item) for item in _flat(own["data"])], tolerance, "data")
        if found:
            return found, ""
        notes += [f"{key} {his[key]} → {own[key]}" for key in ("name", "datatype", "shape") if his[key] != own[key]]
    return "", ", ".join(notes)


def difference(theirs: Any, ours: Any, tolerance: float, place: str = "") -> str:
    """Where two values of JSON differ first, and how; "" if they agree. tolerance: of numbers, relative; absolute a tenth."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        if theirs.keys() != ours.keys():
            return f"{place or 'body'}: keys {sorted(theirs)}, {sorted(ours)}"[:200]
        pairs = [(f"{place}.{key}".lstrip("."), theirs[key], ours[key]) for key in theirs]
    elif isinstance(theirs, list) and isinstance(ours, list):
        if len(theirs) != len(ours):
            return f"{place or 'body'}: {len(theirs)} elements, {len(ours)}"
        pairs = [(f"{place}[{at}]", *pair) for at, pair in enumerate(zip(theirs, ours, strict=True))]
    else:
        return "" if _is_close(theirs, ours, tolerance) else f"{place or 'body'}: {theirs!r}, {ours!r}"[:200]
    return next((found for at, his, own in pairs if (found := difference(his, own, tolerance, at))), "")


def _is_close(theirs: Any, ours: Any, tolerance: float) -> bool:
    numbers = (int, float)
    if (
        isinstance(theirs, bool)
        or isinstance(ours, bool)
        or not (isinstance(theirs, numbers) and isinstance(ours, numbers))
    ):
        return type(theirs) is type(ours) and bool(theirs == ours)
    return math.isclose(theirs, ours, rel_tol=tolerance, abs_tol=tolerance / 10) or (theirs != theirs and ours != ours)


def _value(body: bytes) -> Any:
    """A prediction's body: JSON, else a text, else bytes in base64 as the folder has them."""
    try:
        return json.loads(body)
    except ValueError:
        pass
    try:
        return body.decode()
    except UnicodeDecodeError:
        return {"b64": b64encode(body).decode()}


def _flat(data: Any) -> Iterator[Any]:
    if not isinstance(data, list):
        yield data
        return
    for item in data:
        yield from _flat(item)


def _parsed(item: Any) -> Any:
    """An element of BYTES that is the text of an object is that, as TorchServe writes it."""
    if not isinstance(item, str):
        return item
    try:
        value = json.loads(item)
    except ValueError:
        return item
    return value if isinstance(value, dict | list) else item
