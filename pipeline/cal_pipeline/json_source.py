"""LLaVA JSON and JSONL, plain or `.zst`: finding virtual shards in one streaming pass, and reading one of them.

A virtual shard is a byte range of its file, so a worker seeks to its rows and parses no others. (ijson would
parse a JSON array incrementally too, but does not tell byte offsets.)
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from cal_pipeline.rows import RowError, sample_from_row
from cal_schemas.errors import ConfigError, ShardError
from cal_schemas.sample import Sample

_CHUNK = 4 * 2**20
_BOM = b"\xef\xbb\xbf"
_SPACE = " \t\r\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class RowRange:
    """Rows [row_start, row_stop) of a file lie in its (decompressed) bytes [byte_start, byte_stop)."""

    row_start: int
    row_stop: int
    byte_start: int
    byte_stop: int
    mentions_images: bool
    """Whether some row has an `image`: then there must be an image folder."""


def open_binary(path: Path) -> BinaryIO:
    """The file's content, decompressed when its name ends in `.zst`."""
    file = path.open("rb")
    if path.suffix != ".zst":
        return file
    reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=True)
    return cast(BinaryIO, io.BufferedReader(cast(Any, reader), buffer_size=_CHUNK))


def split_rows(path: Path, data_format: str, rows_per_shard: int) -> list[RowRange]:
    """Cuts the file into ranges of `rows_per_shard` rows (the last may be shorter); reads it once, flat in memory.

    Raises ConfigError, naming the byte, when a JSON file is no array of samples or the compression is broken.
    """
    ranges: list[RowRange] = []
    row, first_row, first_byte, images = 0, 0, 0, False
    stop = 0
    try:
        with open_binary(path) as file:
            spans = _array_spans(file, path) if data_format == "json" else _line_spans(file)
            for start, stop, has_image in spans:
                if row == first_row:
                    first_byte, images = start, False
                images |= has_image
                row += 1
                if row - first_row == rows_per_shard:
                    ranges.append(RowRange(row_start=first_row, row_stop=row, byte_start=first_byte, byte_stop=stop,
                                           mentions_images=images))  # fmt: skip
                    first_row = row
    except (zstandard.ZstdError, EOFError) as error:
        raise ConfigError(f"{path}: broken zstd stream: {error}") from error
    if row > first_row:
        ranges.append(RowRange(row_start=first_row, row_stop=row, byte_start=first_byte, byte_stop=stop,
                               mentions_images=images))  # fmt: skip
    return ranges


def _line_spans(file: BinaryIO) -> Iterator[tuple[int, int, bool]]:
    offset = 0
    for line in file:
        if offset == 0 and line.startswith(_BOM):
            offset, line = len(_BOM), line[len(_BOM) :]
        if not line.isspace() and line:
            yield offset, offset + len(line), b'"image' in line
        offset += len(line)


def _array_spans(file: BinaryIO, path: Path) -> Iterator[tuple[int, int, bool]]:
    """Byte spans of the elements of a top-level JSON array.

    The bytes are decoded as Latin-1: one character per byte, so offsets in the text are offsets in the file, and
    the structure is untouched because UTF-8 uses no ASCII byte inside a character. Values are read for real elsewhere.
    """
    decode = json.JSONDecoder(strict=False).raw_decode
    head = file.read(len(_BOM))
    base = len(head) if head == _BOM else 0
    buffer = "" if head == _BOM else head.decode("latin-1")
    at, ended, chunk = 0, False, _CHUNK

    def refill() -> bool:
        nonlocal base, buffer, at, ended, chunk
        block = file.read(chunk)
        ended = not block
        base, buffer, at = base + at, buffer[at:] + block.decode("latin-1"), 0
        return not ended

    def skip_space() -> str:
        nonlocal at
        while True:
            while at < len(buffer) and buffer[at] in _SPACE:
                at += 1
            if at < len(buffer):
                return buffer[at]
            if not refill():
                return ""

    def wrong(what: str) -> ConfigError:
        return ConfigError(f"{path}: {what} at byte {base + at}; expected a JSON array of samples")

    if skip_space() != "[":
        raise wrong("no '['")
    at += 1
    if skip_space() == "]":
        return
    while True:
        skip_space()
        try:
            value, end = decode(buffer, at)
            complete = end < len(buffer) or ended
        except json.JSONDecodeError as error:
            if ended:
                raise wrong(f"malformed JSON ({error.msg})") from error
            complete = False
        except RecursionError as error:
            raise wrong("nested too deeply") from error
        if not complete:
            chunk = max(_CHUNK, len(buffer))  # Doubling keeps one huge element linear.
            refill()
            continue
        chunk = _CHUNK
        has_image = isinstance(value, dict) and bool(value.get("image") or value.get("images"))
        yield base + at, base + end, has_image
        at = end
        if (mark := skip_space()) == "]":
            return
        if mark != ",":
            raise wrong("the array is cut off" if not mark else f"unexpected {mark!r}")
        at += 1


def read_rows(
    path: Path, data_format: str, byte_start: int, byte_stop: int, name: str, row_start: int
) -> Iterator[Sample]:
    """Samples of one byte range, in order; a malformed line is a sample with a `problem`, not an error.

    Raises ShardError when the range is no longer what planning saw.
    """
    try:
        with open_binary(path) as file:
            file.seek(byte_start)
            raw = file.read(byte_stop - byte_start)
    except (zstandard.ZstdError, EOFError) as error:
        raise ShardError(f"{path}: broken zstd stream: {error}") from error
    if len(raw) != byte_stop - byte_start:
        raise ShardError(f"{path}: ends before byte {byte_stop}; it was changed after planning")
    if data_format == "json":
        try:
            values = json.loads(f"[{_decode(raw)}]", strict=False)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ShardError(f"{path}: bytes {byte_start}-{byte_stop} are no longer JSON: {error}") from error
    else:
        values = (_parse_line(line) for line in raw.split(b"\n") if line and not line.isspace())
    for row, value in enumerate(values, row_start):
        yield sample_from_json(value, f"{name}/{row}")


def _decode(raw: bytes) -> str:
    # Bytes that are no UTF-8 become lone surrogates here, and U+FFFD with a note in sample_from_row.
    return raw.decode("utf-8", "surrogateescape")


def _parse_line(line: bytes) -> Any:
    try:
        return json.loads(_decode(line), strict=False)
    except (json.JSONDecodeError, RecursionError) as error:
        return RowError(f"malformed JSON line: {error}")


def sample_from_json(value: Any, row_id: str) -> Sample:
    """One LLaVA row (`id`, `image`, `conversations`) as a Sample."""
    if isinstance(value, RowError):
        return Sample(sample_id=row_id, images=(), messages=None, problem=str(value))
    if not isinstance(value, Mapping):
        return Sample(
            sample_id=row_id, images=(), messages=None, problem=f"expected an object, got {type(value).__name__}"
        )
    images = value.get("images") if value.get("image") is None else value["image"]
    turns = value.get("conversations") if value.get("messages") is None else value["messages"]
    return sample_from_row(
        row_id=row_id, source_id=value.get("id"), images=images, turns=turns, caption=None, carried={}
    )
