"""Turns samples as an image file stores them into 8-bit RGB: which value is white, and which end of the range."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, TiffImagePlugin

from cal_schemas.errors import ImageError

_LOW_RANGE = 64
"""Of 256 levels: 14 bits in a file of 16, or fewer, fill no more."""
_SUBFILE, _BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR, _PALETTE, _SAMPLE_FORMAT = 254, 258, 262, 284, 320, 339
_WIDTH, _HEIGHT, _STRIPS, _STRIP_BYTES = 256, 257, 273, 279
_PLAIN = {_SUBFILE: 0, 259: 1, 266: 1, 274: 1, 277: 1, _SAMPLE_FORMAT: (1,)}
"""Uncompressed, bits from the highest, not turned, one unsigned sample a pixel."""
_REDUCED, _WHITE_IS_ZERO, _SIGNED, _IN_PLANES = 1, 0, 2, 2


def to_rgb(image: Image.Image, data: bytes) -> tuple[Image.Image, str | None]:
    """The opened image as RGB, and a note where its levels leave doubt about which value is white.

    Of more than 8 bits a sample the upper 8 are taken, of as many as the file says that it has. Alpha is left out.
    Raises ImageError where the file does not say which values are black and white.
    """
    bits = _bits(image, data)
    white_is_zero = _check_tiff(image, bits) if isinstance(image, TiffImagePlugin.TiffImageFile) else False
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
        # Pillow would cut these off at 255: an all but white image. What is not TIFF it has scaled to 65535.
        stored = bits if image.format == "TIFF" else 16
        levels = (np.asarray(image) >> (stored - 8)).astype(np.uint8)
        rgb = Image.fromarray(~levels if white_is_zero else levels).convert("RGB")
    elif image.mode in ("I", "F"):
        raise _unknown(image, "integers" if image.mode == "I" else "floats")
    else:
        rgb = image.convert("RGB")
    return rgb, _note(rgb, bits) if bits > 8 else None


def unpacked_grey(data: bytes, check_size: Callable[[int, int], None]) -> tuple[Image.Image, str | None] | None:
    """Does as `to_rgb` with a TIFF that pillow has no mode for: uncompressed grey of 9 to 16 bits; None for others.

    `check_size` raises where there are too many pixels. Raises whatever else on tags that make no sense.
    """
    if data[:4] not in (b"II*\0", b"MM\0*") or len(data) < 8:
        return None
    tags, file = TiffImagePlugin.ImageFileDirectory_v2(data[:8]), io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    bits, white_is_zero = _bits_of(tags), tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    plain = all(tags.get(tag, default) == default for tag, default in _PLAIN.items())
    plain &= all(tag in tags for tag in (_WIDTH, _HEIGHT, _STRIPS, _STRIP_BYTES))
    if not plain or tags.get(_PHOTOMETRIC) not in (0, 1) or not 8 < bits < 16 + (data[:1] == b"M"):
        return None
    width, height = tags[_WIDTH], tags[_HEIGHT]
    check_size(width, height)
    if sum(tags[_STRIP_BYTES]) > len(data):
        raise ImageError("TIFF whose strips have more bytes than its file")
    strips = b"".join(data[at : at + size] for at, size in zip(tags[_STRIPS], tags[_STRIP_BYTES], strict=True))
    row = -(-width * bits // 8)
    rows = np.frombuffer(strips, np.uint8, height * row).reshape(height, row)
    # The upper 8 bits of a sample lie in two bytes, its first bit the highest.
    first = np.arange(width) * bits
    pairs = rows[:, first // 8].astype(np.uint16) << 8 | rows[:, first // 8 + 1]
    levels = (pairs >> (8 - first % 8).astype(np.uint16)).astype(np.uint8)
    rgb = Image.fromarray(~levels if white_is_zero else levels).convert("RGB")
    return rgb, _note(rgb, bits)


def _check_tiff(image: TiffImagePlugin.TiffImageFile, bits: int) -> bool:
    """True where 0 is white; ImageError for what Pillow would read as other values than are stored."""
    tags = image.tag_v2
    if tags.get(_SUBFILE, 0) & _REDUCED:
        raise ImageError("TIFF whose first image is a small form of another (a camera's raw file?): convert it to PNG")
    if 0 < max(tags.get(_PALETTE, (0,))) < 256:
        raise ImageError("TIFF whose palette has 8 bits where the format has 16, so that it is all but black")
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise _unknown(image, "signed integers")
    if bits > 8 and tags.get(_PLANAR) == _IN_PLANES:
        raise ImageError(
            f"TIFF of {bits} bits a sample with a plane for each colour: pillow mixes them up; save it with the "
            "colours of a pixel together (PLANARCONFIG_CONTIG), or as PNG"
        )
    if image.mode not in ("RGB", "RGBA") and _PHOTOMETRIC not in tags:
        raise ImageError("TIFF that does not say whether 0 is black or white (no PhotometricInterpretation)")
    return bool(tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)


def _unknown(image: Image.Image, kind: str) -> ImageError:
    return ImageError(
        f"image of mode {image.mode} ({image.format}): nobody knows which of its {kind} are black and white; save it "
        "with 8 or 16 unsigned bits a channel"
    )


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits of one sample, as the file says; 8 where it cannot have more, or they are scaled by it already."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _bits_of(image.tag_v2)
    if image.format == "PNG":
        return data[24]  # Of the header chunk, which comes first.
    if image.format == "PPM":
        arguments = image.tile[0].args  # type: ignore[attr-defined]
        return 16 if image.mode == "I" or (isinstance(arguments, tuple) and arguments[-1] == 65535) else 8
    if image.format == "JPEG2000":
        at = data.find(b"\xff\x4f\xff\x51")  # Start of the code stream and its sizes.
        return (data[at + 42] & 0x7F) + 1 if at >= 0 else 8
    return 8


def _bits_of(tags: TiffImagePlugin.ImageFileDirectory_v2) -> int:
    return int(max(tags.get(_BITS_PER_SAMPLE, (1,))))


def _note(rgb: Image.Image, bits: int) -> str | None:
    levels = np.asarray(rgb)
    low, high = int(levels.min()), int(levels.max())
    if high - low >= _LOW_RANGE:
        return None
    return (
        f"an image of {bits} bits a sample uses only the levels {low} to {high} of 255: if its white is not "
        f"{2**bits - 1}, it was seen with the wrong brightness; save it scaled, or with 8 bits"
    )
