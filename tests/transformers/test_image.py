"""The ready-made class `Image`: torchvision's values, and no file that costs more than it may."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torpor.predictors.errors import InvalidInput
from torpor.predictors.protocol.datatypes import object_array
from torpor.predictors.runtime.user_class import inspect_class
from torpor.predictors.settings import SettingError
from torpor.transformers.image import Image
from torpor.transformers.image_header import ImageHeader

AS_IT_IS = {"resize": 0, "crop": 0, "dtype": "uint8"}


def loaded(**parameters: Any) -> Image:
    image = Image()
    image.load(parameters)
    return image


def tensors(image: Image, *files: bytes) -> list[np.ndarray]:
    (rows,) = image.preprocess(object_array(files, [len(files)])).values()
    return rows


def picture(width: int = 40, height: int = 30, mode: str = "RGB") -> PIL.Image.Image:
    """Something with structure in every channel."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x * y) % 256], -1).astype(np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


def saved(image: PIL.Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose head says so, with whatever data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


# Values


@pytest.mark.parametrize(("width", "height"), [(400, 300), (300, 401), (256, 256), (1000, 257)])
def test_defaults_are_torchvisions_for_imagenet(width: int, height: int) -> None:
    """Resize(256), CenterCrop(224), ToTensor, Normalize, worked out here by their documentation."""
    image = picture(width, height)
    longer = int(256 * max(width, height) / min(width, height))
    size = (256, longer) if width <= height else (longer, 256)
    resized = np.asarray(image.resize(size, PIL.Image.Resampling.BILINEAR))
    top, left = round((size[1] - 224) / 2), round((size[0] - 224) / 2)
    middle = resized[top : top + 224, left : left + 224] / 255
    expected = (middle - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    (tensor,) = tensors(loaded(), saved(image))
    assert tensor.dtype == np.float32
    assert tensor.shape == (3, 224, 224)
    assert tensor.flags.c_contiguous
    np.testing.assert_allclose(tensor, expected.transpose(2, 0, 1), atol=2e-6)


def test_pixels_come_as_they_are_when_asked_for() -> None:
    """uint8 without resizing and cropping: each row in its own shape."""
    first, second = tensors(loaded(**AS_IT_IS), saved(picture()), saved(picture(5, 7)))
    assert np.array_equal(first, np.asarray(picture()).transpose(2, 0, 1))
    assert second.shape == (3, 7, 5)


def test_sizes_may_be_height_and_width() -> None:
    """A list instead of a side; the name of the predictor's input is a parameter too."""
    image = loaded(resize=[32, 48], crop=[20, 30], output="pixel_values")
    given_ = image.preprocess(object_array([saved(picture())], [1]))
    assert list(given_) == ["pixel_values"]
    assert given_["pixel_values"][0].shape == (3, 20, 30)


def test_an_image_smaller_than_the_crop_gets_a_black_border() -> None:
    """As torchvision's CenterCrop does: the odd pixel goes to the right and below."""
    (tensor,) = tensors(loaded(resize=0, crop=6, dtype="uint8"), saved(PIL.Image.new("RGB", (3, 3), "white")))
    assert np.array_equal(np.argwhere(tensor[0]).min(0), [1, 1])
    assert np.array_equal(np.argwhere(tensor[0]).max(0), [3, 3])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_the_formats(form: str) -> None:
    """Of each the values that Pillow reads."""
    file = saved(picture(), form)
    (tensor,) = tensors(loaded(**AS_IT_IS), file)
    assert np.array_equal(tensor, np.asarray(PIL.Image.open(io.BytesIO(file)).convert("RGB")).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("mode", "form"), [("L", "PNG"), ("1", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP"), ("CMYK", "JPEG")]
)
def test_other_modes_become_rgb(mode: str, form: str) -> None:
    """Grey, one bit, with alpha, for print."""
    (tensor,) = tensors(loaded(**AS_IT_IS), saved(picture(mode=mode), form))
    assert tensor.shape == (3, 30, 40)
    assert tensor.std() > 0


def test_a_palette_with_transparency_keeps_its_colours() -> None:
    """Pillow warns of these; here a warning is an error."""
    file = saved(picture(mode="P"), transparency=bytes(range(256)))
    (tensor,) = tensors(loaded(**AS_IT_IS), file)
    assert np.abs(tensor.transpose(1, 2, 0).astype(int) - np.asarray(picture())).mean() < 30


def test_of_sixteen_bits_the_upper_eight_count() -> None:
    """A scan or a medical image is not white all over."""
    grey = (np.arange(1200).reshape(30, 40) * 50).astype(np.uint16)
    (tensor,) = tensors(loaded(**AS_IT_IS), saved(PIL.Image.fromarray(grey)))
    assert np.array_equal(tensor[1], grey >> 8)


@pytest.mark.parametrize(("orientation", "shape"), [(True, (3, 40, 30)), (False, (3, 30, 40))])
def test_exif_turns_an_image_upright(orientation: bool, shape: tuple[int, ...]) -> None:
    """A phone's picture lies on its side in the file."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    (tensor,) = tensors(loaded(**AS_IT_IS, orientation=orientation), saved(picture(), "JPEG", exif=exif))
    assert tensor.shape == shape


def test_of_an_animation_the_first_frame_counts() -> None:
    """WebP and PNG have several."""
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for form in ("WEBP", "PNG"):
        file = saved(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)
        assert tensors(loaded(**AS_IT_IS), file)[0][:, 0, 0].tolist() == [255, 0, 0]


# Refusals


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow must not even see the file."""

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("Pillow was asked")

    monkeypatch.setattr(PIL.Image, "open", opened)


def webp(kind: bytes, body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(body) + 12) + b"WEBP" + kind + struct.pack("<I", len(body)) + body


BOMBS = {
    "PNG": png_of(1 << 16, 1 << 16),
    "JPEG": b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc2\x00\x0b\x08\xff\xff\xff\xff\x01\x01\x11\x00",
    "VP8": webp(b"VP8 ", b"\x00\x00\x00\x9d\x01\x2a\xff\x3f\xff\x3f"),
    "VP8L": webp(b"VP8L", b"\x2f\xff\xff\xff\x0f\x00"),
    "VP8X": webp(b"VP8X", b"\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff"),
}


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_its_head(name: str) -> None:
    """A file of some bytes that says it has a hundred million pixels or more."""
    with pytest.raises(
        InvalidInput, match=r"^input 'image': row 0 is \d{5,} x \d{5,} = \d+ pixels, must be in \[1, 33554432\]$"
    ):
        tensors(loaded(), BOMBS[name])


@pytest.mark.usefixtures("undecoded")
def test_what_is_no_image_of_an_allowed_format_is_refused() -> None:
    """GIF, TIFF, PDF, text, nothing; and PNG where only JPEG is taken. Pillow's other decoders are out of reach."""
    for data in (
        saved(picture(mode="P"), "GIF"),
        saved(picture(), "TIFF"),
        b"%PDF-1.7",
        b"hello",
        b"",
        b"\xff\xd8\xff",
    ):
        with pytest.raises(InvalidInput, match=r"^input 'image': row 0 is no image of the formats JPEG, PNG, WEBP$"):
            tensors(loaded(), data)
    with pytest.raises(InvalidInput, match=r"row 0 is no image of the formats JPEG$"):
        tensors(loaded(formats=["JPEG"]), saved(picture()))


@pytest.mark.usefixtures("undecoded")
def test_a_file_that_is_too_large_is_refused() -> None:
    """Whatever it is."""
    with pytest.raises(InvalidInput, match=r"^input 'image': row 0 has 101 bytes, must have at most 100$"):
        tensors(loaded(max_image_bytes=100), bytes(101))


@pytest.mark.usefixtures("undecoded")
def test_a_jpeg_of_empty_scans_is_refused() -> None:
    """Each would be a pass over all pixels, for ten bytes of the file."""
    file = saved(picture(), "JPEG", progressive=True)
    assert ImageHeader.of(file).scans in range(2, 20)
    with pytest.raises(InvalidInput, match=r"row 0 has \d+ scans, must have at most 64"):
        tensors(loaded(), file + b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00" * 64)


def test_the_limit_of_pixels_is_one_of_the_file_and_of_the_resized_image() -> None:
    """A line of pixels is a small file, and would be a huge image when its shorter side is 256."""
    line = saved(PIL.Image.new("RGB", (20_000, 1)))
    with pytest.raises(InvalidInput, match="is 20000 x 1, resized 1310720000 pixels, must be at most"):
        tensors(loaded(), line)
    assert tensors(loaded(resize=0), line)[0].shape == (3, 224, 224)
    with pytest.raises(InvalidInput, match=r"is 40 x 30 = 1200 pixels, must be in \[1, 1199\]"):
        tensors(loaded(max_pixels=1199), saved(picture()))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_file_is_refused(form: str) -> None:
    """Wherever it ends before its pixels do (behind them a PNG has 21 bytes more)."""
    file = saved(picture(), form)
    for end in range(0, len(file) - 21, max(1, len(file) // 50)):
        with pytest.raises(InvalidInput, match=r"^input 'image': row 1 is "):
            tensors(loaded(), saved(picture()), file[:end])


def test_a_head_that_says_another_size_than_its_data_is_refused() -> None:
    """A WebP file whose canvas is smaller than its image."""
    inner = saved(picture(), "WEBP")[12:]
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (9).to_bytes(3, "little") + (9).to_bytes(3, "little")
    body = b"WEBP" + canvas + inner
    with pytest.raises(InvalidInput, match="row 0 is a broken WEBP"):
        tensors(loaded(), b"RIFF" + struct.pack("<I", len(body)) + body)


def test_a_jpeg_whose_size_comes_later_is_refused() -> None:
    """Two heads: the first one says little, and Pillow takes the last."""
    file = saved(picture(), "JPEG")
    small = b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01\x03\x01\x11\x00\x02\x11\x00\x03\x11\x00"
    with pytest.raises(InvalidInput, match=r"broken JPEG: it is \(40, 30\), its head says otherwise"):
        tensors(loaded(max_pixels=100), file[:2] + small + file[2:])


def test_an_image_without_pixels_is_refused() -> None:
    """As its head says."""
    with pytest.raises(InvalidInput, match=r"row 0 is 0 x 30 = 0 pixels, must be in \[1, "):
        tensors(loaded(), png_of(0, 30))


def test_pillow_is_asked_for_one_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the format that the head has: all others are out of reach."""
    asked = []
    opened = PIL.Image.open
    monkeypatch.setattr(
        PIL.Image, "open", lambda *given, formats: asked.append(formats) or opened(*given, "r", formats)
    )
    tensors(loaded(), saved(picture()), saved(picture(), "WEBP"))
    assert asked == [("PNG",), ("WEBP",)]


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 70), height=st.integers(1, 70), kind=st.sampled_from(["PNG", "JPEG", "VP8 ", "VP8L", "VP8X"])
)
def test_a_heads_size_is_the_images(width: int, height: int, kind: str) -> None:
    """Of each format and kind of WebP; tables before a JPEG's head are no head."""
    options = {"VP8L": {"lossless": True}, "VP8X": {"exif": b"II*\0\x08\0\0\0\0\0"}}.get(kind, {})
    file = saved(picture(width, height), kind if kind in ("PNG", "JPEG") else "WEBP", **options)
    if kind == "JPEG":
        file = file[:2] + b"\xff\xc4\x00\x06\x00\x09\x09\x09" + file[2:]
    elif kind != "PNG":
        assert file[12:16] == kind.encode()
    if kind == "VP8 ":  # the upper two bits are how to scale it, which nobody does
        file = file[:27] + bytes([file[27] | 0x40]) + file[28:]
    header = ImageHeader.of(file)
    assert (header.width, header.height) == (width, height)


@settings(max_examples=300, deadline=None)
@given(
    form=st.sampled_from(["JPEG", "PNG", "WEBP"]),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_broken_file_is_an_image_or_refused(form: str, changes: list[tuple[int, int]]) -> None:
    """Nothing else comes out, whichever bytes are wrong."""
    file = bytearray(saved(picture(), form))
    for at, value in changes:
        file[at % len(file)] = value
    try:
        (tensor,) = tensors(loaded(max_pixels=1 << 16), bytes(file))
    except InvalidInput:
        return
    assert tensor.shape == (3, 224, 224)


@settings(max_examples=500, deadline=None)
@given(
    st.binary(max_size=64), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xd8\xff", *BOMBS.values()])
)
def test_a_head_is_read_or_not_known(data: bytes, start: bytes) -> None:
    """Any bytes behind any beginning."""
    header = ImageHeader.of(start[: len(start) - len(data) // 4] + data)
    assert header is None or (header.width >= 0 and header.height >= 0)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"crop": 300}, "Image: crop = 300, must be within resize = 256"),
        ({"resize": [224, 200]}, r"Image: crop = 224, must be within resize = \[224, 200\]"),
        ({"mean": [0.5]}, r"Image: mean = \[0.5\], must be a list of 3 numbers"),
        ({"std": [0, 1, 1]}, r"Image: std = 0.0, must be in \[1e-06, 1e\+06\]"),
        ({"formats": ["GIF"]}, r"Image: formats = \['GIF'\], must be a list of some of JPEG, PNG, WEBP"),
        ({"dtype": "float16"}, "Image: dtype = float16, must be one of float32, uint8"),
        ({"size": 3}, "Image: parameter size is unknown, must be one of crop, dtype"),
    ],
)
def test_a_parameter_that_cannot_be_used_ends_the_start(parameters: dict[str, Any], message: str) -> None:
    """And the message names it, its value and what is allowed."""
    with pytest.raises(SettingError, match=message):
        loaded(**parameters)


def test_the_class_declares_what_it_takes() -> None:
    """By the same text as any transformer, and plain, so that it runs on a thread."""
    declared = inspect_class(Image, "preprocess")
    assert declared.signature.inputs["image"].datatype == "BYTES"
    assert Image.media_types == ("image/jpeg", "image/png", "image/webp")
