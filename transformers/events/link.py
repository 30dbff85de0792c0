"""The link between an edge node's broker and its site's: what their NATS servers and streams must say for it.

    node: events   ─► leaf connection ─► site: events of all nodes
    node: commands ◄─ leaf connection ◄─ site: commands

The node's NATS server is a leaf node of the site's, and each has a JetStream domain of its own, so that nothing
crosses but what `handover.py` says, on the subjects below.

Both ends show a certificate. A node's is for its name, and by that the site's server lets it do what the link needs, and
nothing else.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COMMANDS = "torpor-commands"
"""The site's stream of what is for the nodes, and each node's of what has come of it."""

SITE = "site"
"""The site's JetStream domain, and its name for its nodes."""

PORT = 7422
"""NATS' own for leaf nodes."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PATIENCE_S = 30
"""For a connection's beginning: NATS' one or two seconds are too few where every second packet is lost."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A folder with `tls.crt`, `tls.key` and `ca.crt`, as a Kubernetes Secret of certificates has them."""

    folder: Path

    def check(self) -> None:
        """Raises ValueError for a file that is not there."""
        for name in ("tls.crt", "tls.key", "ca.crt"):
            if not (self.folder / name).is_file():
                raise ValueError(f"certificate {self.folder} has no {name}, must have tls.crt, tls.key and ca.crt")

    def __str__(self) -> str:
        """As NATS' configuration has it."""
        files = {"cert_file": "tls.crt", "key_file": "tls.key", "ca_file": "ca.crt"}
        said = ", ".join(f"{key}: {_text(self.folder.resolve() / name)}" for key, name in files.items())
        # TLS first, and who calls speaks first: otherwise a lost end of TCP's handshake leaves both waiting for a word.
        return f"{said}, timeout: {_PATIENCE_S}, handshake_first: true"


@dataclass(frozen=True, slots=True)
class ToSite:
    """A node's end. site: HOST:PORT of the other. types: of the events that go there; none for all."""

    node: str
    site: str
    certificate: Certificate
    types: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Raises ValueError."""
        check_node(self.node)
        check_address("site", self.site)
        self.certificate.check()

    @property
    def domain(self) -> str:
        return self.node

    @property
    def configuration(self) -> str:
        """Of the NATS server, in its language."""
        remote = f"url: {_text(f'tls://{self.site}')}, first_info_timeout: {_PATIENCE_S}s, tls {{ {self.certificate} }}"
        return f"leafnodes {{ reconnect: 1s, dial_timeout: {_PATIENCE_S}s, remotes: [ {{ {remote} }} ] }}\n"


@dataclass(frozen=True, slots=True)
class ToNodes:
    """The site's end. listen: HOST:PORT for the nodes. types: of the events that are commands."""

    nodes: Sequence[str]
    listen: str
    certificate: Certificate
    types: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Raises ValueError."""
        for node in self.nodes:
            check_node(node)
        check_address("listen_nodes", self.listen)
        self.certificate.check()

    @property
    def domain(self) -> str:
        return SITE

    @property
    def configuration(self) -> str:
        """Of the NATS server, in its language."""
        users = ['{ user: "local", allowed_connection_types: ["STANDARD"] }', *map(self._user, self.nodes)]
        return (
            f"authorization {{ timeout: {_PATIENCE_S}, users: [\n{chr(10).join(users)}\n] }}\n"
            f'no_auth_user: "local"\n'
            f"leafnodes {{ listen: {_text(self.listen)}, tls {{ {self.certificate}, verify_and_map: true }} }}\n"
        )

    def _user(self, node: str) -> str:
        """What the certificate of a node may send, and what it may hear."""
        sends = [events_subject(node), asked(commands_subject(node))]
        hears = [asked(events_subject(node)), commands_subject(node)]
        return (
            f'{{ user: {_text(node)}, allowed_connection_types: ["LEAFNODE"], permissions: {{ '
            f"publish: {{ allow: {json.dumps(sends)} }}, subscribe: {{ allow: {json.dumps(hears)} }} }} }}"
        )


def events_subject(node: str) -> str:
    """Of the node's events on their way to the site."""
    return f"torpor-link.{node}.events"


def commands_subject(node: str) -> str:
    """Of the site's commands on their way to the node."""
    return f"torpor-link.{node}.commands"


def asked(subject: str) -> str:
    """Of what is asked for of those, the other way."""
    return f"{subject}.asked"


def consumer_for(end: str) -> str:
    """The name of the durable consumer of what goes to that end."""
    return f"to-{end}"


def read_nodes(file: Path) -> list[str]:
    """The names in a file, one a line. Raises ValueError."""
    try:
        names = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"nodes: {error}") from error
    return sorted({name for name in names if name and not name.startswith("#")})


def check_node(name: str) -> None:
    """Raises ValueError."""
    if not _NAME.fullmatch(name) or name in (SITE, "local"):
        raise ValueError(f"node = {name[:80]!r}, must be 1 to 64 letters, digits, - or _, and not site or local")


def check_address(name: str, value: str) -> None:
    """Raises ValueError for what is not HOST:PORT."""
    host, colon, port = value.rpartition(":")
    if not (colon and host and re.fullmatch(r"[A-Za-z0-9.\[\]:_-]+", host) and port.isdecimal() and int(port) < 65536):
        raise ValueError(f"{name} = {value[:80]!r}, must be HOST:PORT")


def _text(value: object) -> str:
    return json.dumps(str(value))
