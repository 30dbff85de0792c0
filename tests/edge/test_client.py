"""The repository is TUF's, not ours alone: python-tuf's own client takes a bundle's index from it."""

import hashlib
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from edge_bundles import NAME, Publisher
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater


class FromFolder(FetcherInterface):
    """URLs as paths."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            yield Path(url).read_bytes()
        except FileNotFoundError:
            raise DownloadHTTPError(url, 404) from None


def test_python_tufs_own_client_accepts_the_repository(tmp_path: Path) -> None:
    """Two versions, the second of them by way of what the client has kept of the first."""
    publisher = Publisher(tmp_path)
    (tmp_path / "client").mkdir()
    now = datetime.now(UTC)
    for version, last in (("1", 0.0), ("2", 1.0)):
        bundle = publisher.bundle(version, last, now=now, built=now)
        targets = tmp_path / "targets" / NAME
        targets.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256((bundle / "index.json").read_bytes()).hexdigest()
        shutil.copy(bundle / "index.json", targets / f"{digest}.any")
        (tmp_path / "fetched").mkdir(exist_ok=True)
        updater = Updater(
            str(tmp_path / "client"), f"{publisher.repository}/", str(tmp_path / "fetched"), f"{tmp_path}/targets/",
            FromFolder(), bootstrap=publisher.root,
        )  # fmt: skip
        found = updater.get_targetinfo(f"{NAME}/any")
        assert found is not None
        assert Path(updater.download_target(found)).read_bytes() == (bundle / "index.json").read_bytes()
