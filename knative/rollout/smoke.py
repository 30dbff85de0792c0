"""One request to a candidate before anybody else's reaches it, through the ingress, by the address that its tag has."""

import json
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

_ZEROS = {"BYTES": "", "BOOL": False}


class Smoke:
    """body: JSON of a v2 (`inputs`) or v1 (`instances`) request; None for one of zeros after the model's metadata.

    model: its name; '' for what the server lists, the service's name ahead. ingress: the address to go to with the service's
    Host header, None where its name is resolved. timeout_s: of each request; a pod at zero wakes in it.
    """

    def __init__(
        self, body: bytes | None = None, model: str = "", ingress: str | None = None, timeout_s: float = 30.0
    ) -> None:
        self.body = body
        self.model = model
        self.ingress = ingress
        self.timeout_s = timeout_s

    def ask(self, url: str, service_name: str, own_body: bool = True) -> str:
        """'' when it answered, else what was wrong. own_body: False to leave `body` and send zeros."""
        try:
            body, model = self.body if own_body else None, self.model
            if not model:
                model = self._model(url, service_name)
            if body is None:
                described = json.loads(self._call(url, f"/v2/models/{model}"))
                body = json.dumps({"inputs": [_zeros(tensor) for tensor in described["inputs"]]}).encode()
                return self._infer_zeros(url, model, body)
            path = f"/v1/models/{model}:predict" if "instances" in json.loads(body) else f"/v2/models/{model}/infer"
            self._call(url, path, body)
        except HTTPError as error:
            return f"{urlsplit(error.url).path} answered {error.code}: {_beginning(error.read())}"
        except (URLError, OSError, ValueError, KeyError, TypeError) as error:
            return f"{url}: {error}"
        return ""

    def _infer_zeros(self, url: str, model: str, body: bytes) -> str:
        try:
            self._call(url, f"/v2/models/{model}/infer", body)
        except HTTPError as error:
            if error.code >= 500:
                raise
            # Zeros need not be an input that the model takes; it did answer, and --smoke is for more.
        return ""

    def _model(self, url: str, service_name: str) -> str:
        try:
            listed = json.loads(self._call(url, "/v2/repository/index", b"{}"))
        except HTTPError as error:
            if error.code >= 500:
                raise
            return service_name
        names = [str(entry["name"]) for entry in listed]
        return service_name if service_name in names or not names else names[0]

    def _call(self, url: str, path: str, body: bytes | None = None) -> bytes:
        host = urlsplit(url).netloc
        headers = {"Host": host} if body is None else {"Host": host, "Content-Type": "application/json"}
        with urlopen(
            Request((self.ingress or url).rstrip("/") + path, body, headers), timeout=self.timeout_s
        ) as answer:
            read: bytes = answer.read()
        return read


def read_body(file: Path) -> bytes:
    """Raises OSError, ValueError."""
    body = file.read_bytes()
    given: Any = json.loads(body)
    if not isinstance(given, dict) or not {"inputs", "instances"} & set(given):
        raise ValueError(f"{file}: neither inputs (v2) nor instances (v1)")
    return body


def _zeros(tensor: dict[str, Any]) -> dict[str, Any]:
    """One row; of an axis whose length is free, one."""
    shape = [max(int(length), 1) for length in tensor["shape"]]
    count = 1
    for length in shape:
        count *= length
    zero = _ZEROS.get(tensor["datatype"], 0)
    return {"name": tensor["name"], "datatype": tensor["datatype"], "shape": shape, "data": [zero] * count}


def _beginning(body: bytes) -> str:
    return " ".join(body.decode("utf-8", "replace").split())[:200]
