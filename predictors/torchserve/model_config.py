"""An archive's YAML: TorchServe's settings of the model, and what else the handler wants to know."""

from typing import Any

from .manifest import ArchiveError

LARGEST_BYTES = 1 << 20


def read(text: bytes, where: str) -> dict[str, Any]:
    """An empty one says nothing. Raises ArchiveError, which names `where`."""
    try:
        import yaml
    except ModuleNotFoundError:
        raise ArchiveError(f"{where} needs PyYAML: pip install 'torpor[torchserve]'") from None
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ArchiveError(f"{where} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ArchiveError(f"{where} is a {type(content).__name__}, must be a mapping")
    return content
