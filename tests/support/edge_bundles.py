"""Bundles for tests: small ones with every kind of component, and whoever signs them."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from securesystemslib.signer import CryptoSigner
from torpor.edge.bundle import Input, make_bundle
from torpor.edge.difference import Difference, difference, unneeded
from torpor.edge.layout import Layout, put_metadata
from torpor.edge.machine import architecture_here
from torpor.edge.repository import begin, sign
from torpor.edge.roles import ROLES

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
NAME = "sentences"


def profile(architecture: str = "", **lines: str) -> str:
    """Which any machine that runs tests meets, but for its architecture and further lines."""
    wanted = {"memory": '"1Gi"', "runtime_class": '"none"', "cores": "1", "disk": '"1Gi"', **lines}
    text = f'name = "node"\narchitecture = "{architecture or architecture_here()}"\n'
    return text + "".join(f"{name} = {value}\n" for name, value in wanted.items())


def inputs(folder: Path, last: float = 0.0, text: str = "one", description: str = "") -> list[Input]:
    """A model of eight tensors, the last of them of its own for each `last`; a manifest with `text`; an image; a profile."""
    for name in ("model", "image", "manifest", "profile"):
        (folder / name).mkdir(parents=True)
    tensors = {f"layer{n}": np.full((16, 16), float(n), np.float32) for n in range(7)}
    save_file(tensors | {"layer7": np.full((16, 16), -1 - last, np.float32)}, folder / "model" / "model.safetensors")
    (folder / "model" / "model.toml").write_text("[model]\n")
    (folder / "manifest" / "service.yaml").write_text(f"text: {text}\n")
    (folder / "image" / "runtime.tar").write_bytes(b"no tar, and so one piece" * 40)
    (folder / "profile" / "node.toml").write_text(description or profile())
    return [
        Input("model", "minilm", folder / "model"),
        Input("image", "runtime", folder / "image" / "runtime.tar"),
        Input("manifest", NAME, folder / "manifest"),
        Input("profile", "node", folder / "profile" / "node.toml"),
    ]


@dataclass
class Publisher:
    """Who makes and signs bundles, in a folder of its own."""

    folder: Path
    keys: dict[str, CryptoSigner] = field(default_factory=lambda: {r: CryptoSigner.generate_ed25519() for r in ROLES})

    def __post_init__(self) -> None:
        self.repository = self.folder / "repository"
        self.root = begin(self.repository, self.keys, NOW)

    def bundle(
        self,
        version: str,
        last: float = 0.0,
        *,
        name: str = NAME,
        platform: str = "any",
        built: datetime = NOW,
        now: datetime = NOW,
        days: int = 90,
        description: str = "",
    ) -> Path:
        """Made and signed: a folder."""
        made = self.bundle_only(version, last, name=name, platform=platform, built=built, description=description)
        return self.sign(made, now, days)

    def bundle_only(
        self,
        version: str,
        last: float = 0.0,
        *,
        name: str = NAME,
        platform: str = "any",
        built: datetime = NOW,
        description: str = "",
    ) -> Path:
        """Made, and in force nowhere."""
        out = self.folder / f"{name}-{version}"
        architecture = "" if platform == "any" else platform.rpartition("/")[2]
        description = description or profile(architecture)
        given = inputs(self.folder / f"inputs-{name}-{version}", last, version, description)
        make_bundle(out, name, version, platform, built, given)
        return out

    def sign(self, bundle: Path, now: datetime = NOW, days: int = 90) -> Path:
        with Layout.at(bundle) as layout:
            metadata = sign(self.repository, layout.index(), self.keys, now, days)
        put_metadata(bundle, metadata)
        return bundle

    def thin(self, old: str, new: str, out: Path) -> Difference:
        """Write the new version for nodes that have the old one."""
        with Layout.at(self.folder / f"{NAME}-{old}") as had, Layout.at(self.folder / f"{NAME}-{new}") as wanted:
            found = difference(had.contents(had.index()), wanted.contents(wanted.index()))
            wanted.pack(out, wanted.metadata(), without=unneeded(wanted, found))
        return found


def packed(bundle: Path, out: Path) -> Path:
    """The same bundle as one file."""
    with Layout.at(bundle) as layout:
        layout.pack(out, layout.metadata())
    return out


def files(folder: Path) -> dict[str, bytes]:
    """What a node serves."""
    served = folder / "current"
    return {
        path.relative_to(served).as_posix(): path.read_bytes()
        for path in served.rglob("*")
        if path.is_file() and path.name != "seal.json"
    }
