"""Reads annotated shards as a map-style dataset of training examples.

Rows are memory-mapped through `datasets`, which copies Parquet (images included) into its Arrow cache once; for
shards that do not fit twice on the disk see streaming.py. Images are decoded on access, so in the workers.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from torch.utils.data import Dataset

from cal_pipeline.encoding.encoder import Encoder
from cal_schemas.errors import (
    STATUS_OK,
    ConfigError,
    FormatError,
    IncompleteError,
    SeveralReferencesError,
    SidecarError,
)
from cal_schemas.opened import AnnotatedDataset, named, open_annotated
from cal_schemas.scores import DEFAULT_SCORE, SCORES, validate_columns
from cal_schemas.storage.locations import Location, location
from cal_trainer.data.alignment import EncodesRows, Example, RowEncoder, RowOptions
from cal_trainer.data.arrow_copy import map_parquet
from cal_trainer.data.shards import annotated_shards
from cal_trainer.data.sources import SourceOfFiles, sources_of_files

DUMMY = -1
"""Index of an example that trains nothing: it fills the last step of an epoch."""
COLUMNS = (
    "sample_id", "sample_key", "images", "messages", "template_inputs", "status", "label_ids", "delta_logits",
    "num_tokens",
)  # fmt: skip
"""Columns that training reads of a self-contained row; files from before `template_inputs` have all but that."""
_log = logging.getLogger(__name__)


class MappedExamples(EncodesRows, Dataset[Example]):
    """Usable rows of a memory-mapped copy, encoded on access; index DUMMY is the dummy example."""

    _usable: NDArray[np.int64]

    def _hold(
        self,
        rows: Any,
        usable: NDArray[np.int64],
        rows_by_shard: Sequence[int],
        folders: Sequence[Location | None],
        sources: SourceOfFiles,
        join: Callable[[int], dict[str, Any]] | None = None,
    ) -> None:
        """Takes the copy, the numbers of its usable rows, and of every shard its rows, image folder and source.

        `join` gives what else is known of the example of an index.
        """
        self._rows, self._usable, self._folders, self._join = rows, usable, folders, join
        self._stops = np.cumsum(rows_by_shard)
        self.source_names, of_row = sources.names, np.repeat(sources.index, rows_by_shard)
        self.source_of = of_row[usable]
        """[len] int32: index of the source of each."""

    def __len__(self) -> int:
        return len(self._usable)

    def has_image(self) -> np.ndarray:
        """[len] bool, from the list offsets: no image is touched."""
        images = self._rows.data.table.column("images")
        return np.asarray(pc.greater(pc.fill_null(pc.list_value_length(images), 0), 0))[self._usable]

    def __getitem__(self, index: int) -> Example:
        if index == DUMMY:
            return self.blank
        row = int(self._usable[index])
        folder = self._folders[int(np.searchsorted(self._stops, row, side="right"))]
        joined = {} if self._join is None else self._join(index)
        example = self._encode(self._rows[row].to_pylist()[0] | joined, folder)
        return replace(example, source=int(self.source_of[index]))


class AnnotatedExamples(MappedExamples):
    """Usable rows of annotated shards, encoded on access; index DUMMY is the dummy example.

    Args:
        path: directory of annotated shards (self-contained: with images and messages).
        encoder: of the model to be trained.
        image_folder: where image paths start; by default what each shard's metadata names.
        cache_dir: of `datasets`, for the Arrow copy.
        crossfit: whether shards may be of different references, each of other rows.
        partial: whether shards may be missing that were planned, or rows that were measured.
        options: how rows are read (`alignment.RowOptions`).

    Raises ConfigError for a sidecar, for what is not whole, and for labels that were decided differently, FormatError
    for what is no annotated directory. Reading a row whose labels are not those that were measured raises
    AlignmentError.
    """

    def __init__(
        self,
        path: Location | Sequence[Location],
        encoder: Encoder,
        *,
        image_folder: Location | None = None,
        cache_dir: Path | None = None,
        crossfit: bool = False,
        partial: bool = False,
        **options: Unpack[RowOptions],
    ) -> None:
        opened = open_self_contained(path, crossfit=crossfit, partial=partial)
        self.num_planned = opened.completeness.num_planned
        self.spec, self.shards = opened.spec, {"data_path": annotated_shards(opened)}
        self._encode = RowEncoder(encoder, opened.spec, where=named(path), **options)
        columns = (*COLUMNS, *columns_of_score(opened, options))
        rows = map_parquet(opened, [name for name in columns if name in opened.schema.names], cache_dir)
        table = rows.data.table
        folders = image_folders(opened, image_folder)
        self._hold(rows, np.flatnonzero(is_ok(table)), opened.rows, folders, sources_of_files(opened))
        self.skipped = count_skipped(table)
        report_skipped(named(path), len(self._usable), self.skipped)

    def lengths(self) -> np.ndarray:
        """[len] int64: encoded length with the reference's processor, a hint for grouping."""
        return num_tokens(self._rows.data.table)[self._usable]


