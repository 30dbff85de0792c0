"""An image of plain patterns, without a library that writes images."""

import base64
import struct
import zlib


def png(width: int, height: int) -> bytes:
    lines = b"".join(
        b"\0" + bytes(value for x in range(width) for value in (x % 256, y % 256, x * y % 256)) for y in range(height)
    )
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(lines))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*chunks, (b"IEND", b"")]
    )


IMAGE = png(300, 260)
IMAGE_TEXT = base64.b64encode(IMAGE).decode()
