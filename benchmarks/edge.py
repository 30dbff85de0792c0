"""Bundles for edge nodes: what an update moves, and how long an installation takes, beside sha256sum and cp.

The update changes the last layer of MiniLM, as a fine-tuning of it would. The installation is of 200 MB of random tensors,
from a folder in the page cache, on a node that has nothing; the bare line hashes the same blobs, and copies them to the same
disk, but leaves them in the page cache, where an installation ends with its files on the disk.
"""

import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from securesystemslib.signer import CryptoSigner
from torpor.edge.bundle import Input, make_bundle
from torpor.edge.difference import difference, unneeded
from torpor.edge.layout import Layout, put_metadata
from torpor.edge.node import Node
from torpor.edge.repository import begin, sign
from torpor.edge.roles import ROLES

from environments import minilm_folder
from loads import BadAnswerError, Rate

BUILT = datetime(2026, 1, 1, tzinfo=UTC)
TENSORS, TENSOR_BYTES = 100, 2_000_000


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-edge-") as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Moved:
    """Bytes of the thin bundle, for each byte of the changed tensors; beside it the bytes beyond 1.2 times them."""

    label: str

    def measure(self, seconds: float) -> Rate:
        from safetensors.numpy import load_file, save_file

        source = minilm_folder() / "model.safetensors"
        with _scratch() as folder:
            tensors = load_file(source)
            last = [name for name in tensors if ".layer.5." in name]
            changed = sum(tensors[name].nbytes for name in last)
            (folder / "new").mkdir()
            (folder / "old").mkdir()
            shutil.copy(source, folder / "old")
            tuned = tensors | {name: tensors[name] + np.float32(1e-3) for name in last}
            save_file(tuned, folder / "new" / source.name, metadata={"format": "pt"})
            keys = {role: CryptoSigner.generate_ed25519() for role in ROLES}
            root = begin(folder / "repository", keys, BUILT)
            bundles = []
            for name in ("old", "new"):
                make_bundle(
                    folder / f"{name}-bundle", "minilm", name, "any", BUILT, [Input("model", "m", folder / name)]
                )
                bundles.append(_signed(folder / f"{name}-bundle", folder / "repository", keys))
            node = Node(folder / "node")
            with Layout.at(bundles[0]) as old, Layout.at(bundles[1]) as new:
                node.install(old, BUILT, root)
                found = difference(old.contents(old.index()), new.contents(new.index()))
                new.pack(folder / "thin.tar", new.metadata(), without=unneeded(new, found))
            with Layout.at(folder / "thin.tar") as thin:
                node.install(thin, BUILT)
            if (folder / "node/current/model/m/model.safetensors").read_bytes() != (
                folder / "new" / source.name
            ).read_bytes():
                raise BadAnswerError("the installed weights are others than those that were bundled")
            moved = (folder / "thin.tar").stat().st_size
        beside = {"changed tensors, MB": changed / 1e6, "moved, MB": moved / 1e6, "over, kB": (moved - changed) / 1e3}
        return Rate((moved - 100_000) / changed, math.nan, math.nan, beside)


def _large(folder: Path) -> tuple[Path, bytes]:
    from safetensors.numpy import save_file

    chance = np.random.default_rng(0)
    (folder / "model").mkdir()
    save_file(
        {f"t{n}": chance.integers(0, 256, TENSOR_BYTES, np.uint8) for n in range(TENSORS)},
        folder / "model" / "model.safetensors",
    )
    keys = {role: CryptoSigner.generate_ed25519() for role in ROLES}
    root = begin(folder / "repository", keys, BUILT)
    make_bundle(folder / "bundle", "large", "1", "any", BUILT, [Input("model", "m", folder / "model")])
    return _signed(folder / "bundle", folder / "repository", keys), root


def _signed(bundle: Path, repository: Path, keys: dict[str, CryptoSigner]) -> Path:
    with Layout.at(bundle) as layout:
        metadata = sign(repository, layout.index(), keys, BUILT, 90)
    put_metadata(bundle, metadata)
    return bundle


@dataclass(frozen=True)
class Installation:
    """Seconds to verify and install 200 MB; without torpor, to hash and to copy them."""

    label: str
    is_torpor: bool = True

    def measure(self, seconds: float) -> Rate:
        with _scratch() as folder:
            bundle, root = _large(folder)
            for blob in (bundle / "blobs/sha256").iterdir():
                blob.read_bytes()
            subprocess.run(["sync", "-f", folder], check=True)
            began_s = time.perf_counter()
            if self.is_torpor:
                with Layout.at(bundle) as layout:
                    done = Node(folder / "node").install(layout, BUILT, root)
                spent_s = time.perf_counter() - began_s
                if done.bytes.moved < TENSORS * TENSOR_BYTES:
                    raise BadAnswerError(f"{done.bytes.moved} bytes were moved, must be {TENSORS * TENSOR_BYTES}")
            else:
                blobs = bundle / "blobs/sha256"
                names = sorted(path.name for path in blobs.iterdir())
                subprocess.run(["sha256sum", *names], cwd=blobs, check=True, stdout=subprocess.DEVNULL)
                subprocess.run(["cp", "-r", blobs, folder / "copy"], check=True)
                spent_s = time.perf_counter() - began_s
        return Rate(spent_s, math.nan, math.nan)
