"""Files wherever they are: `pathlib.Path` for local ones, `ObjectPath` for objects in `s3://` and `gs://` stores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

import pyarrow.parquet as pq

from cal_schemas.errors import ConfigError
from cal_schemas.object_path import ObjectPath

Location: TypeAlias = Path | ObjectPath

_SCHEMES = {"s3": "s3", "gs": "gs", "gcs": "gs"}
_BACKSLASH_OR_NUL = ("\\", "\0")


def partial_of(path: Location) -> Location:
    """What `write_whole` writes to before the name is right."""
    return path.with_suffix(".new")


def write_whole(path: Location, text: str) -> None:
    """Writes a small file in one step: readers see the old one or the new one."""
    if isinstance(path, ObjectPath):
        path.write_text(text)
        return
    partial = partial_of(path)
    assert isinstance(partial, Path)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def lies_in(inner: Location, outer: Location) -> bool:
    """Whether one resolved location is the other or lies below it."""
    if isinstance(inner, Path) and isinstance(outer, Path):
        return inner.is_relative_to(outer)
    return isinstance(inner, ObjectPath) and inner.is_relative_to(outer)


def location(path: str | os.PathLike[str] | ObjectPath) -> Location:
    """What the user typed, as something to open: a path, `file://`, `s3://bucket/key` or `gs://bucket/key`.

    Raises ConfigError for any other scheme, and for a URL without a bucket.
    """
    if isinstance(path, ObjectPath):
        return path
    text = os.fspath(path)
    scheme, mark, rest = text.partition("://")
    if not mark:
        return Path(text)
    if scheme == "file":
        parsed = urlsplit(text)
        if parsed.netloc not in ("", "localhost"):
            raise ConfigError(f"{text}: a file:// URL of another host; write file:///path")
        return Path(unquote(parsed.path))
    if scheme not in _SCHEMES:
        raise ConfigError(f"{text}: no store is known for {scheme}://; expected a path, file://, s3:// or gs://")
    bucket, _, key = rest.partition("/")
    if not bucket or any(mark in rest for mark in _BACKSLASH_OR_NUL):
        raise ConfigError(f"{text}: expected {scheme}://bucket/key")
    return ObjectPath(_SCHEMES[scheme], bucket, key.strip("/"))


def open_parquet(path: str | Location, *, verify: bool = False) -> pq.ParquetFile:
    """A Parquet file of any place, open for reading; a context manager. `verify`: pages against their checksums."""
    where = location(path)
    if isinstance(where, ObjectPath):
        # Columns of a row group are fetched in few large requests.
        return pq.ParquetFile(where.open_random(), pre_buffer=True, page_checksum_verification=verify)
    return pq.ParquetFile(where, page_checksum_verification=verify)


def read_footer(path: str | Location) -> pq.FileMetaData:
    """Row counts, statistics, key-value pairs and schema of a Parquet file."""
    with open_parquet(path) as file:
        return file.metadata
