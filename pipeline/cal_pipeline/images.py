"""Opening one picture of a dataset that nobody has checked."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from cal_schemas.errors import ImageError
from cal_schemas.sample import ImageRef

DEFAULT_MAX_IMAGE_PIXELS = 100_000_000
MAX_ASPECT_RATIO = 200
"""Processors that resize the short edge first would blow a thin strip up to gigabytes."""
PILLOW_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Over this pillow refuses to open a picture, whatever our own limit."""


def read_image_file(ref: ImageRef, image_folder: Path | None) -> bytes:
    """The encoded picture; a path is followed only inside `image_folder`, symlinks resolved, and never a URL.

    Raises ImageError naming the path and the reason.
    """
    if ref.data is not None:
        return ref.data
    if not ref.path:
        raise ImageError("the image has neither bytes nor a path")
    if "://" in ref.path:
        raise ImageError(f"image {ref.path!r} is a URL; nothing is fetched: download it and give --image_folder")
    if image_folder is None:
        raise ImageError(f"image {ref.path!r} is a path and no --image_folder is given")
    folder = image_folder.resolve()
    try:
        path = (folder / ref.path).resolve()
        if not path.is_relative_to(folder):
            raise ImageError(f"image path {ref.path!r} leaves the image folder {image_folder}")
        if not path.is_file():
            raise ImageError(f"image {ref.path!r} is not a file in {image_folder}")
        return path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: NUL in the path; RuntimeError: symlink loop
        raise ImageError(f"image {ref.path!r} cannot be read: {error}") from error


def decode_image(data: bytes, max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS) -> Image.Image:
    """The picture as RGB, as stored (EXIF rotation is not applied, like the released recipes).

    The size is known before a pixel is decoded, so a bomb costs nothing. Raises ImageError.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > max_image_pixels:
                raise ImageError(
                    f"image of {image.width} x {image.height} pixels exceeds --max_image_pixels {max_image_pixels}"
                )
            if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
                raise ImageError(
                    f"image of {image.width} x {image.height} pixels is longer than {MAX_ASPECT_RATIO} times its width"
                )
            if image.mode.startswith("I;16"):
                # Pillow would cut 16 bits off at 255: an all but white picture.
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"image of {len(data)} bytes cannot be decoded: no picture in a format that pillow knows"
        ) from error
    except Exception as error:  # Pillow's decoders raise almost anything on hostile bytes.
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise ImageError(f"image of {len(data)} bytes cannot be decoded: {reason}") from error
