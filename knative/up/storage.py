"""Models by their storageUri: folders of this machine as they are, anything else fetched once into the state folder."""

import errno
import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .documents import UpError

_FETCHED = ("gs", "s3", "http", "https", "hf", "hdfs", "webhdfs")
"""What the package kserve-storage fetches."""


def model_folder(
    uri: str, where: str, folder: Path, maps: Sequence[tuple[str, str]], say: Callable[[str], None]
) -> Path:
    """The folder for /mnt/models. folder: of the state. Blocks while it fetches. Raises UpError."""
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
    return _fetched(uri, where, folder / "models", say)


def _existing(path: Path, uri: str, where: str) -> Path:
    if not path.is_dir():
        raise UpError(f"{where}: storageUri {uri}: there is no folder {path}")
    return path.resolve()


def _fetched(uri: str, where: str, folder: Path, say: Callable[[str], None]) -> Path:
    final = folder / hashlib.sha256(uri.encode()).hexdigest()[:16]
    if final.is_dir():
        return final
    try:
        from kserve_storage import Storage
    except ImportError as error:
        raise UpError(
            f"{where}: {uri} is fetched by a package that is missing: pip install 'torpor[storage]'"
        ) from error
    partial = final.with_suffix(".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        say(f"fetching {uri} into {final}")
        Storage.download(uri, str(partial))
        partial.rename(final)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            free = shutil.disk_usage(folder).free >> 20
            raise UpError(f"{where}: {uri}: the disk of {folder} is full, {free} MiB are free") from error
        raise UpError(f"{where}: {uri} could not be fetched: {error}") from error
    return final
