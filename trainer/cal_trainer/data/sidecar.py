"""Joins a sidecar (deltas without images and messages) to its source, however that was reordered since.

The source is read once, in whatever format it has, into a memory-mapped Arrow copy; the deltas stay in theirs. Keys are
joined as sorted arrays of 16 bytes a row, so what is held in memory is about 50 bytes a row.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cal_pipeline.encoding.encoder import Encoder
from cal_schemas.choices import check_choice
from cal_schemas.errors import STATUS_OK, MissingDeltaError
from cal_schemas.opened import named
from cal_schemas.storage.locations import Location
from cal_trainer.config import OnMissing
from cal_trainer.data.alignment import RowEncoder, RowOptions
from cal_trainer.data.arrow_copy import map_parquet, map_source
from cal_trainer.data.dataset import MappedExamples, columns_of_score, is_ok, num_tokens, open_measured, report_skipped
from cal_trainer.data.join import ABSENT, key_array, match_keys, named_by_path, validate_one_measurement
from cal_trainer.data.shards import annotated_shards, source_shards
from cal_trainer.data.source import folders_of, plan_source
from cal_trainer.data.sources import sources_of_shards

_SIDECAR_COLUMNS = ("sample_key", "status", "label_ids", "delta_logits", "num_tokens")
_log = logging.getLogger(__name__)


class SidecarExamples(MappedExamples):
    """Rows of a source with the deltas of its sidecar; index DUMMY is the dummy example.

    Args:
        path: directory of annotated shards; whether they carry messages does not matter.
        source_paths: files, directories or globs, as `cal-precompute --data_path` takes them.
        encoder: of the model to be trained.
        image_folders: none, one for all source paths, or one for each; none takes the measurement's, if it had one.
        on_missing: what becomes of a source row that the sidecar lacks: `error`, or `uniform`: it trains with
            undefined deltas, which weigh alpha.
        cache_dir: of `datasets`, for the Arrow copies.
        crossfit: as in AnnotatedExamples.
        partial: as in AnnotatedExamples.
        options: how rows are read (`alignment.RowOptions`).

    Raises MissingDeltaError naming the first such row, ConfigError for a source that cannot be read, for labels that
    were decided differently, or for rows of one key with different deltas. Reading a row whose labels are not those
    that were measured raises AlignmentError.
    """

    def __init__(
        self,
        path: Location | Sequence[Location],
        source_paths: Sequence[str],
        encoder: Encoder,
        *,
        image_folders: Sequence[str] = (),
        on_missing: OnMissing = "error",
        cache_dir: Path | None = None,
        crossfit: bool = False,
        partial: bool = False,
        **options: Unpack[RowOptions],
    ) -> None:
        check_choice("on_missing", on_missing, OnMissing)
        opened = open_measured(path, crossfit=crossfit, partial=partial)
        self.spec = opened.spec
        self._encode = RowEncoder(encoder, opened.spec, where=named(path), **options)
        if not image_folders:
            measured = {item.source.image_folder for item in opened.metadata} - {None}
            image_folders = [str(folder) for folder in measured] if len(measured) == 1 else []
        shards = plan_source(source_paths, image_folders)
        self.shards = {"data_path": annotated_shards(opened), "source_path": source_shards(shards)}
        columns = (*_SIDECAR_COLUMNS, *columns_of_score(opened, options))
        rows, self._sidecar = map_source(shards, cache_dir), map_parquet(opened, columns, cache_dir)
        source, sidecar = rows.data.table, self._sidecar.data.table
        ok, stored = is_ok(sidecar), key_array(sidecar.column("sample_key"))
        match = match_keys(key_array(source.column("sample_key")), stored, ok)
        by_path = named_by_path(source)
        if by_path.any():
            _log.info("%d of %d source rows are joined by the paths of their images, not by what these show: an image "
                      "that was replaced under its name is not noticed", by_path.sum(), len(by_path))  # fmt: skip
        validate_one_measurement(opened, sidecar, stored, ok, match[by_path])
        self.num_missing = int((match == ABSENT).sum())
        if self.num_missing and on_missing == "error":
            first = source.column("sample_id")[int((match == ABSENT).argmax())].as_py()
            raise MissingDeltaError(
                f"{named(path)} has no row for {self.num_missing} of the {len(match)} rows of "
                f"{', '.join(source_paths)}; the first is {first}. Measure them with cal-precompute, or train them "
                "with weight alpha: "
                "--on_missing uniform"
            )
        if self.num_missing:
            _log.warning("%s has no row for %d of %d source rows: they train without deltas", named(path),
                         self.num_missing, len(match))  # fmt: skip
        readable = np.asarray(pc.is_valid(source.column("messages")))
        usable = np.where(match == ABSENT, readable, ok[match])
        self.skipped = _skipped(sidecar, match[~usable])
        self._match = match[usable]
        folders, sources = folders_of(shards), sources_of_shards(shards)
        self._hold(rows, np.flatnonzero(usable), *folders, sources, join=self._measured)
        report_skipped(named(path), len(self._usable), self.skipped)

    def num_unmeasured(self, leave_out: Collection[str] = ()) -> int:
        """Rows in use that train with undefined deltas, but for those of the sources of these names."""
        wanted = np.array([name not in leave_out for name in self.source_names])
        return int(wanted[self.source_of[self._match == ABSENT]].sum())

    def lengths(self) -> np.ndarray:
        """[len] int64: encoded length with the reference's processor; where unknown, the median of the known, or 0."""
        known = num_tokens(self._sidecar.data.table)[self._match]
        present = self._match != ABSENT
        return np.where(present, known, int(np.median(known[present])) if present.any() else 0)

    def _measured(self, index: int) -> dict[str, Any]:
        match = int(self._match[index])
        return {} if match == ABSENT else self._sidecar[match].to_pylist()[0]


def _skipped(sidecar: pa.Table, rows: np.ndarray) -> Counter[str]:
    """Statuses of the sidecar's rows that are skipped; one it lacks was not readable either."""
    statuses = sidecar.column("status").take(pa.array(rows[rows != ABSENT])).to_pylist()
    counts = Counter(statuses)
    if absent := int((rows == ABSENT).sum()):
        counts["encode_error"] += absent
    assert STATUS_OK not in counts
    return counts
