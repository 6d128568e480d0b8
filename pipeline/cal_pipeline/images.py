"""Opening one picture of a dataset that nobody has checked."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

from cal_schemas.errors import ImageError
from cal_schemas.locations import Location
from cal_schemas.object_path import ObjectPath
from cal_schemas.sample import ImageRef

DEFAULT_MAX_IMAGE_PIXELS = 100_000_000
MAX_ASPECT_RATIO = 200
"""Processors that resize the short edge first would blow a thin strip up to gigabytes."""
_LONGEST_KEY = 1024
PILLOW_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Over this pillow refuses to open a picture, whatever our own limit."""
MAX_IMAGE_BYTES = 256 * 2**20
"""Of one encoded picture; a larger file is not read."""
MAX_ROW_IMAGE_BYTES = 512 * 2**20
"""Of all encoded pictures of one row."""
MAX_ROW_PIXELS_RATIO = 4
"""All pictures of a row together have at most so many times `--max_image_pixels`."""


def read_image_file(ref: ImageRef, image_folder: Location | None) -> bytes:
    """The encoded picture; a path is followed only inside `image_folder`, symlinks resolved, and never a URL.

    Raises ImageError naming the path and the reason; StoreError when an object store gives no answer, which says
    nothing about the picture.
    """
    if ref.data is not None:
        if len(ref.data) > MAX_IMAGE_BYTES:
            raise ImageError(f"an embedded image has {len(ref.data)} bytes, more than {MAX_IMAGE_BYTES}")
        return ref.data
    if not ref.path:
        raise ImageError("the image has neither bytes nor a path")
    if "://" in ref.path:
        raise ImageError(f"image {ref.path!r} is a URL; nothing is fetched: download it and give --image_folder")
    if image_folder is None:
        raise ImageError(f"image {ref.path!r} is a path and no --image_folder is given")
    if isinstance(image_folder, ObjectPath):
        return _read_object(ref.path, image_folder)
    folder = image_folder.resolve()
    try:
        path = (folder / ref.path).resolve()
        if not path.is_relative_to(folder):
            raise ImageError(f"image path {ref.path!r} leaves the image folder {image_folder}")
        if not path.is_file():
            raise ImageError(f"image {ref.path!r} is not a file in {image_folder}")
        if (size := path.stat().st_size) > MAX_IMAGE_BYTES:
            raise ImageError(f"image {ref.path!r} has {size} bytes, more than {MAX_IMAGE_BYTES}")
        return path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: NUL in the path; RuntimeError: symlink loop
        raise ImageError(f"image {ref.path!r} cannot be read: {error}") from error


def _read_object(path: str, folder: ObjectPath) -> bytes:
    parts = path.split("/")
    # Stores take ".." for a name like any other, but the clients on the way to them may not.
    if path.startswith("/") or any(part == ".." for part in parts):
        raise ImageError(f"image path {path!r} leaves the image folder {folder}")
    key = "/".join(part for part in parts if part not in ("", "."))
    if not key or "\0" in key or len(f"{folder.key}/{key}".encode(errors="replace")) > _LONGEST_KEY:
        raise ImageError(f"image {path!r} cannot be the name of an object")
    try:
        found = folder / key
        if (size := found.stat().size) > MAX_IMAGE_BYTES:
            raise ImageError(f"image {path!r} has {size} bytes, more than {MAX_IMAGE_BYTES}")
        return found.read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"image {path!r} is not an object in {folder}") from error
    except UnicodeEncodeError as error:
        raise ImageError(f"image {path!r} cannot be the name of an object: {error}") from error


def decode_image(data: bytes, max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS) -> Image.Image:
    """The picture as RGB, as stored (EXIF rotation is not applied, like the released recipes); of 16 bits the upper 8.

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
            if max(image.size) > (longest := 2 * math.isqrt(max_image_pixels)):
                # Padded to a square it would have more than four times the allowed pixels.
                raise ImageError(
                    f"image of {image.width} x {image.height} pixels has a side over {longest}, which is twice the "
                    f"square root of --max_image_pixels {max_image_pixels}"
                )
            # Pillow would cut these off at 255: an all but white picture. PGM it scales to 65535, whatever its range.
            if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            if image.mode in ("I", "F"):
                kind = "integers" if image.mode == "I" else "floats"
                raise ImageError(
                    f"image of mode {image.mode} ({image.format}): nobody knows which of its {kind} are black and "
                    "white; save it with 8 or 16 unsigned bits a channel"
                )
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


def read_images(refs: Sequence[ImageRef], image_folder: Location | None) -> list[bytes]:
    """The encoded pictures of one row, as `read_image_file` does; ImageError also when they are too many bytes."""
    files: list[bytes] = []
    total = 0
    for ref in refs:
        files.append(read_image_file(ref, image_folder))
        total += len(files[-1])
        if total > MAX_ROW_IMAGE_BYTES:
            raise ImageError(f"the row's {len(refs)} images have more than {MAX_ROW_IMAGE_BYTES} bytes in all")
    return files


def decode_images(files: Sequence[bytes], max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS) -> list[Image.Image]:
    """The pictures of one row, as `decode_image` does; ImageError also when all of them together are too large."""
    images: list[Image.Image] = []
    room = MAX_ROW_PIXELS_RATIO * max_image_pixels
    for data in files:
        image = decode_image(data, max_image_pixels)
        room -= image.width * image.height
        if room < 0:
            raise ImageError(
                f"the row's {len(files)} images have more than {MAX_ROW_PIXELS_RATIO} times --max_image_pixels "
                f"{max_image_pixels} in all"
            )
        images.append(image)
    return images
