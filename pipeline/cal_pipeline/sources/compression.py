"""Opens source files, decompressed when the name ends in `.zst`, `.gz` or `.tgz`.

A local file without such a name is decompressed when it begins as one: a link is read under the name of what it leads
to, which in a hub's cache is a digest.
"""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import BinaryIO, Literal, cast

import pyarrow as pa

from cal_schemas.storage.locations import Location

_GZIP_SUFFIXES = (".gz", ".tgz")
_GZIP_HEADER = b"\x1f\x8b"
_ZSTD_HEADER = b"\x28\xb5\x2f\xfd"
_BUFFER = 2**20


def _compression(path: Location) -> Literal["zst", "gz"] | None:
    if path.suffix == ".zst":
        return "zst"
    if path.suffix in _GZIP_SUFFIXES:
        return "gz"
    if not isinstance(path, Path):
        return None
    with path.open("rb") as file:
        head = file.read(4)
    return "zst" if head == _ZSTD_HEADER else "gz" if head.startswith(_GZIP_HEADER) else None


def is_compressed(path: Location) -> bool:
    """True for a file that can only be read from its start."""
    return _compression(path) is not None


def open_binary(path: Location) -> BinaryIO:
    """The file's content from its start; to be read inside `reading`, which knows broken ones."""
    compression = _compression(path)
    if compression == "gz":
        return cast(BinaryIO, gzip.open(path) if isinstance(path, Path) else gzip.GzipFile(fileobj=path.open("rb")))
    file = path.open("rb")
    if compression is None:
        return file
    # Arrow's takes any number of frames, and does not take a file that was cut inside one for its end.
    frames = pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")
    return cast(BinaryIO, io.BufferedReader(frames, _BUFFER))


def skip(file: BinaryIO, count: int) -> int:
    """Reads past `count` bytes, holding few of them; returns how many there were."""
    left = count
    while left > 0 and (skipped := len(file.read(min(left, _BUFFER)))):
        left -= skipped
    return count - left


def open_at(path: Location, start: int) -> BinaryIO:
    """The content from byte `start` on; a compressed file is decompressed up to there."""
    file = open_binary(path)
    try:
        if is_compressed(path):
            skip(file, start)
        else:
            file.seek(start)
    except BaseException:
        file.close()
        raise
    return file


def read_range(path: Location, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of the content, fewer where it ends before."""
    with open_at(path, start) as file:
        return file.read(max(0, stop - start))
