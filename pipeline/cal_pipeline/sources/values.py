"""Reads single values of a source row: whether they say anything, whether they say what is learned, and images.

Images are paths, bytes, `data:` URLs, structs of bytes and path, and lists of those.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

import pyarrow as pa

from cal_pipeline.sources.column_types import is_image, plain_type
from cal_schemas.sample import ImageRef

_LEARNING = frozenset(["loss", "weight", "weights", "train", "trained", "trainable", "training", "learn", "learned",
                       "learnable", "mask", "supervise", "supervised"])  # fmt: skip
_LEAVES_OUT = frozenset(["masked", "ignore", "ignored", "skip", "skipped", "exclude", "excluded",
                         "unsupervised"])  # fmt: skip
_AUXILIARIES = frozenset(["is", "be", "to"])
_DENIES = frozenset(["no", "not", "dont", "without"])
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
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
SOUND_SUFFIXES = (".wav", ".mp3", ".flac", ".m4a", ".ogg", ".opus")
_CHANGES_IMAGE = frozenset(["crop", "pixels", "resized", "rotate", "rotation", "page", "frame"])
_LONGEST_PATH = 4096


class RowError(ValueError):
    """This row cannot be read as it is meant; it becomes the sample's `problem`."""


def is_wide_text(head: bytes, *, json: bool = True) -> bool:
    """True for the first bytes of text in UTF-16 or UTF-32: by its byte order mark, or of JSON by a zero."""
    return (
        head[:2] in (b"\xff\xfe", b"\xfe\xff")
        or head[:4] == b"\0\0\xfe\xff"
        or (json and 0 in head[:4] and any(head[:4]))
    )


@lru_cache(1024)
def words_of(key: str) -> frozenset[str]:
    """The words of a key: `loss_weight`, `lossWeight` and `loss-weight` have the same two."""
    return frozenset(word.lower() for word in _WORD.findall(key))


def is_null(value: Any) -> bool:
    """Null, or NaN, which is pandas' null."""
    return value is None or (isinstance(value, float) and value != value)


def is_empty(value: Any) -> bool:
    """True for a value that says nothing: null, empty text, or a list or object of such."""
    if not value:
        return value is None or value is False or isinstance(value, (str, bytes, list, tuple, Mapping))
    if isinstance(value, (list, tuple)):
        return all(map(is_empty, value))
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    return is_null(value)


@lru_cache(1024)
def is_learning_key(key: str) -> bool:
    """True for a key of a turn that says how much is learned from it."""
    words = words_of(key)
    return bool(words & _LEARNING) or (bool(words & _LEAVES_OUT) and words <= _LEAVES_OUT | _AUXILIARIES)


def learned(key: str, value: Any, where: str) -> bool:
    """True where a learning key keeps its turn; RowError for all but 0 and 1 (or false and true)."""
    words = words_of(key)
    leaves_out = bool(words & (_LEAVES_OUT | _DENIES))
    if leaves_out and is_empty(value or None):
        return True
    if leaves_out or ("mask" in words and isinstance(value, bool)):
        raise RowError(f"{where} has {key!r} {value!r}, and layouts differ in whether that is learned or left out: say "
                       "it as 'loss': true or false")  # fmt: skip
    if isinstance(value, bool | int | float | Decimal) and value in (0, 1):
        return bool(value)
    raise RowError(f"{where} has {key!r} {value!r}; only 0 and 1 (or false and true) are known: all learned tokens "
                   "count alike before CAL weighs them")  # fmt: skip


def json_value(value: Any, where: str) -> Any:
    """A value for a chat template, without the nulls that Arrow gives to keys an object lacks; RowError for no JSON."""
    if isinstance(value, Mapping):
        return {str(key): json_value(item, where) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [json_value(item, where) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise RowError(f"{where} holds {type(value).__name__}, which is no JSON value")


def parsed(text: str, where: str) -> Any:
    """JSON that a layout keeps as text; RowError when it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{where} is text, and no JSON: {error}") from error


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


def is_image_file(value: bytes | str) -> bool:
    """Whether a value is the content of an image file, as its bytes or as a data: URL."""
    if isinstance(value, str):
        return bool(_DATA_URL.match(value))
    return (
        value.startswith(_STARTS)
        or (value[:4] == b"RIFF" and value[8:12] == b"WEBP")
        or (value[:2] == b"BM" and value[6:10] == bytes(4))
        or value[4:12] in (b"ftypavif", b"ftypheic", b"ftypheix", b"ftypmif1")
    )


def looks_like_image(key: str, value: Any) -> str | None:
    """Says in words why a value that nobody claimed is taken for an image, a video or sound; None where it is not."""
    if isinstance(value, pa.Array):  # A long list of numbers is not read for this.
        return looks_like_image(key, value.to_pylist()) if is_image(plain_type(value.type)) else None
    if isinstance(value, list):
        return next((reason for item in value[:4] if (reason := looks_like_image(key, item))), None)
    if isinstance(value, Mapping):
        return looks_like_image(key, value.get("bytes")) or looks_like_image(key, value.get("path"))
    if isinstance(value, bytes):
        return "the bytes of an image" if is_image_file(value) else None
    if not isinstance(value, str) or not value:
        return None
    if is_image_file(value):
        return "a data: URL"
    if len(value) > _LONGEST_PATH:
        return None
    words = words_of(key)
    is_name = not any(letter.isspace() for letter in value)
    ends = value.split("?")[0].lower().endswith(IMAGE_SUFFIXES + VIDEO_SUFFIXES + SOUND_SUFFIXES)
    says = bool(words & _MEANS_IMAGE) and words <= _MEANS_IMAGE | _MEANS_FILE
    return repr(value[:80]) if (is_name and ends) or says else None
