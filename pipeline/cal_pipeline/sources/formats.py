"""Keeps the registry of input formats: each says how its files are known, planned and read.

To add a format write one module beside this one that calls `register`, and name it in `__init__.py`. Of a file it
plans ranges of rows, without opening an image, and reads such a range; what else `InputFormat` has is optional.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

import pyarrow as pa

from cal_schemas.errors import ConfigError
from cal_schemas.sample import Sample
from cal_schemas.storage.locations import Location


@dataclass(frozen=True, kw_only=True, slots=True)
class RowRange:
    """Rows [row_start, row_stop) of a file, that one shard will hold."""

    row_start: int
    row_stop: int
    byte_start: int = 0
    byte_stop: int = 0
    """They lie in bytes [byte_start, byte_stop) of the (decompressed) file, where the format is read by bytes."""
    image_bytes: int = 0
    """Of the images that the file itself holds in these rows: encoded, or in `data:` URLs."""


def cut_rows(spans: Iterable[tuple[int, int, int]], rows_per_shard: int, max_bytes: float = math.inf) -> list[RowRange]:
    """Ranges of `rows_per_shard` rows (the last may be shorter), that also end before they have over `max_bytes` bytes.

    `spans` has (first byte, last byte + 1, bytes of its images) of every row.
    """
    ranges: list[RowRange] = []
    row = first_row = byte_start = byte_stop = image_bytes = 0

    def cut() -> None:
        ranges.append(RowRange(row_start=first_row, row_stop=row, byte_start=byte_start, byte_stop=byte_stop,
                               image_bytes=image_bytes))  # fmt: skip

    for start, stop, of_images in spans:
        if row > first_row and (row - first_row == rows_per_shard or stop - byte_start > max_bytes):
            cut()
            first_row = row
        if row == first_row:
            byte_start, image_bytes = start, 0
        row, byte_stop, image_bytes = row + 1, stop, image_bytes + of_images
    if row > first_row:
        cut()
    return ranges


@dataclass(frozen=True, kw_only=True, slots=True)
class FilePlan:
    """Ranges of one file, and where its images are."""

    ranges: Sequence[RowRange]
    images: Literal["named", "inside", "text", "unknown"] = "unknown"
    """`named`: rows name image files, so there must be an image folder. `inside`: the file holds its images.
    `text`: they are text; without an image folder planning looks at the first rows, whether all are `data:` URLs.
    `unknown`: it may have none; planning looks at the first rows, whether an image stands under a key nobody reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFormat:
    """One format of input, by its name in `--data_format` and in the footers of annotated shards."""

    name: str
    suffixes: tuple[str, ...]
    """Of file names, each with its dot; the longest that fits decides. In a directory all files of a known suffix are
    data: a new one takes files that were passed over before."""
    plan: Callable[[Location, int], FilePlan]
    """(file, rows per shard) -> its ranges, in order. Raises ConfigError for a file that is no such format, ShardError
    for a corrupt one."""
    read: Callable[[Location, RowRange, str], Iterator[Sample]]
    """(file, range, name) -> its samples in order, one for every row: `rows.sample_from_values` makes them. A row
    without an id (None) is called `<name>/<row>`; the keys are those of docs/data-format.md, section 7 (a question is
    `query`, an answer `response`, with an `<image>` mark for each image). Raises ShardError when the range is no longer
    what planning saw."""
    names: tuple[str, ...] = ()
    """Files that are called so, whole name and all, are of this format before any suffix is asked."""
    own_folder: bool = False
    """Where no image folder is given, paths of images start at the file's own."""
    splits: bool = True
    """Whether a file may become several shards: their names then say their rows."""
    pass_through: Callable[[Location], Mapping[str, pa.Field]] = lambda file: {}
    """Columns that go into the output as they are -> their fields there; `read` gives them with the sample."""


FORMATS: dict[str, InputFormat] = {}
"""By name, in the order in which they were registered."""


def register(*formats: InputFormat) -> None:
    """Adds formats to the registry; a name that is taken, or a suffix, is a mistake of the program."""
    for item in formats:
        known = {suffix for other in FORMATS.values() for suffix in other.suffixes}
        assert item.name not in FORMATS, item.name
        assert not known.intersection(item.suffixes), item.suffixes
        FORMATS[item.name] = item


def known_names() -> str:
    """What names of files end in, for messages."""
    return ", ".join(name for item in FORMATS.values() for name in (*item.suffixes, *item.names))


def known_suffix(file: Location | PurePath) -> str | None:
    """The longest registered suffix that the name ends in, or that of a name that is registered as a whole."""
    suffixes = [suffix for item in FORMATS.values() for suffix in item.suffixes if file.name.endswith(suffix)]
    suffixes += [file.suffix for item in FORMATS.values() if file.name in item.names]
    return max(suffixes, key=len, default=None)


def format_of(file: Location | PurePath, data_format: str) -> InputFormat:
    """The format of this name; for `auto` the one whose suffix the file has. ConfigError where there is none."""
    if data_format == "auto":
        if (item := next((item for item in FORMATS.values() if file.name in item.names), None)) is not None:
            return item
        suffix = known_suffix(file)
        of_suffix = (item for item in FORMATS.values() if suffix in item.suffixes)
        if (item := next(of_suffix, None)) is None:
            raise ConfigError(f"{file}: its name does not say its format")
        return item
    if data_format not in FORMATS:
        raise ConfigError(f"{file}: {data_format!r} is no input format; known are {', '.join(FORMATS)}")
    return FORMATS[data_format]
