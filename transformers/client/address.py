"""Where a predictor is: `host:port`, `http(s)://host[:port][/prefix]` or `unix:/path`."""

from dataclasses import dataclass
from urllib.parse import quote, urlsplit


@dataclass(frozen=True, slots=True)
class Address:
    """host, port: "" and 0 for a Unix socket, whose file is `path`. prefix: what precedes every path, "" or "/…"."""

    host: str
    port: int
    path: str = ""
    prefix: str = ""
    is_tls: bool = False

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Without a port it is the scheme's. Raises ValueError."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if not path.startswith("/"):
                raise ValueError(f"address = {text!r}, must have an absolute path, as unix:/run/predictor.sock")
            return cls("", 0, path)
        parts = urlsplit(text if "://" in text else f"http://{text}")
        try:
            port = parts.port
        except ValueError:
            port = 0
        wrong = parts.scheme not in ("http", "https") or not parts.hostname or port == 0
        if wrong or parts.query or parts.fragment or parts.username is not None:
            raise ValueError(f"address = {text!r}, must be host:port, http(s)://host[:port][/prefix] or unix:/path")
        is_tls = parts.scheme == "https"
        assert parts.hostname is not None
        prefix = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
        return cls(parts.hostname, port or (443 if is_tls else 80), "", prefix, is_tls)

    @property
    def authority(self) -> str:
        """The value of the Host field."""
        if self.path:
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"{'https' if self.is_tls else 'http'}://{self.authority}{self.prefix}"
