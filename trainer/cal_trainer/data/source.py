"""Memory-maps a source in any input format: to train it without a measurement, and to join one to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.sources.first_images import look_at_images
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import Shard
from cal_schemas.errors import ConfigError
from cal_schemas.storage.locations import Location, location
from cal_trainer.data.alignment import RowEncoder, RowOptions
from cal_trainer.data.arrow_copy import map_source
from cal_trainer.data.dataset import MappedExamples, report_skipped
from cal_trainer.data.shards import source_shards
from cal_trainer.data.sources import sources_of_shards


class SourceExamples(MappedExamples):
    """Rows of a source that nobody measured, for weights that need no cache; index DUMMY is the dummy example.

    Arguments as in SidecarExamples. A row that cannot be encoded trains nothing, with a warning when it is read.
    """

    def __init__(
        self,
        source_paths: Sequence[str],
        encoder: Encoder,
        *,
        image_folders: Sequence[str] = (),
        cache_dir: Path | None = None,
        **options: Unpack[RowOptions],
    ) -> None:
        self._encode = RowEncoder(encoder, None, **options)
        shards = plan_source(source_paths, image_folders)
        self.shards = {"source_path": source_shards(shards)}
        rows = map_source(shards, cache_dir)
        readable = np.asarray(pc.is_valid(rows.data.table.column("messages")))
        self._hold(rows, np.flatnonzero(readable), *folders_of(shards), sources_of_shards(shards))
        self.skipped = Counter({"encode_error": int((~readable).sum())}) if not readable.all() else Counter()
        report_skipped(", ".join(source_paths), len(self._usable), self.skipped)

    def lengths(self) -> np.ndarray:
        """[len] int64: bytes of the conversation, which order rows of one modality about as tokens would."""
        return text_bytes(self._rows.data.table)[self._usable]


def plan_source(source_paths: Sequence[str], image_folders: Sequence[str]) -> list[Shard]:
    """`plan_shards`, and a look at a few images: their messages name the flag of cal-precompute, here cal-train's."""
    try:
        shards = plan_shards(source_paths, image_folders)
        look_at_images(shards)
        return shards
    except ConfigError as error:
        raise ConfigError(str(error).replace("--data_path", "--source_path")) from error


def folders_of(shards: Sequence[Shard]) -> tuple[list[int], list[Location | None]]:
    """Rows and image folder of every planned shard."""
    folders = [shard.source.image_folder for shard in shards]
    return [shard.num_rows for shard in shards], [None if folder is None else location(folder) for folder in folders]


def text_bytes(table: pa.Table) -> np.ndarray:
    """[rows] int64: bytes of all turns of a conversation."""
    sizes_of_rows = [np.empty(0, np.int64)]
    for chunk in table.column("messages").chunks:
        sizes = pc.fill_null(pc.binary_length(chunk.flatten().field("content")), 0)
        sizes_of_rows.append(np.bincount(pc.list_parent_indices(chunk), weights=sizes, minlength=len(chunk)))
    return np.concatenate(sizes_of_rows).astype(np.int64)
