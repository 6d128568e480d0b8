"""Reads the members of a tar archive once, from front to back, trusting nothing in it.

Header blocks are parsed by the standard library's TarInfo. Its TarFile is not used: at a damaged header in mid-archive
it stops as if the archive ended there, it reads an extended header of any size into memory, it keeps every member, and
it tells no end of a member. Nothing is ever written to disk, and a member's name opens nothing.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from cal_pipeline.sources.compression import skip
from cal_pipeline.sources.reading import DamagedError

_BLOCK = 512
_MAX_HEADER_BYTES = 2**20
"""Of an extended header or a long name: room for names of any file system."""
_PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One file of the archive. Offsets are bytes of the (decompressed) archive."""

    name: str
    """As stored, without a leading `./`; bytes that are no UTF-8 are lone surrogates."""
    is_file: bool
    """False for links and devices, which have no bytes of their own."""
    size: int
    start: int
    """Of its first header, extended ones included."""
    stop: int
    """Just after its last block."""


class TarStream:
    """A tar archive from some header on; iterate over `members()`, and `read` the current one if wanted.

    Args:
        file: positioned at a header.
        start: that position in the archive.
        can_seek: whether unwanted bytes are jumped over instead of read.
    """

    def __init__(self, file: BinaryIO, start: int = 0, *, can_seek: bool = False) -> None:
        self._file, self._at, self._can_seek = file, start, can_seek

    def read(self, size: int) -> bytes:
        """The next bytes; DamagedError when there are fewer."""
        data = self._file.read(size)
        self._at += len(data)
        if len(data) < size:
            raise DamagedError(f"it is cut off at byte {self._at}")
        return data

    def members(self, stop: int | None = None) -> Iterator[Member]:
        """Files, links and devices in order, directories left out; up to byte `stop`, or else to the archive's end.

        Raises DamagedError for a bad header, an archive without its end mark, or data behind that mark.
        """
        start, name, size = self._at, None, None
        while stop is None or self._at < stop:
            offset = self._at
            block = self._file.read(_BLOCK)
            self._at += len(block)
            if not block:
                end = min(offset, self._file.seek(0, io.SEEK_END)) if self._can_seek else offset
                raise DamagedError(f"it is cut off at byte {end}: the end-of-archive mark is missing")
            if not any(block):
                self._check_end(offset)
                return
            info = _header(block, offset)
            if info.type in (*_PAX_TYPES, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                value = self._extended(info.size, offset)
                if info.type == tarfile.GNUTYPE_LONGNAME:
                    name = _text(value.split(b"\0", 1)[0])
                elif info.type in _PAX_TYPES:
                    name, size = _pax_name_and_size(value, offset, name, size)
                elif info.type == tarfile.XGLTYPE and _pax_name_and_size(value, offset, None, None) != (None, None):
                    raise DamagedError(f"a global header at byte {offset} names all following members alike")
                continue
            if info.type == tarfile.GNUTYPE_SPARSE:
                raise DamagedError(f"member {info.name!r} at byte {offset} is a sparse file")
            has_data = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
            length = (info.size if size is None else size) if has_data else 0
            if length < 0:
                raise DamagedError(f"bad header at byte {offset}: a size of {length}")
            end = self._at + -(-length // _BLOCK) * _BLOCK
            if not info.isdir():
                yield Member(
                    name=(info.name if name is None else name).removeprefix("./"),
                    is_file=info.isreg(),
                    size=length,
                    start=start,
                    stop=end,
                )
            self._forward(end)
            start, name, size = end, None, None

    def _extended(self, size: int, offset: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise DamagedError(f"an extended header of {size} bytes at byte {offset}")
        return self.read(-(-size // _BLOCK) * _BLOCK)[:size]

    def _forward(self, to: int) -> None:
        if self._can_seek:
            self._file.seek(to)
            self._at = to
            return
        self._at += skip(self._file, to - self._at)
        if self._at < to:
            raise DamagedError(f"it is cut off at byte {self._at}")

    def _check_end(self, offset: int) -> None:
        # Reading on also lets a compressed stream check itself to its end.
        while rest := self._file.read(2**16):
            if any(rest):
                raise DamagedError(f"more data after the end-of-archive mark at byte {offset} (archives joined?)")


def _header(block: bytes, offset: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise DamagedError(f"bad header at byte {offset} ({error})") from error


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _pax_name_and_size(value: bytes, offset: int, name: str | None, size: int | None) -> tuple[str | None, int | None]:
    """Records `<length> <key>=<value>`, a line each; the two that matter replace what an earlier header said."""
    at = 0
    try:
        while at < len(value) and value[at]:
            space = value.index(b" ", at, at + 20)
            end = at + int(value[at:space])
            if not space < end <= len(value):
                raise ValueError("a record's length")
            key, _, content = value[space + 1 : end - 1].partition(b"=")
            if key == b"path":
                name = _text(content)
            elif key == b"size":
                size = int(content)
            elif key.startswith(b"GNU.sparse"):
                raise DamagedError(f"the member at byte {offset} is a sparse file")
            at = end
    except ValueError as error:
        raise DamagedError(f"bad extended header at byte {offset} ({error})") from error
    return name, size