def open_measured(
    path: Location | Sequence[Location], *, crossfit: bool = False, partial: bool = False
) -> AnnotatedDataset:
    """`open_annotated`, with the way out where only the reference differs, or what is there is not whole.

    The latter is an IncompleteError, unless `partial`.
    """
    try:
        return open_annotated(path, crossfit=crossfit, partial=partial)
    except SeveralReferencesError as error:
        raise FormatError(f"{error}. If each reference measured rows that it was not trained on, a cross-fit: "
                          "--crossfit true") from error  # fmt: skip
    except IncompleteError as error:
        raise IncompleteError(f"{error}. To train on what is there: --partial") from error


def open_self_contained(
    path: Location | Sequence[Location], *, crossfit: bool = False, partial: bool = False
) -> AnnotatedDataset:
    """Opens shards that carry their images and messages; SidecarError for those that do not."""
    opened = open_measured(path, crossfit=crossfit, partial=partial)
    if "messages" not in opened.schema.names:
        raise SidecarError(
            f"{named(path)} is a sidecar (--carry none) of "
            f"{sorted({item.source.data_path for item in opened.metadata})}: "
            "it holds no images and messages to train on. Say with --source_path where they are"
        )
    return opened


def columns_of_score(opened: AnnotatedDataset, options: RowOptions) -> tuple[str, ...]:
    """Names what the score reads beside COLUMNS; ConfigError, with the way out, where the shards do not hold it."""
    score = options.get("score", DEFAULT_SCORE)
    if not options.get("use_deltas", True):
        return ()
    validate_columns(opened.schema.names, score, str(opened.files[0].parent))
    return tuple(name for name in SCORES[score].cached if name not in COLUMNS)


def image_folders(opened: AnnotatedDataset, image_folder: Location | None) -> list[Location | None]:
    """Lists the image folder of every shard: the one given, or the one it was measured with."""
    if image_folder is not None:
        return [image_folder] * len(opened.files)
    measured = [item.source.image_folder for item in opened.metadata]
    return [None if folder is None else location(folder) for folder in measured]


def is_ok(table: pa.Table) -> np.ndarray:
    """[rows] bool, from the status column alone."""
    return np.asarray(pc.equal(table.column("status"), STATUS_OK))


def count_skipped(table: pa.Table) -> Counter[str]:
    """Rows by status, those that are ok left out."""
    counts = pc.value_counts(table.column("status")).to_pylist()
    return Counter({item["values"]: item["counts"] for item in counts if item["values"] != STATUS_OK})


def report_skipped(path: str, num_usable: int, skipped: Counter[str]) -> None:
    """Logs how many rows are skipped and why; ConfigError when none is left."""
    if not num_usable:
        raise ConfigError(
            f"{path}: none of its {skipped.total()} rows is ok ({dict(skipped)}); "
            "look at their errors, mend the source, and run cal-precompute --redo_status"
        )
    if skipped:
        _log.warning("%s: %d of %d rows are skipped: %s", path, skipped.total(), skipped.total() + num_usable,
                     dict(skipped))  # fmt: skip


def num_tokens(table: pa.Table) -> np.ndarray:
    """[rows] int64, 0 where unknown."""
    return np.asarray(pc.fill_null(table.column("num_tokens"), 0), np.int64)
