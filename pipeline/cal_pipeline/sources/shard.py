"""`Shard`: what one task reads and what one output file will be called."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cal_schemas.annotated import ShardSource


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """What one task reads and what one output file will be called."""

    name: str
    """Output path without `.parquet`, relative to the output directory; stable from run to run."""
    source: ShardSource
    byte_start: int = 0
    byte_stop: int = 0
    """Range in the decompressed file; not of Parquet."""
    embedded_bytes: int = 0
    """Of the images in an archive's rows, and of `data:` URLs; Parquet footers tell of bytes."""
    problem: str | None = None
    """Why the source cannot be read, found out at planning: the shard has failed before it is tried."""

    @property
    def num_rows(self) -> int:
        """Rows that will come out, one for each that goes in."""
        return int(drawn_rows(self.source).sum())


def drawn_rows(source: ShardSource) -> np.ndarray:
    """[num_rows] bool: which rows of the shard's range are measured."""
    if source.sample_fraction >= 1.0:
        return np.ones(source.num_rows, bool)
    seed = [source.sample_seed, zlib.crc32(Path(source.uri).name.encode()), source.row_start]
    return np.random.default_rng(seed).random(source.num_rows) < source.sample_fraction
