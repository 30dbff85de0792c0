"""Where events are sent: a URL, as sinks, triggers and the command line name it."""

from typing import NamedTuple
from urllib.parse import urlsplit

from ..client.address import Address


class Destination(NamedTuple):
    """target: path and query, percent-encoded."""

    address: Address
    target: str

    @classmethod
    def parse(cls, name: str, url: str) -> "Destination":
        """name: of what has the URL, for the error. Raises ValueError."""
        if not (url.isascii() and url.isprintable()) or " " in url:
            raise ValueError(f"{name} = {url!r}, must be percent-encoded")
        try:
            if not url.startswith(("http://", "https://")):
                raise ValueError
            parts = urlsplit(url)
            address = Address.parse(f"{parts.scheme}://{parts.netloc}")
        except ValueError:
            raise ValueError(
                f"{name} = {url!r}, must be http://HOST[:PORT][/PATH] or https://HOST[:PORT][/PATH]"
            ) from None
        return cls(address, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
