"""Reads the images of a row's values: paths, bytes, `data:` URLs, structs of bytes and path, lists of those."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from cal_pipeline.sources.column_types import is_image, plain_type
from cal_pipeline.sources.row_values import RowError, is_empty, is_null, words_of
from cal_schemas.sample import ImageRef

IMAGE_KEYS = ("images", "image")
"""Of a row, and of a turn."""
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*", b"\x00\x00\x00\x0cjP")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".avif", ".heic")
_MEANS_IMAGE = frozenset(["image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "pixel",
                          "pixels", "jpg", "jpeg", "png", "webp"])  # fmt: skip
_MEANS_FILE = frozenset(["path", "paths", "file", "files", "filename", "name", "names", "url", "urls", "uri", "src",
                         "bytes", "data", "base64", "b64", "values"])  # fmt: skip
VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg")
_SOUND_SUFFIXES = (".wav", ".mp3", ".flac", ".m4a", ".ogg", ".opus")
_CHANGES_IMAGE = frozenset(["crop", "pixels", "resized", "rotate", "rotation", "page", "frame"])
_LONGEST_PATH = 4096


def image_refs(value: Any) -> list[ImageRef]:
    """Images in order; RowError for a value that is none. What has neither bytes nor a path is no image."""
    if is_null(value):
        return []
    if isinstance(value, str):
        if prefix := _DATA_URL.match(value):
            try:
                return [ImageRef(data=base64.b64decode(value[prefix.end() :], validate=True))]
            except (binascii.Error, ValueError) as error:
                raise RowError(f"image is a data: URL whose base64 is broken: {error}") from error
        return [ImageRef(path=value)] if value else []
    if isinstance(value, bytes):
        return [ImageRef(data=value)]
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path")
        if not isinstance(data, bytes | None) or not isinstance(path, str | None):
            raise RowError(
                f"image has bytes of {type(data).__name__} and a path of {type(path).__name__}; "
                "expected bytes and a string"
            )
        if data is None and not path:
            if others := sorted(str(key) for key, item in value.items() if not is_empty(item)):
                raise RowError(f"image is an object with {', '.join(others)}; expected bytes or a path")
            return []
        changing = [key for key, item in value.items() if words_of(str(key)) & _CHANGES_IMAGE and not is_empty(item)]
        if changing:
            raise RowError(f"image has {changing[0]!r}, which nothing is made of: store the image as it is to be seen")
        return [ImageRef(data=data, path=path)]
    if isinstance(value, list):
        return [ref for item in value for ref in image_refs(item)]
    raise RowError(f"image is {type(value).__name__}; expected a path, bytes, {{bytes, path}} or a list of those")


def own_images(values: Mapping[str, Any], where: str) -> list[ImageRef]:
    """Images of a row, or of a turn, under whichever key it has; RowError where two keys say different ones."""
    by_key = {key: refs for key in IMAGE_KEYS if (refs := image_refs(values.get(key)))}
    if len(by_key) > 1 and by_key["images"] != by_key["image"]:
        raise RowError(f"{where} has other images in 'images' than in 'image': keep one of the two")
    return next(iter(by_key.values()), [])


def looks_like_image(key: str, value: Any) -> str | None:
    """Says in words why a value that nobody claimed is taken for an image, a video or sound; None where it is not."""
    if isinstance(value, pa.Array):  # A long list of numbers is not read for this.
        return looks_like_image(key, value.to_pylist()) if is_image(plain_type(value.type)) else None
    if isinstance(value, list):
        return next((reason for item in value[:4] if (reason := looks_like_image(key, item))), None)
    if isinstance(value, Mapping):
        return looks_like_image(key, value.get("bytes")) or looks_like_image(key, value.get("path"))
    if isinstance(value, bytes):
        begins = value.startswith(_STARTS) or (value[:4] == b"RIFF" and value[8:12] == b"WEBP")
        return "the bytes of an image" if begins or (value[:2] == b"BM" and value[6:10] == bytes(4)) else None
    if not isinstance(value, str) or not value or (len(value) > _LONGEST_PATH and not _DATA_URL.match(value)):
        return None
    if _DATA_URL.match(value):
        return "a data: URL"
    words = words_of(key)
    is_name = not any(letter.isspace() for letter in value)
    ends = value.split("?")[0].lower().endswith(IMAGE_SUFFIXES + VIDEO_SUFFIXES + _SOUND_SUFFIXES)
    says = bool(words & _MEANS_IMAGE) and words <= _MEANS_IMAGE | _MEANS_FILE
    return repr(value[:80]) if (is_name and ends) or says else None
