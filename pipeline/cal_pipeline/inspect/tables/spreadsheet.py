"""Reads what spreadsheets make of a CSV: a byte order mark, semicolons or tabs, UTF-16, Windows-1252."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from cal_schemas.errors import ConfigError
from cal_schemas.storage.locations import Location


def _decoded(path: Location) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def read_table(path: Location, required: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """Rows of a CSV with commas, semicolons or tabs by lower-case column name, but for empty ones.

    Raises ConfigError when the file is none or lacks a required column, naming those it has.
    """
    text = _decoded(path)
    if text.lower().startswith("sep="):  # What a spreadsheet writes to tell itself the separator.
        text = text.partition("\n")[2]
    text = text.lstrip("\r\n")
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    rows = filter(any, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    try:
        names = [name.strip().lower() for name in next(rows, [])]
        if missing := [name for name in required if name not in names]:
            raise ConfigError(f"{path} lacks the columns {missing}; it has {names}. Is it the sheet of "
                              "cal-inspect export --to labelling-sheet?")  # fmt: skip
        for row in rows:
            yield dict(zip(names, [*row, *[""] * len(names)], strict=False))
    except csv.Error as error:
        raise ConfigError(f"{path} is no CSV: {error}") from error
