"""Archives from URLs that the configuration allows (`allowed_urls`), into the model store.

A redirection is followed to what is allowed alone: else whoever has an allowed server's word could have this one ask any other.
"""

import os
import re
import tempfile
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..errors import Conflict, InvalidInput, NotFound
from .place import SUFFIXES

_MOST_BYTES = 64 << 30
_PIECE_BYTES = 1 << 20
_PAUSE_S = 60.0
"""So long a server may send nothing."""


def is_allowed(url: str, allowed: Sequence[str]) -> bool:
    """Whether one of the patterns is all of it, in any case, as for TorchServe."""
    return url.lower().startswith(("http://", "https://")) and any(
        re.fullmatch(pattern, url, re.IGNORECASE) for pattern in allowed
    )


def download(url: str, allowed: Sequence[str], store: Path) -> str:
    """The name in the store of what is there now.

    Raises NotFound for a URL that is not allowed or has none, InvalidInput for one that names no archive, Conflict if the store
    has one of its name.
    """
    if not is_allowed(url, allowed):
        raise NotFound(f"url = {url[:200]!r}, must be one of the configuration's allowed_urls")
    name = unquote(re.split("[?#]", url)[0]).rpartition("/")[2]
    if not name.endswith(SUFFIXES) or "\0" in name:
        raise InvalidInput(f"url = {url[:200]!r}, must end with one of {', '.join(SUFFIXES)}")
    if os.path.exists(store / name):  # a name that is too long is none, and cannot be written
        raise Conflict(f"{name} is in the model store already, to be registered by its name")
    opener = urllib.request.build_opener(_Redirects(allowed))
    with tempfile.TemporaryDirectory(dir=store, prefix=".download-") as folder:
        part = Path(folder) / name
        try:
            with opener.open(url, timeout=_PAUSE_S) as answer, part.open("xb") as file:
                while piece := answer.read(_PIECE_BYTES):
                    file.write(piece)
                    if file.tell() > _MOST_BYTES:
                        raise InvalidInput(f"{url[:200]}: the archive must have at most {_MOST_BYTES} bytes")
        except (OSError, HTTPException, ValueError) as error:  # urllib's own are OSErrors, but for URLs that are none
            raise NotFound(f"{url[:200]}: {error}") from None
        part.rename(store / name)
    return name


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = allowed

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not is_allowed(newurl, self._allowed):
            raise NotFound(f"{newurl[:200]!r}, which it leads to, must be one of the configuration's allowed_urls")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
