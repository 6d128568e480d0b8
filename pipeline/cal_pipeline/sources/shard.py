"""Defines `Shard`, what one task reads and one output file holds, reads its samples, and cuts plans to a subset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cal_pipeline.sources.formats import RowRange, format_of
from cal_pipeline.sources.reading import reading
from cal_schemas.errors import ShardError
from cal_schemas.metadata import ShardSource, drawn_rows
from cal_schemas.sample import Sample
from cal_schemas.storage.locations import Location, location
from cal_schemas.storage.object_path import ObjectPath
from cal_schemas.storage.protocol import ObjectInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """Rows of one source file, read by one task and written to one output file."""

    name: str
    """Output path without `.parquet`, relative to the output directory; stable from run to run."""
    source: ShardSource
    byte_start: int = 0
    byte_stop: int = 0
    """Range in the decompressed file, of formats that are read by bytes."""
    embedded_bytes: int = 0
    """Of the images that the source holds itself."""
    problem: str | None = None
    """Why the source cannot be read, learnt at planning: the shard has failed before it is tried."""

    @property
    def num_rows(self) -> int:
        """Rows that will come out, one for each that goes in."""
        return int(drawn_rows(self.source).sum())


def state_of(file: Location) -> dict[str, Any]:
    """Returns what is kept of a source in its shards to notice that it has changed, by field of ShardSource."""
    stat = file.stat()
    if isinstance(stat, ObjectInfo):
        commit = file.commit if isinstance(file, ObjectPath) else None
        return {"size": stat.st_size, "mtime_ns": 0, "etag": stat.etag, "revision": commit}
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "etag": None, "revision": None}


def changes(source: ShardSource) -> str:
    """Says in what a source is no longer the file that planning saw; empty where it still is."""
    now = state_of(location(source.uri))
    return ", ".join(f"{name} was {was}, is {now[name]}" for name in now if (was := getattr(source, name)) != now[name])


def read_samples(shard: Shard) -> Iterator[Sample]:
    """The shard's samples in row order; exactly `shard.num_rows` of them.

    Raises ShardError when the source is corrupt, gone, or no longer what planning saw.
    """
    if shard.problem is not None:
        raise ShardError(shard.problem)
    source = shard.source
    path = location(source.uri)
    _check_unchanged(source)
    rows = RowRange(
        row_start=source.row_start, row_stop=source.row_stop, byte_start=shard.byte_start, byte_stop=shard.byte_stop
    )
    samples = format_of(path, source.data_format).read(path, rows, shard.name)
    count = 0
    for sample, drawn in zip(samples, drawn_rows(source), strict=False):
        count += 1
        if drawn:
            yield sample
    if count != source.num_rows:
        raise ShardError(f"{path}: {count} rows in the range, {source.num_rows} planned")
    _check_unchanged(source)


def _check_unchanged(source: ShardSource) -> None:
    """Before the first row and after the last: what is written over meanwhile would be read as a mix of two files."""
    path = location(source.uri)
    with reading(path, ""):
        if changed := changes(source):
            raise ShardError(f"{path}: changed since planning; start cal-precompute again ({changed})")


def limit_rows(shards: Sequence[Shard], limit: int) -> list[Shard]:
    """The first `limit` rows of the plan; the last shard is cut and its name says so."""
    kept: list[Shard] = []
    for shard in shards:
        if limit == 0:
            break
        take = min(limit, shard.source.num_rows)
        limit -= take
        if take < shard.source.num_rows:
            start = shard.source.row_start
            source = replace(shard.source, num_rows=take, row_stop=start + take)
            shard = replace(shard, name=f"{shard.name}-first{take}", source=source)
        kept.append(shard)
    return kept


def sample_rows(shards: Sequence[Shard], fraction: float, seed: int) -> list[Shard]:
    """Every shard with a seeded random `fraction` of its rows; shards of which nothing is drawn are left out."""
    drawn = [
        replace(shard, source=replace(shard.source, sample_fraction=fraction, sample_seed=seed)) for shard in shards
    ]
    return [shard for shard in drawn if shard.num_rows or shard.problem]
