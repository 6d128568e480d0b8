"""Reads LLaVA JSON and JSONL, plain or compressed, into samples: finds virtual shards in one pass, and reads one.

A virtual shard is a byte range of its file, so a worker seeks to its rows and parses no others. (ijson would
parse a JSON array incrementally too, but does not tell byte offsets.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO

from cal_pipeline.sources.compression import open_at, open_binary, read_range
from cal_pipeline.sources.formats import FilePlan, InputFormat, RowRange, cut_rows, register
from cal_pipeline.sources.reading import reading
from cal_pipeline.sources.rows import MAX_ROW_TEXT_BYTES, decode, names_image_file, parse, parse_line, sample_from_json
from cal_pipeline.sources.values import RowError, is_wide_text
from cal_schemas.errors import ConfigError, ShardError
from cal_schemas.sample import Sample
from cal_schemas.storage.locations import Location

_Span = tuple[int, int, bool, bool]
"""(first byte, last byte + 1, whether this row or one before names an image file, whether it holds a `data:` URL)."""
_FindSpans = Callable[[BinaryIO, Location], Iterator[_Span]]
ReadValues = Callable[[Location, int, int], Iterator[Any]]
_CHUNK = 4 * 2**20
_BOM = b"\xef\xbb\xbf"
_SPACE = " \t\r\n"
_LONGEST_TOKEN = len("-Infinity")
_DAMAGED = "broken compressed stream"
_MAX_RANGE_BYTES = 256 * 2**20
"""A virtual shard is read into memory: it ends early rather than grow beyond."""


def plan_text(find_spans: _FindSpans, path: Location, rows_per_shard: int) -> FilePlan:
    """Reads the file once, flat in memory; a range also ends before it would hold more than 256 MiB.

    Raises ConfigError, naming the byte, when a JSON file is
    no array, and ShardError when the array is malformed or cut off, or the compression is broken.
    """
    named = False

    def spans(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
        nonlocal named
        for start, stop, names_image, has_data in find_spans(file, path):
            named |= names_image
            yield start, stop, (stop - start) * has_data

    with reading(path, _DAMAGED):
        # A byte order mark, or a zero byte in the first character of JSON.
        if is_wide_text(read_range(path, 0, 4)):
            raise ConfigError(
                f"{path} is UTF-16 or UTF-32 text, and JSON is read as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE"
            )
        with open_binary(path) as file:
            ranges = cut_rows(spans(file), rows_per_shard, _MAX_RANGE_BYTES)
    return FilePlan(ranges=ranges, images="named" if named else "unknown")


def line_spans(file: BinaryIO, path: Location) -> Iterator[_Span]:
    """Byte spans of the lines that hold something."""
    offset, has_image = 0, False
    for length, line in _lines(file, offset):
        if line is None:
            yield offset, offset + length, has_image, False
        elif line and not line.isspace():
            skipped = length - len(line)
            if offset == 0 and line.strip() in (b"[", b"{"):
                raise ConfigError(
                    f"{path}: its first line is {line.strip().decode()!r}: an indented JSON file, not one sample a "
                    "line; name it .json, or give --data_format json"
                )
            # One image settles it for the whole file, so this parses few lines: all only where none has one.
            has_image = has_image or (b'"image' in line and names_image_file(parse_line(line), line.count(b'"image')))
            yield offset + skipped, offset + length, has_image, b";base64," in line
        offset += length


def _lines(file: BinaryIO, offset: int, stop: int | None = None) -> Iterator[tuple[int, bytes | None]]:
    """(bytes, line) of every line from byte `offset` on, None in place of one too long to hold."""
    while (stop is None or offset < stop) and (line := file.readline(MAX_ROW_TEXT_BYTES)):
        length = len(line)
        if length == MAX_ROW_TEXT_BYTES and not line.endswith(b"\n"):
            while rest := file.readline(_CHUNK):
                length += len(rest)
                if rest.endswith(b"\n"):
                    break
            yield length, None
        else:
            yield length, line.removeprefix(_BOM) if offset == 0 else line
        offset += length


def _array_spans(file: BinaryIO, path: Location) -> Iterator[_Span]:
    """Byte spans of the elements of a top-level JSON array.

    The bytes are decoded as Latin-1: one character per byte, so offsets in the text are offsets in the file, and
    the structure is untouched because UTF-8 uses no ASCII byte inside a character. Values are read for real elsewhere.
    """
    read_value = json.JSONDecoder(strict=False).raw_decode
    head = file.read(len(_BOM))
    base = len(head) if head == _BOM else 0
    buffer = "" if head == _BOM else head.decode("latin-1")
    at, ended, chunk, has_image = 0, False, _CHUNK, False

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

    def wrong(what: str, where: int | None = None) -> ShardError:
        byte = base + (at if where is None else where)
        return ShardError(f"{path}: {what} at byte {byte}; expected a JSON array of samples")

    if (mark := skip_space()) != "[":
        what = "an object, not '[' (one object per line is --data_format jsonl)," if mark == "{" else "no '['"
        # Another kind of file is a mistake in the command; one without any content is damaged like one that is cut.
        raise ConfigError(str(wrong(what))) if mark else wrong(what)
    at += 1
    closed = skip_space() == "]"
    while not closed:
        skip_space()
        try:
            value, end = read_value(buffer, at)
            # "1" may go on as "1e-5": a number is whole when more than two characters follow it.
            complete = end + 2 < len(buffer) or ended
        except json.JSONDecodeError as error:
            # A value that goes on beyond the buffer fails at the buffer's end, or inside a string.
            if ended or (error.pos + _LONGEST_TOKEN < len(buffer) and not error.msg.startswith("Unterminated")):
                raise wrong(f"malformed JSON ({error.msg})", error.pos) from error
            complete = False
        except ValueError as error:  # More digits than Python converts.
            raise wrong("an integer of too many digits") from error
        except RecursionError as error:
            raise wrong("nested too deeply") from error
        if not complete:
            if len(buffer) - at > MAX_ROW_TEXT_BYTES:
                raise wrong(f"an element of more than {MAX_ROW_TEXT_BYTES} bytes")
            chunk = max(_CHUNK, len(buffer))  # Doubling keeps one huge element linear.
            refill()
            continue
        chunk = _CHUNK
        has_image = has_image or names_image_file(value, buffer.count('"image', at, end))
        yield base + at, base + end, has_image, buffer.find(";base64,", at, end) >= 0
        at = end
        mark = skip_space()
        if mark not in ("]", ","):
            raise wrong("the array is cut off" if not mark else f"unexpected {mark!r}")
        closed = mark == "]"
        at += not closed
    at += 1
    if mark := skip_space():
        raise wrong(f"{mark!r} after the end of the array")


def read_text_rows(read_values: ReadValues, path: Location, rows: RowRange, name: str) -> Iterator[Sample]:
    """Samples of one range, in order; a malformed line is a sample with a `problem`, not an error.

    Raises ShardError when the range is no longer what planning saw.
    """
    with reading(path, _DAMAGED):
        for row, value in enumerate(read_values(path, rows.byte_start, rows.byte_stop), rows.row_start):
            yield sample_from_json(value, f"{name}/{row}")


def line_values(path: Location, byte_start: int, byte_stop: int) -> Iterator[Any]:
    """The value of every line of a range of bytes, or a RowError in its place; ShardError where it ends early."""
    at = byte_start
    with open_at(path, byte_start) as file:
        for length, line in _lines(file, byte_start, byte_stop):
            at += length
            if line is None:
                yield RowError(f"a line of {length} bytes; at most {MAX_ROW_TEXT_BYTES} are read")
            elif line and not line.isspace():
                yield parse_line(line)
    if at < byte_stop:
        raise _changed(path, byte_stop)


def _array_values(path: Location, byte_start: int, byte_stop: int) -> Iterator[Any]:
    raw = read_range(path, byte_start, byte_stop)
    if len(raw) != byte_stop - byte_start:
        raise _changed(path, byte_stop)
    try:
        yield from parse(f"[{decode(raw)}]")
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{path}: bytes {byte_start}-{byte_stop} are no longer JSON: {error}") from error


def _changed(path: Location, byte_stop: int) -> ShardError:
    return ShardError(f"{path}: ends before byte {byte_stop}; it was changed after planning")


register(
    *(
        InputFormat(
            name=name,
            suffixes=tuple(f".{name}{compressed}" for compressed in ("", ".zst", ".gz")),
            plan=partial(plan_text, find_spans),
            read=partial(read_text_rows, read_values),
        )
        for name, find_spans, read_values in (
            ("json", _array_spans, _array_values),
            ("jsonl", line_spans, line_values),
        )
    )
)
