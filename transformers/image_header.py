"""What a PNG, JPEG or WebP file says of itself before anything of it is decoded: format and size.

Sources: PNG (https://www.w3.org/TR/png-3/), 11.2.1; JPEG (ITU-T T.81), annex B; WebP's container
(https://developers.google.com/speed/webp/docs/riff_container) and its bitstreams, RFC 6386, 9.1, and RFC 9649, 3.4.
"""

from typing import Literal, NamedTuple

_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


class ImageHeader(NamedTuple):
    """format: PNG, JPEG or WEBP, as Pillow says it. width, height: in pixels, as stored.

    scans: how often a progressive JPEG goes over the image, at most; 1 for the others.
    """

    format: str
    width: int
    height: int
    scans: int = 1

    @classmethod
    def of(cls, data: bytes) -> "ImageHeader | None":
        """None for another format, or a file that ends before its size."""
        try:
            if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR":
                return cls("PNG", *_numbers(data, 16, 4, "big"))
            if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
                return cls._of_webp(data)
            if data.startswith(b"\xff\xd8\xff"):
                return cls._of_jpeg(data)
        except (IndexError, ValueError):
            pass
        return None

    @classmethod
    def _of_jpeg(cls, data: bytes) -> "ImageHeader | None":
        at = 2
        while True:
            at = data.index(0xFF, at)
            while data[at] == 0xFF:
                at += 1
            marker = data[at]
            at += 1
            if marker in _START_OF_FRAME:
                height, width = _numbers(data, at + 3, 2, "big")
                # In compressed data 0xFF is followed by 0, so that this is a scan, or happens to be in a comment or profile.
                return cls("JPEG", width, height, data.count(bytes((0xFF, _START_OF_SCAN)), at))
            if marker in (_START_OF_SCAN, _END_OF_IMAGE):
                return None
            if marker and marker not in _WITHOUT_LENGTH:
                at += int.from_bytes(data[at : at + 2], "big")

    @classmethod
    def _of_webp(cls, data: bytes) -> "ImageHeader | None":
        match data[12:16]:
            case b"VP8 ":
                if data[23:26] != b"\x9d\x01\x2a":
                    return None
                width, height = _numbers(data, 26, 2, "little")
                return cls("WEBP", width & 0x3FFF, height & 0x3FFF)
            case b"VP8L":
                (bits,) = _numbers(data, 21, 4, "little", 1)
                return cls("WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
            case b"VP8X":
                width, height = _numbers(data, 24, 3, "little")
                return cls("WEBP", width + 1, height + 1)
        return None


def _numbers(data: bytes, at: int, size: int, order: Literal["big", "little"], count: int = 2) -> list[int]:
    """Numbers of `size` bytes. Raises IndexError where the data end before."""
    if len(data) < at + size * count:
        raise IndexError
    return [int.from_bytes(data[at + size * n : at + size * (n + 1)], order) for n in range(count)]
