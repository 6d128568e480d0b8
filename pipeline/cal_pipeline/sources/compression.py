"""Opens source files, decompressed when the name ends in `.zst`, `.gz` or `.tgz`.

A local file without such a name is decompressed when it begins as one: a link is read under the name of what it leads
to, which in a hub's cache is a digest.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import zstandard

from cal_schemas.storage.locations import Location

BROKEN = (zstandard.ZstdError, gzip.BadGzipFile, zlib.error, EOFError)
"""Raised by reading when the compression is broken or the file is cut."""
_GZIP_SUFFIXES = (".gz", ".tgz")
_GZIP_HEADER = b"\x1f\x8b"
_BUFFER = 2**20
_INPUT = 2**11
"""Zstandard turns 4 bytes into 128 KiB at best: so much input makes at most 64 MiB of output."""


class _ZstdReader(io.RawIOBase):
    """Decompressed bytes of a file of any number of frames.

    Zstandard's own stream_reader takes a file that was cut inside a frame for its end; this raises EOFError.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame: Any = None
        self._unread = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._ready:
            block = self._unread or self._file.read(_INPUT)
            if self._frame is None:
                if not block:
                    return 0
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            elif not block:
                raise EOFError("the file ends inside a frame")
            # Sliced as a view: a small read must not copy the rest of a large block.
            self._ready = memoryview(self._frame.decompress(block))
            self._unread = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        size = min(len(target), len(self._ready))
        target[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _compression(path: Location) -> Literal["zst", "gz"] | None:
    if path.suffix == ".zst":
        return "zst"
    if path.suffix in _GZIP_SUFFIXES:
        return "gz"
    if not isinstance(path, Path):
        return None
    with path.open("rb") as file:
        head = file.read(4)
    return "zst" if head == zstandard.FRAME_HEADER else "gz" if head.startswith(_GZIP_HEADER) else None


def is_compressed(path: Location) -> bool:
    """True for a file that can only be read from its start."""
    return _compression(path) is not None


def open_binary(path: Location) -> BinaryIO:
    """The file's content from its start; reading raises one of BROKEN when the compression is broken."""
    compression = _compression(path)
    if compression == "gz":
        return cast(BinaryIO, gzip.open(path) if isinstance(path, Path) else gzip.GzipFile(fileobj=path.open("rb")))
    file = path.open("rb")
    if compression is None:
        return file
    return cast(BinaryIO, io.BufferedReader(_ZstdReader(file), buffer_size=_BUFFER))


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
