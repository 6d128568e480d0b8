"""Reads annotated shards one batch after the other, and says where each came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cal_pipeline.inspect.progress import shown_progress
from cal_schemas.errors import ConfigError
from cal_schemas.opened import AnnotatedDataset, Batch, open_annotated
from cal_schemas.storage.locations import Location, location, on_the_hub
from cal_schemas.storage.object_path import ObjectPath

BATCH_ROWS = 8192
IMAGE_PATHS = "images.list.element.path"
"""Names the images of a row without reading a byte of them."""


def column_of(name: str) -> str:
    """The column that is read: a dot in any other name is its own."""
    return "images" if name == IMAGE_PATHS else name


def open_paths(paths: str | Location | Sequence[str | Location]) -> AnnotatedDataset:
    """Shards or directories of shards as one; FormatError or ConfigError with the reason otherwise."""
    listed = [location(path) for path in ([paths] if isinstance(paths, str | Path | ObjectPath) else paths)]
    if not listed:
        raise ConfigError("no annotated directory is given")
    for path in listed:
        if not path.exists():
            raise ConfigError(f"{path}: no such file or directory{on_the_hub(path)}")
    return open_annotated(listed)


def read_batches(opened: AnnotatedDataset, columns: Sequence[str], batch_rows: int = BATCH_ROWS) -> Iterator[Batch]:
    """Rows in file order then row order, never more than one row group in memory.

    `columns` that the shards do not have (images and messages of a sidecar) are left out. Raises FormatError naming a
    file whose pages are damaged, or that holds NaN or infinity.
    """
    there = [name for name in columns if column_of(name) in opened.schema.names]
    with shown_progress("rows read", opened.num_rows) as advance:
        for batch in opened.numbered_batches(there, batch_rows):
            yield batch
            advance(batch.data.num_rows)
