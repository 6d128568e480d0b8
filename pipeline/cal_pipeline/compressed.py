"""The bytes of a text file, decompressed when its name ends in `.zst`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

_BUFFER = 2**20
_INPUT = 2**14


class _ZstdReader(io.RawIOBase):
    """Decompressed bytes of a file of any number of frames.

    Zstandard's own stream_reader takes a file that was cut inside a frame for its end; this raises EOFError.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame: Any = None
        self._unread = self._ready = b""

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
            self._ready = self._frame.decompress(block)
            self._unread = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        size = min(len(target), len(self._ready))
        target[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def open_binary(path: Path) -> BinaryIO:
    """The file's content from its start; reading raises ZstdError or EOFError when the compression is broken."""
    file = path.open("rb")
    if path.suffix != ".zst":
        return file
    return cast(BinaryIO, io.BufferedReader(_ZstdReader(file), buffer_size=_BUFFER))


def read_range(path: Path, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of the content, fewer where it ends before; a `.zst` is decompressed from its start."""
    with open_binary(path) as file:
        if path.suffix != ".zst":
            file.seek(start)
        else:
            while start > 0 and (skipped := len(file.read(min(start, _BUFFER)))):
                start, stop = start - skipped, stop - skipped
        return file.read(max(0, stop - start))
