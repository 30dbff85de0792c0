"""Where a file is cut, so that a change of it moves only what changed.

- safetensors: the header, then each tensor, then what lies between or behind them, if anything does.
- tar (images): each member's headers, each member's bytes with their padding, and the end.
- anything else is one piece.

What is no safetensors file or tar after all is one piece too: nothing here judges a file.
"""

import json
import struct
import tarfile
from pathlib import Path

from .contents import LARGEST_PART_BYTES

LARGEST_HEADER_BYTES = 100_000_000
"""Of a safetensors file: the library's own limit."""


def pieces(path: Path) -> list[int]:
    """The sizes in bytes of a file's pieces, in order; they add up to the file's. Raises OSError."""
    size = path.stat().st_size
    ends: list[int] = []
    if path.suffix == ".safetensors":
        ends = _tensor_ends(path)
    elif path.suffix == ".tar":
        ends = _member_ends(path)
    bounds = sorted({end for end in ends if 0 < end < size} | {size})
    sizes = []
    start = 0
    for bound in bounds:
        while start < bound:
            end = min(bound, start + LARGEST_PART_BYTES)
            sizes.append(end - start)
            start = end
    return sizes


def _tensor_ends(path: Path) -> list[int]:
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length <= LARGEST_HEADER_BYTES else {}
            offsets = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
            return [8 + length] + [8 + length + int(bound) for pair in offsets for bound in pair]
        except (ValueError, struct.error, KeyError, TypeError, AttributeError, RecursionError):
            return []


def _member_ends(path: Path) -> list[int]:
    try:
        with tarfile.open(path, "r:") as archive:
            return [bound for member in archive for bound in (member.offset, member.offset_data, _end(member))]
    except (tarfile.TarError, ValueError):
        return []


def _end(member: tarfile.TarInfo) -> int:
    return member.offset_data + member.size + -member.size % tarfile.BLOCKSIZE
