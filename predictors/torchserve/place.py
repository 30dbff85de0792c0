"""Where archives are, told without reading one: whoever serves other models imports nothing but this."""

from pathlib import Path

SUFFIXES = (".mar", ".model", ".tar.gz", ".tgz")

CONFIG = Path("config/config.properties")
"""In the folder that KServe's storage has."""


def is_archive(path: Path) -> bool:
    """Whether it is called like one, or is a folder of what one holds."""
    return (path.is_file() and path.name.endswith(SUFFIXES)) or (path / "MAR-INF").is_dir()


def has_archives(root: Path) -> bool:
    """Whether it is an archive, a folder of them, or KServe's storage folder."""
    if is_archive(root):
        return True
    return root.is_dir() and ((root / CONFIG).is_file() or any(map(is_archive, root.iterdir())))
