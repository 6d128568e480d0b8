"""From stored samples to 8-bit RGB: colours and levels worked out by hand."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cal_pipeline.sources.images import decode_image, note_of
from cal_schemas.errors import ImageError
from tiff_files import packed, tiff

WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, file_format, **options)
    return target.getvalue()


def halves(mode: str, left: Any, right: Any) -> Image.Image:
    """16 x 8 pixels, the left half of one value and the right half of another."""
    image = Image.new(mode, (16, 8), left)
    image.paste(right, (8, 0, 16, 8))
    return image


def palette(*, transparent: bool) -> bytes:
    image = Image.new("P", (16, 8), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (8, 0, 16, 8))
    return saved(image, "PNG", **({"transparency": 0} if transparent else {}))


GREY16 = np.full((8, 16), 0x4000, np.uint16)
GREY16[:, 8:] = 0xC000


@pytest.mark.parametrize(
    ("data", "mean"),
    [
        (saved(halves("L", 10, 30), "PNG"), (20, 20, 20)),
        (saved(halves("LA", (10, 0), (30, 255)), "PNG"), (20, 20, 20)),
        (saved(halves("1", 0, 255), "PNG"), (127.5, 127.5, 127.5)),
        (saved(halves("1", 0, 255), "TIFF", compression="group4"), (127.5, 127.5, 127.5)),
        (palette(transparent=False), (127.5, 0, 127.5)),
        (palette(transparent=True), (127.5, 0, 127.5)),
        (saved(halves("RGBA", (200, 0, 0, 0), (0, 100, 0, 255)), "PNG"), (100, 50, 0)),
        # Cyan, magenta, yellow, black: red = (255 - 51) * (255 - 51) / 255 = 163.2, green = 0, blue = 204; and black.
        (saved(halves("CMYK", (51, 255, 0, 51), (0, 0, 0, 255)), "TIFF"), (81.6, 0, 102)),
        (saved(halves("CMYK", (51, 255, 0, 51), (0, 0, 0, 255)), "JPEG", quality=100), (81.6, 0, 102)),
        # Luma 76, Cb 85, Cr 255: pure red; luma 255 without colour: white.
        (saved(halves("YCbCr", (76, 85, 255), (255, 128, 128)), "TIFF"), (255, 127.5, 127.5)),
        (saved(Image.fromarray(GREY16), "PNG"), (128, 128, 128)),
        (saved(Image.fromarray(GREY16), "TIFF"), (128, 128, 128)),
        (saved(Image.fromarray(GREY16), "TIFF", compression="tiff_lzw"), (128, 128, 128)),
        (saved(Image.fromarray(GREY16), "JPEG2000"), (128, 128, 128)),
    ],
    ids=[
        "grey", "grey and alpha", "1 bit", "1 bit G4", "palette", "transparent palette", "RGBA", "CMYK TIFF",
        "CMYK JPEG", "YCbCr", "16 bits PNG", "16 bits TIFF", "16 bits LZW", "16 bits JPEG 2000",
    ],
)  # fmt: skip
def test_every_mode_has_the_colour_that_it_says(data: bytes, mean: tuple[float, float, float]) -> None:
    image = decode_image(data)
    assert (image.mode, image.size) == ("RGB", (16, 8))
    assert np.abs(np.asarray(image, float).mean((0, 1)) - mean).max() <= 1.5


def test_lab_has_the_colour_that_it_says() -> None:
    # L* 53.2 of 100, a* 80, b* 67: pure red of sRGB; L* 100: white. A file keeps a and b as signed bytes.
    image = decode_image(saved(halves("LAB", (136, 208, 195), (255, 128, 128)), "TIFF"))
    assert np.abs(np.asarray(image, float).mean((0, 1)) - (255, 127.5, 127.5)).max() <= 6


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_white_is_zero_is_turned_round_up_to_8_bits(order: str, bits: int) -> None:
    white = 2**bits - 1
    values = [0, white // 2, white]
    for photometric, expected in ((BLACK_IS_ZERO, values), (WHITE_IS_ZERO, [white - value for value in values])):
        data = tiff(packed(values, bits), width=3, bits=bits, photometric=photometric, order=order)
        image = np.asarray(decode_image(data))[0, :, 0]
        assert image.tolist() == [round(255 * value / white) for value in expected]


def test_white_is_zero_is_turned_round_at_16_bits_whatever_the_compression() -> None:
    levels = np.array([[0, 0x1234, 0x8000, 0xFFFF]], np.uint16)
    plain = tiff(levels.tobytes(), width=4, bits=16, photometric=WHITE_IS_ZERO)
    squeezed = saved(Image.fromarray(levels), "TIFF", compression="tiff_deflate", tiffinfo={262: WHITE_IS_ZERO})
    for data in (plain, squeezed):
        assert np.asarray(decode_image(data))[0, :, 0].tolist() == [255, 255 - 0x12, 127, 0]


def test_white_is_zero_is_turned_round_in_fax_compression() -> None:
    for photometric in (BLACK_IS_ZERO, WHITE_IS_ZERO):
        data = saved(halves("1", 0, 255), "TIFF", compression="group4", tiffinfo={262: photometric})
        assert np.asarray(decode_image(data))[0, :, 0].tolist() == [0] * 8 + [255] * 8


def test_a_ramp_of_12_bits_is_the_ramp_of_8() -> None:
    ramp = np.linspace(0, 4095, 65).round().astype(int).tolist()
    rows = packed(ramp, 12) + packed(ramp[::-1], 12)
    image = np.asarray(decode_image(tiff(rows, width=65, height=2, bits=12, photometric=BLACK_IS_ZERO)), int)[..., 0]
    expected = np.linspace(0, 255, 65)
    assert np.abs(image - [expected, expected[::-1]]).max() <= 1
    assert (image[0, 0], image[0, -1]) == (0, 255)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO])
@pytest.mark.parametrize("bits", range(9, 16))
def test_a_ramp_of_any_bits_is_the_ramp_of_8_in_either_order_and_from_either_end(
    bits: int, photometric: int, order: str
) -> None:
    levels = np.linspace(0, 255, 67).round().astype(int)
    stored = [(level << bits - 8) + (1 << bits - 8) // 3 for level in levels.tolist()]
    rows = packed(stored, bits) + packed(stored[::-1], bits)
    data = tiff(rows, width=67, height=2, bits=bits, photometric=photometric, order=order, strips=2)
    image = decode_image(data)
    expected = 255 - levels if photometric == WHITE_IS_ZERO else levels
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image)[..., 0].astype(int) - [expected, expected[::-1]]).max() == 0
    assert note_of(image) is None


def test_white_is_zero_at_16_bits_of_big_endian_is_turned_round_and_a_narrow_range_is_noted() -> None:
    data = np.array([[0, 0x1234, 0x8000, 0xFFFF]], ">u2").tobytes()
    image = decode_image(tiff(data, width=4, bits=16, photometric=WHITE_IS_ZERO, order=">"))
    assert np.asarray(image)[0, :, 0].tolist() == [255, 255 - 0x12, 127, 0]
    dark = tiff(packed([0, 5, 900], 14), width=3, bits=14, photometric=BLACK_IS_ZERO)
    assert "14 bits a sample uses only the levels 0 to 14 of 255: if its white is not 16383" in str(
        note_of(decode_image(dark))
    )


def test_a_depth_that_pillow_lacks_is_no_way_round_the_limit_of_pixels() -> None:
    data = tiff(packed([0] * 65, 14), width=65, bits=14, photometric=BLACK_IS_ZERO)
    with pytest.raises(ImageError, match="image of 65 x 1 pixels exceeds --max_image_pixels 64"):
        decode_image(data, max_image_pixels=64)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiff(b"\0\x80\xff", width=3, bits=8, photometric=1, more={339: [2]}), "signed integers"),
        (tiff(bytes(6), width=3, bits=16, photometric=1, more={339: [2]}), "signed integers"),
        (tiff(bytes(4), width=1, bits=32, photometric=1, more={339: [3]}), "mode F .*floats"),
        (tiff(bytes(4), width=1, bits=32, photometric=1), "mode I .*integers"),
        (tiff(b"\0\x80\xff", width=3, bits=8, photometric=None), "does not say whether 0 is black or white"),
        (
            tiff(bytes(48), width=4, height=2, bits=16, photometric=2, samples=3, more={284: [2]}),
            "16 bits a sample with a plane for each colour",
        ),
        (tiff(b"\0\x80\xff", width=3, bits=8, photometric=1, more={254: [1]}), "first image is a small form"),
        (
            tiff(b"\0\1\2\3", width=4, bits=8, photometric=3, more={320: [*range(256)] * 3}),
            "palette has 8 bits where the format has 16",
        ),
        (tiff(bytes(4), width=3, bits=10, photometric=1, more={259: [5]}), "begins like TIFF, .* does not read"),
        (tiff(bytes(6), width=3, bits=14, photometric=1, more={339: [2]}), "begins like TIFF, .* does not read"),
        (tiff(bytes(6), width=3, bits=14, photometric=1, more={274: [3]}), "begins like TIFF, .* does not read"),
        (tiff(bytes(5), width=3, bits=14, photometric=1), "cannot be decoded: ValueError: buffer is smaller"),
        (tiff(bytes(6), width=3, bits=14, photometric=1, more={279: [9999]}), "strips have more bytes than its file"),
    ],
    ids=[
        "signed 8", "signed 16", "float", "32 bits", "no photometric", "planes of 16 bits", "thumbnail",
        "palette of 8 bits", "10 bits LZW", "signed 14", "turned 14", "cut off 14", "strips over the end",
    ],
)  # fmt: skip
def test_a_tiff_whose_levels_cannot_be_told_is_an_image_error(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode_image(data)


def test_a_palette_of_16_bits_has_its_colours() -> None:
    colours = [value * 257 for value in range(256)] + [0] * 512
    data = tiff(b"\x00\x40\x80\xff", width=4, bits=8, photometric=3, more={320: colours})
    assert np.asarray(decode_image(data))[0].tolist() == [[0, 0, 0], [64, 0, 0], [128, 0, 0], [255, 0, 0]]


def test_planes_of_8_bits_are_read_as_the_colours_that_they_are() -> None:
    data = tiff(b"\x0a\x0a\x14\x14\x1e\x1e", width=2, bits=8, photometric=2, samples=3, more={284: [2]})
    assert np.asarray(decode_image(data)).tolist() == [[[10, 20, 30]] * 2]


def png16(colours: np.ndarray, *, significant: int | None = None) -> bytes:
    """A PNG of 16 bits a sample, grey or RGB, which may say (sBIT) how many of them came from the camera."""
    height, width = colours.shape[:2]
    channels = 1 if colours.ndim == 2 else 3

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 16, 2 if channels == 3 else 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    said = b"" if significant is None else chunk(b"sBIT", bytes([significant] * channels))
    body = chunk(b"IHDR", head) + said + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)


@pytest.mark.parametrize(
    "dark",
    [
        png16(RAMP >> 4),
        png16(COLOURS >> 4),
        saved(Image.fromarray(RAMP >> 4), "TIFF"),
        tiff((COLOURS >> 4).tobytes(), width=8, height=8, bits=16, photometric=2, samples=3),
        b"P5\n8 8\n65535\n" + (RAMP >> 4).astype(">u2").tobytes(),
        b"P6\n8 8\n65535\n" + (COLOURS >> 4).astype(">u2").tobytes(),
        saved(Image.fromarray(RAMP >> 4), "JPEG2000"),
    ],
    ids=["PNG", "PNG colours", "TIFF", "TIFF colours", "PGM", "PPM", "JPEG 2000"],
)
def test_12_bits_in_a_file_of_16_are_read_as_stored_with_a_note(dark: bytes) -> None:
    image = decode_image(dark)
    top = np.asarray(image).max()
    assert top in (15, 16)  # Pillow rounds PPM where it cuts PNG and TIFF.
    assert note_of(image) == (
        f"an image of 16 bits a sample uses only the levels 0 to {top} of 255: if its white is not 65535, it was seen "
        "with the wrong brightness; save it scaled, or with 8 bits"
    )


@pytest.mark.parametrize("order", ["white is zero", "offset"])
def test_a_narrow_range_at_the_other_end_or_in_the_middle_is_noted_too(order: str) -> None:
    if order == "offset":
        image = decode_image(png16(0x8000 + (RAMP >> 4)))
        assert "the levels 128 to 143 of 255" in str(note_of(image))
        return
    image = decode_image(tiff((RAMP >> 4).tobytes(), width=8, height=8, bits=16, photometric=WHITE_IS_ZERO))
    assert "the levels 240 to 255 of 255" in str(note_of(image))


@pytest.mark.parametrize(
    "data",
    [
        png16(RAMP),
        png16(COLOURS),
        # Samples are scaled to the full range in a PNG, whatever sBIT says of their origin.
        png16(RAMP & 0xFFF0, significant=12),
        b"P5\n8 8\n4095\n" + (RAMP >> 4).astype(">u2").tobytes(),
        b"P6\n8 8\n4095\n" + (COLOURS >> 4).astype(">u2").tobytes(),
        saved(Image.fromarray(RAMP), "JPEG2000"),
        saved(Image.new("L", (8, 8), 3), "PNG"),
        saved(Image.new("RGB", (8, 8)), "JPEG2000"),
    ],
    ids=["PNG", "PNG colours", "sBIT", "PGM 12", "PPM 12", "JPEG 2000", "dark of 8 bits", "dark JPEG 2000 of 8 bits"],
)
def test_an_image_of_full_range_or_of_8_bits_has_no_note(data: bytes) -> None:
    assert note_of(decode_image(data)) is None


@pytest.mark.parametrize(("top", "noted"), [(63, True), (64, False)])
@pytest.mark.parametrize("bottom", [0, 100])
def test_64_levels_of_256_are_no_low_range(top: int, noted: bool, bottom: int) -> None:
    ramp = np.linspace(bottom, bottom + top, 64).round().astype(np.uint16).reshape(8, 8) << 8
    note = note_of(decode_image(png16(ramp)))
    assert (f"the levels {bottom} to {bottom + top} of 255" in str(note)) == noted
    assert (note is None) != noted


DARK = np.arange(64, dtype=np.uint8).reshape(8, 8) // 8
DARK_COLOURS = np.stack([DARK] * 3, axis=-1)


@pytest.mark.parametrize(
    "data",
    [
        b"P5\n8 8\n255\n" + DARK.tobytes(),
        b"P6\n8 8\n255\n" + DARK_COLOURS.tobytes(),
        b"P5\n8 8\n100\n" + DARK.tobytes(),
        b"P4\n8 8\n" + b"\xff" * 8,
        saved(Image.fromarray(DARK), "TIFF"),
        saved(Image.fromarray(DARK_COLOURS), "TIFF"),
        saved(Image.fromarray(DARK_COLOURS), "PNG"),
        saved(Image.fromarray(DARK), "JPEG2000"),
        saved(Image.fromarray(DARK), "JPEG2000", no_jp2=True),
        saved(Image.fromarray(DARK), "BMP"),
        saved(Image.fromarray(DARK_COLOURS), "WEBP", lossless=True),
        saved(Image.fromarray(DARK), "GIF"),
    ],
    ids=["PGM", "PPM", "PGM of 100", "PBM", "TIFF", "TIFF colours", "PNG", "JPEG 2000", "JPEG 2000 stream", "BMP",
         "WebP", "GIF"],
)  # fmt: skip
def test_a_dark_image_of_8_bits_has_no_note(data: bytes) -> None:
    image = decode_image(data)
    assert note_of(image) is None
    assert np.asarray(image).max() < 64


def test_a_stream_of_jpeg_2000_says_its_bits_without_a_file_around_it() -> None:
    data = saved(Image.fromarray(RAMP >> 4), "JPEG2000", no_jp2=True)
    assert data.startswith(b"\xff\x4f\xff\x51")
    assert "an image of 16 bits a sample uses only the levels 0 to" in str(note_of(decode_image(data)))


def test_a_tiff_of_colours_may_leave_out_what_its_zero_is_and_its_pages_may_follow() -> None:
    data = tiff(b"\x0a\x14\x1e" * 2, width=2, bits=8, photometric=2, samples=3, more={254: [2]})
    assert np.asarray(decode_image(data)).tolist() == [[[10, 20, 30]] * 2]
