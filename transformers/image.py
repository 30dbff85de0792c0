"""Images to tensors, by Pillow (the extra `image`), as torchvision's transforms make them for evaluation."""

from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from torpor.predictors.errors import InvalidInput
from torpor.predictors.protocol.datatypes import Array
from torpor.predictors.settings import SettingError

from .image_header import ImageHeader
from .parameters import Parameters

if TYPE_CHECKING:
    import PIL.Image

_FORMATS = ("JPEG", "PNG", "WEBP")
_MOST_PIXELS = 1 << 30
_MOST_SCANS = 64
"""Encoders make about ten. A file of a few megabytes can hold a hundred thousand empty ones, each a pass over all pixels."""


class Image:
    """`image: bytes[rows]`, a JPEG, PNG or WebP file a row, to `[3, height, width]` a row: RGB, normalised.

    The defaults are torchvision's for ImageNet: Resize(256), CenterCrop(224), ToTensor, Normalize.

    Parameters:
    resize: length of the shorter side, or [height, width]; 0 leaves images as they are (256).
    interpolation: bilinear, bicubic, lanczos or nearest; all but the last look at each pixel when they shrink (bilinear).
    crop: the middle's side, or its [height, width]; 0 takes all, then rows may differ in shape (224).
    dtype: float32, or uint8 for the pixels as they are (float32).
    mean, std: of each channel in [0, 1]; for float32 alone (ImageNet's).
    output: the name of the predictor's input ("image").
    orientation: whether an image is turned upright, as its EXIF tag says; torchvision doesn't (true).
    formats: those of JPEG, PNG, WEBP that are taken (all).
    max_image_bytes: of a file (16 MiB).
    max_pixels: of an image, as its file says, before anything is decoded: a pixel takes up to 16 bytes meanwhile (2^25).

    An alpha channel is dropped, of 16 bits the upper 8 count, of an animation the first frame.
    """

    media_types = ("image/jpeg", "image/png", "image/webp")
    """Of an event whose data are the one input."""

    def load(self, parameters: Mapping[str, Any]) -> None:
        """Raises SettingError for a parameter that cannot be used."""
        import PIL.Image

        owner = type(self).__name__
        given = Parameters(owner, parameters)
        self._resize = given.sizes("resize", 256, 1 << 15)
        self._crop = given.sizes("crop", 224, 1 << 15)
        choices = ("bilinear", "bicubic", "lanczos", "nearest")
        self._interpolation = PIL.Image.Resampling[given.one("interpolation", "bilinear", choices=choices).upper()]
        self._is_float = given.one("dtype", "float32", choices=("float32", "uint8")) == "float32"
        self._mean = np.array(given.numbers("mean", (0.485, 0.456, 0.406), -1e6, 1e6), np.float32)
        self._std = np.array(given.numbers("std", (0.229, 0.224, 0.225), 1e-6, 1e6), np.float32)
        self._output = given.one("output", "image")
        self._orientation = given.one("orientation", True)
        self._formats = given.words("formats", _FORMATS)
        self._max_image_bytes = given.one("max_image_bytes", 16 << 20, 1, 1 << 30)
        self._max_pixels = given.one("max_pixels", 1 << 25, 1, _MOST_PIXELS)
        given.end()
        if self._resize and self._crop and any(map(int.__lt__, _pair(self._resize), _pair(self._crop))):
            raise SettingError(f"{owner}: crop = {_shown(self._crop)}, must be within resize = {_shown(self._resize)}")

    def preprocess(self, image: Annotated[Array, "bytes[rows]"]) -> dict[str, list[Array]]:
        """Raises InvalidInput for a row that is no image of an allowed format and size."""
        return {self._output: [self._tensor(f"input 'image': row {row}", data) for row, data in enumerate(image)]}

    def _tensor(self, row: str, data: bytes) -> Array:
        header = self._checked(row, data)
        picture = self._decoded(row, data, header)
        pixels = np.asarray(self._cropped(self._resized(row, picture)))  # [height, width, 3]
        if not self._is_float:
            return np.ascontiguousarray(pixels.transpose(2, 0, 1))
        scaled = pixels.astype(np.float32)
        scaled /= 255
        scaled -= self._mean
        scaled /= self._std
        return np.ascontiguousarray(scaled.transpose(2, 0, 1))

    def _checked(self, row: str, data: bytes) -> ImageHeader:
        """What the file says of itself, if it may be decoded."""
        if len(data) > self._max_image_bytes:
            raise InvalidInput(f"{row} has {len(data)} bytes, must have at most {self._max_image_bytes}")
        header = ImageHeader.of(data)
        if header is None or header.format not in self._formats:
            raise InvalidInput(f"{row} is no image of the formats {', '.join(self._formats)}")
        pixels = header.width * header.height
        if not 1 <= pixels <= self._max_pixels:
            size = f"{header.width} x {header.height}"
            raise InvalidInput(f"{row} is {size} = {pixels} pixels, must be in [1, {self._max_pixels}]")
        if header.scans > _MOST_SCANS:
            raise InvalidInput(f"{row} has {header.scans} scans, must have at most {_MOST_SCANS}")
        return header

    def _decoded(self, row: str, data: bytes, header: ImageHeader) -> "PIL.Image.Image":
        import PIL.Image
        import PIL.ImageOps

        try:
            picture: PIL.Image.Image = PIL.Image.open(BytesIO(data), formats=(header.format,))
            if picture.size == (header.width, header.height):
                picture.load()
                if self._orientation:
                    PIL.ImageOps.exif_transpose(picture, in_place=True)
                return _rgb(picture)
        except MemoryError:
            raise
        except PIL.UnidentifiedImageError:
            raise InvalidInput(f"{row} is a broken {header.format}: Pillow does not know it") from None
        except Exception as error:  # what Pillow raises for a broken file is of a dozen classes
            raise InvalidInput(f"{row} is a broken {header.format}: {error or type(error).__name__}") from None
        raise InvalidInput(f"{row} is a broken {header.format}: it is {picture.size}, its head says otherwise")

    def _resized(self, row: str, picture: "PIL.Image.Image") -> "PIL.Image.Image":
        if not self._resize:
            return picture
        width, height = picture.size
        if len(self._resize) == 2:
            height, width = self._resize
        else:
            (shorter,) = self._resize
            longer = int(shorter * max(width, height) / min(width, height))
            if shorter * longer > self._max_pixels:
                size = f"{width} x {height}"
                raise InvalidInput(
                    f"{row} is {size}, resized {shorter * longer} pixels, must be at most {self._max_pixels}"
                )
            width, height = (shorter, longer) if width <= height else (longer, shorter)
        return picture.resize((width, height), self._interpolation)

    def _cropped(self, picture: "PIL.Image.Image") -> "PIL.Image.Image":
        if not self._crop:
            return picture
        height, width = _pair(self._crop)
        left, top = _before(picture.width - width), _before(picture.height - height)
        return picture.crop((left, top, left + width, top + height))


def _before(rest: int) -> int:
    """Pixels cut off before the middle, as torchvision rounds; below 0, those that are added, in black."""
    return round(rest / 2) if rest > 0 else -(-rest // 2)


def _rgb(picture: "PIL.Image.Image") -> "PIL.Image.Image":
    """In 8 bits a channel."""
    import PIL.Image

    if picture.mode.startswith("I"):
        pixels = np.asarray(picture).astype(np.int32) >> 8
        picture = PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    elif picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    """[height, width] of one size or two."""
    return sizes[0], sizes[-1]


def _shown(sizes: tuple[int, ...]) -> object:
    return sizes[0] if len(sizes) == 1 else list(sizes)
