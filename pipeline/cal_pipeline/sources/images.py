"""Opens images of a dataset that nobody has checked."""

from __future__ import annotations

import errno
import io
import math
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from cal_pipeline.sources.image_formats import describe_unopened, formats_to_open
from cal_pipeline.sources.image_levels import to_rgb, unpacked_grey
from cal_pipeline.sources.reading import is_surroundings
from cal_schemas.errors import ImageError, SurroundingsError
from cal_schemas.sample import ImageRef
from cal_schemas.storage.locations import Location
from cal_schemas.storage.object_path import ObjectPath

DEFAULT_MAX_IMAGE_PIXELS = 100_000_000
MAX_ASPECT_RATIO = 200
"""Processors that resize the short edge first would blow a thin strip up to gigabytes."""
_LONGEST_KEY = 1024
_OF_THE_ROW = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ,
)  # fmt: skip
"""What is said of a path that is at fault itself; all else (EIO, ESTALE, EACCES, EMFILE, …) is said of the file system
or of this machine."""
_NOTE = "cal_note"
PILLOW_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Over this pillow refuses to open an image, whatever our own limit."""
MAX_IMAGE_BYTES = 256 * 2**20
"""Of one encoded image; a larger file is not read."""
MAX_ROW_IMAGE_BYTES = 512 * 2**20
"""Of all encoded images of one row."""
MAX_ROW_PIXELS_RATIO = 4
"""All images of a row together have at most so many times `--max_image_pixels`."""


def read_image_file(ref: ImageRef, image_folder: Location | None) -> bytes:
    """The encoded image; a path is followed only inside `image_folder`, symlinks resolved, and never a URL.

    Raises ImageError naming the path and the reason. What says nothing about the image is raised as SurroundingsError
    (the folder is gone, a disk, a share or this machine is ill), or StoreError where an object store gives no answer.
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
            raise ImageError(f"image path {ref.path!r} leaves the image folder {image_folder}{_link(ref.path, folder)}")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"image {ref.path!r} is not a file in {image_folder}")
        if status.st_size > MAX_IMAGE_BYTES:
            raise ImageError(f"image {ref.path!r} has {status.st_size} bytes, more than {MAX_IMAGE_BYTES}")
        return path.read_bytes()
    except (ValueError, RuntimeError) as error:  # ValueError: NUL in the path; RuntimeError: symlink loop
        raise ImageError(f"image {ref.path!r} cannot be read: {error}") from error
    except OSError as error:
        if error.errno not in _OF_THE_ROW:
            raise SurroundingsError(
                f"image {ref.path!r} in {image_folder} cannot be read now: {error.strerror}"
            ) from error
        _check_there(image_folder)
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise ImageError(f"image {ref.path!r} is not a file in {image_folder}") from error
        raise ImageError(f"image {ref.path!r} cannot be read: {error}") from error


def _check_there(image_folder: Location) -> None:
    """Raises SurroundingsError where the folder itself is missing: gone, out of reach, or a mount point left empty."""
    there = False
    if isinstance(image_folder, ObjectPath):
        there = image_folder.is_dir()
    else:
        with suppress(OSError), os.scandir(image_folder) as entries:
            there = next(entries, None) is not None
    if not there:
        raise SurroundingsError(f"--image_folder {image_folder} is gone or empty (moved, or unmounted?)")


def _link(path: str, folder: Path) -> str:
    """Names the link that leads out of the folder, with the two ways out; empty where the path itself leads out."""
    parts = Path(path).parts
    steps = [folder.joinpath(*parts[:stop]) for stop in range(1, len(parts) + 1)]
    link = next((step for step in steps if step.is_symlink() and not step.resolve().is_relative_to(folder)), None)
    if link is None or Path(path).is_absolute():
        return ""
    target = (folder / path).resolve()
    if target.parts[-len(parts) :] == parts:
        way_out = f"give --image_folder {Path(*target.parts[: -len(parts)])}"
    else:
        common = Path(os.path.commonpath((folder, target)))
        root = target.parent if common == Path(common.anchor) else common
        way_out = f"give --image_folder {root} and paths that start there"
    return (
        f": {link} is a link to {link.resolve()}; {way_out}, or a copy of the folder with its links followed (cp -rL)"
    )


