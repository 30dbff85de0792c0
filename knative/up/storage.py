"""Models by their storageUri: folders of this machine as they are, anything else fetched once into the state folder."""

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .documents import UpError
from .instance import prepare

_FETCHED = ("gs", "s3", "http", "https", "hf", "hdfs", "webhdfs")
"""What the package kserve-storage fetches."""
_PROGRAM = """\
import sys
from kserve_storage import Storage
try:
    Storage.download(sys.argv[1], sys.argv[2])
except Exception as error:
    sys.exit(type(error).__name__ + ": " + " ".join(str(error).split()))
"""


async def model_folder(
    uri: str, where: str, folder: Path, maps: Sequence[tuple[str, str]], say: Callable[[str], None]
) -> Path:
    """The folder for /mnt/models. folder: of the state. Cancelled, it leaves nothing half fetched. Raises UpError."""
    local = uri
    for known, replacement in maps:
        local = local.replace(known, replacement)
    parts = urlsplit(local)
    if parts.scheme in ("", "file"):
        return _existing(Path(unquote(parts.netloc + parts.path)), uri, where)
    if parts.scheme == "pvc":
        claim = folder / "pvc" / parts.netloc
        if not claim.is_dir():
            hint = f"put it at {claim}, or say --map pvc://{parts.netloc}=FOLDER"
            raise UpError(f"{where}: {uri}: the claim is not here: {hint}")
        return _existing(claim / parts.path.lstrip("/"), uri, where)
    if parts.scheme not in _FETCHED:
        allowed = ", ".join(f"{scheme}://" for scheme in ("file", "pvc", *_FETCHED))
        raise UpError(f"{where}: storageUri {uri!r} cannot be had here, must be one of {allowed}")
    return await _fetched(uri, where, folder / "models", say)


def _existing(path: Path, uri: str, where: str) -> Path:
    if not path.is_dir():
        raise UpError(f"{where}: storageUri {uri}: there is no folder {path}")
    return path.resolve()


async def _fetched(uri: str, where: str, folder: Path, say: Callable[[str], None]) -> Path:
    """Once for all who ask one after the other; who asks meanwhile fetches it too."""
    final = folder / hashlib.sha256(uri.encode()).hexdigest()[:16]
    if final.is_dir():
        return final
    if importlib.util.find_spec("kserve_storage") is None:
        raise UpError(f"{where}: {uri} is fetched by a package that is missing: pip install 'torpor[storage]'")
    partial = final.with_suffix(".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        say(f"fetching {uri} into {final}")
        await _fetch(uri, partial, say)
        partial.rename(final)
    except (OSError, _FetchFailed) as error:
        if "No space left on device" in str(error):
            free = shutil.disk_usage(folder).free >> 20
            raise UpError(f"{where}: {uri}: the disk of {folder} is full, {free} MiB are free") from error
        raise UpError(f"{where}: {uri} could not be fetched: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


class _FetchFailed(Exception):
    """With the last that the fetching process said."""


async def _fetch(uri: str, folder: Path, say: Callable[[str], None]) -> None:
    """In a process, since nothing else of it can be cut short. Raises _FetchFailed, OSError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PROGRAM, uri, str(folder),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        preexec_fn=prepare,
    )  # fmt: skip
    said = ""
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            said = line.decode("utf-8", "replace").strip() or said
            say(f"fetching {uri}: {said}")
        if await process.wait():
            raise _FetchFailed(said)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # objects of S3 are fetched by processes of its own
        await process.wait()
