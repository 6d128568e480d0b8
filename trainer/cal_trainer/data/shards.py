"""Lists the shards behind a data set, by name and size, which tell that a resumed run reads the same."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cal_pipeline.sources.shard import Shard
from cal_schemas.opened import AnnotatedDataset

Shards = Mapping[str, Sequence[Any]]
"""By name: number of rows, then what else tells whether the file is still the same."""


def annotated_shards(opened: AnnotatedDataset) -> dict[str, list[int]]:
    """Rows and bytes of each file, named below the directory that holds them all, which may be moved."""
    # Posix rules do for URLs too: only what differs below the common part is kept.
    top = os.path.commonpath([str(file.parent) for file in opened.files])
    return {
        Path(os.path.relpath(str(file), top)).as_posix(): [
            item.source.row_stop - item.source.row_start,
            file.stat().st_size,
        ]
        for file, item in zip(opened.files, opened.metadata, strict=True)
    }


def source_shards(shards: Sequence[Shard]) -> dict[str, list[int]]:
    """Rows and bytes of each planned shard of a source."""
    return {shard.name: [shard.num_rows, shard.source.size] for shard in shards}