def _read_object(path: str, folder: ObjectPath) -> bytes:
    parts = path.split("/")
    # Stores take ".." for a name like any other, but the clients on the way to them may not.
    if path.startswith("/") or any(part == ".." for part in parts):
        raise ImageError(f"image path {path!r} leaves the image folder {folder}")
    # To a store `a//b` is another name than `a/b`; a path that was written for a file system may mean the latter.
    spelled, plain = ("/".join(p for p in parts if p not in left_out) for left_out in ((".",), (".", "")))
    if not plain or "\0" in plain or len(f"{folder.key}/{spelled}".encode(errors="replace")) > _LONGEST_KEY:
        raise ImageError(f"image {path!r} cannot be the name of an object")
    try:
        item = folder.below(spelled)
        if spelled != plain and not item.is_file():
            item = folder.below(plain)
        if (size := item.stat().st_size) > MAX_IMAGE_BYTES:
            raise ImageError(f"image {path!r} has {size} bytes, more than {MAX_IMAGE_BYTES}")
        return item.read_bytes()
    except FileNotFoundError as error:
        _check_there(folder)
        raise ImageError(f"image {path!r} is not an object in {folder}") from error
    except UnicodeEncodeError as error:
        raise ImageError(f"image {path!r} cannot be the name of an object: {error}") from error


def decode_image(
    data: bytes, max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS, *, only_size: bool = False
) -> Image.Image:
    """The image as RGB; EXIF rotation is not applied, like in the released recipes; of several images the first.

    Of more than 8 bits a sample the upper 8 are taken; `note_of` says where that leaves doubt. The size is known before
    a pixel is decoded, so a bomb costs nothing. With `only_size` a JPEG, still read to its end, may come back black:
    a third of the work. Raises ImageError.
    """

    def check_size(width: int, height: int) -> None:
        if width * height > max_image_pixels:
            raise ImageError(f"image of {width} x {height} pixels exceeds --max_image_pixels {max_image_pixels}")
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise ImageError(f"image of {width} x {height} pixels is longer than {MAX_ASPECT_RATIO} times its width")
        if max(width, height) > (longest := 2 * math.isqrt(max_image_pixels)):
            # Padded to a square it would have more than four times the allowed pixels.
            raise ImageError(
                f"image of {width} x {height} pixels has a side over {longest}, which is twice the square root of "
                f"--max_image_pixels {max_image_pixels}"
            )

    try:
        try:
            with Image.open(io.BytesIO(data), formats=formats_to_open()) as image:
                check_size(*(size := image.size))
                if only_size:
                    image.draft(image.mode, (1, 1))
                rgb, note = to_rgb(image, data)
                if rgb.size != size:
                    rgb = Image.new("RGB", size)
        except UnidentifiedImageError:
            if (grey := unpacked_grey(data, check_size)) is None:
                raise
            rgb, note = grey
        rgb.info[_NOTE] = note
        return rgb
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"image of {len(data)} bytes cannot be decoded: {describe_unopened(data)}") from error
    except Exception as error:  # Pillow's decoders raise almost anything on hostile bytes.
        if is_surroundings(error):  # Its plugins are read from disk, too.
            raise SurroundingsError(f"images cannot be decoded now: {error!r}") from error
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise ImageError(f"image of {len(data)} bytes cannot be decoded: {reason}") from error


def note_of(image: Image.Image) -> str | None:
    """Warns of an image that `decode_image` gave and that is usable, but in doubt; else None."""
    note: str | None = image.info.get(_NOTE)
    return note


def read_images(refs: Sequence[ImageRef], image_folder: Location | None) -> list[bytes]:
    """The encoded images of one row, as `read_image_file` does; ImageError also when they are too many bytes."""
    files: list[bytes] = []
    total = 0
    for ref in refs:
        files.append(read_image_file(ref, image_folder))
        total += len(files[-1])
        if total > MAX_ROW_IMAGE_BYTES:
            raise ImageError(f"the row's {len(refs)} images have more than {MAX_ROW_IMAGE_BYTES} bytes in all")
    return files


def decode_images(files: Sequence[bytes], max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS) -> list[Image.Image]:
    """The images of one row, as `decode_image` does; ImageError also when all of them together are too large."""
    images: list[Image.Image] = []
    allowed = MAX_ROW_PIXELS_RATIO * max_image_pixels
    for data in files:
        image = decode_image(data, max_image_pixels)
        allowed -= image.width * image.height
        if allowed < 0:
            raise ImageError(
                f"the row's {len(files)} images have more than {MAX_ROW_PIXELS_RATIO} times --max_image_pixels "
                f"{max_image_pixels} in all"
            )
        images.append(image)
    return images
