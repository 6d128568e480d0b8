"""Compares an output with a plan: what is done, and whether to the same data with the same measurement.

Of a finished shard a redo takes over the rows that it does not measure again.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from cal_pipeline.output.store import Store
from cal_pipeline.sources.shard import Shard
from cal_schemas.annotated import AnnotatedRow, rows_from_batch
from cal_schemas.errors import ConfigError
from cal_schemas.features import comparable, differing_columns
from cal_schemas.metadata import (
    ShardMetadata,
    read_annotated_footer,
    read_annotated_footers,
    read_shard_metadata,
    status_of_rows,
)
from cal_schemas.spec import MeasurementSpec
from cal_schemas.storage.locations import Location
from cal_schemas.whole import open_shard

_SAME_SOURCE = ("num_rows", "size", "mtime_ns", "etag", "revision", "row_start", "row_stop")
_REDO_BATCH_ROWS = 64
_ANOTHER = "choose another --output_dir, or remove the old shards"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Shards of the plan, split by whether their final file is there."""

    done: tuple[Shard, ...]
    pending: tuple[Shard, ...]
    statuses: Mapping[str, Counter[str]] = field(default_factory=dict, compare=False)
    """Name of each done shard -> its rows by status."""

    def done_with(self, wanted: frozenset[str]) -> tuple[Shard, ...]:
        """Finished shards that hold at least one row of a wanted status."""
        return tuple(shard for shard in self.done if self.statuses[shard.name].keys() & wanted)


def compare_with_output(
    shards: Sequence[Shard], *, spec: MeasurementSpec, schema: pa.Schema, carry: str, store: Store
) -> Progress:
    """Splits the plan into done and pending.

    Raises ConfigError, naming the file, what differs and both values, when a finished shard belongs to another
    measurement, another source (edited or split otherwise), another plan, or has other columns, or when something that
    is no file has the name of a pending one.
    """
    planned = {store.path(shard.name): shard for shard in shards}
    done: dict[str, Counter[str]] = {}
    finished = store.finished()
    for path, footer in zip(finished, read_annotated_footers(finished), strict=True):
        _check(path, footer, planned.get(path), spec, schema, carry)
        done[planned[path].name] = _statuses(path, footer)
    pending = tuple(shard for shard in shards if shard.name not in done)
    for shard in pending:
        store.check_name(shard.name)
    return Progress(done=tuple(shard for shard in shards if shard.name in done), pending=pending, statuses=done)


def check_published(shard: Shard, *, spec: MeasurementSpec, schema: pa.Schema, carry: str, store: Store) -> None:
    """The same for the file of one shard, which another driver may have published since planning.

    Raises ConfigError as `compare_with_output` does, FormatError when the file is no annotated shard.
    """
    store.check_name(shard.name)
    path = store.path(shard.name)
    _check(path, read_annotated_footer(path), shard, spec, schema, carry)


def kept_rows(path: Location, redo: frozenset[str]) -> Iterator[AnnotatedRow | None]:
    """All rows of an annotated shard in their order, with all that the file holds; None for a status in `redo`."""
    with open_shard(path) as file:
        for group in range(file.num_row_groups):
            for batch in file.read_row_group(group).to_batches(max_chunksize=_REDO_BATCH_ROWS):
                yield from (None if row.status in redo else row for row in rows_from_batch(batch))


def compare_with_plan(shards: Sequence[Shard], store: Store) -> tuple[set[str], list[Location]]:
    """At a run's end: names of the plan whose files are there, and final shards of its sources that it does not have.

    The latter are of a driver that split them otherwise. Shards of other sources belong to a driver that found more
    data: they fit beside these.
    """
    planned = {store.path(shard.name): shard.name for shard in shards}
    uris = {shard.source.uri for shard in shards}
    finished = store.finished(planned.values())
    others = [path for path in finished if path not in planned]
    footers = zip(others, read_annotated_footers(others), strict=True)
    theirs = [path for path, footer in footers if read_shard_metadata(path, footer).source.uri in uris]
    return {planned[path] for path in finished if path in planned}, theirs


def _statuses(path: Location, footer: pq.FileMetaData) -> Counter[str]:
    """Rows of one annotated shard by status; the file is opened only where its footer does not say it."""
    counts: Counter[str] = Counter()
    for group in map(footer.row_group, range(footer.num_row_groups)):
        if (status := status_of_rows(group)) is None:
            with open_shard(path) as file:
                return Counter(file.read(columns=["status"])["status"].to_pylist())
        counts[status] += group.num_rows
    return counts


def _check(
    path: Location, footer: pq.FileMetaData, shard: Shard | None, spec: MeasurementSpec, schema: pa.Schema, carry: str
) -> None:
    metadata = read_shard_metadata(path, footer)
    if differing := metadata.spec.differences(spec):
        listed = "; ".join(f"{name}: {old!r} there, {new!r} now" for name, old, new in differing)
        raise ConfigError(f"{path} holds another measurement ({listed}); {_ANOTHER}")
    if metadata.filters:
        raise ConfigError(
            f"{path} holds a part of its shard's rows (cal-inspect filter: {'; '.join(metadata.filters)}): "
            "measuring would take them for all; choose another --output_dir"
        )
    if shard is None:
        raise ConfigError(
            f"{path} is not part of this run's plan (rows {metadata.source.row_start}-{metadata.source.row_stop} of "
            f"{metadata.source.uri}): was the source renamed, or split by another --rows_per_shard or --limit? "
            f"Otherwise {_ANOTHER}"
        )
    _check_source(path, metadata, shard)
    if footer.num_rows != shard.num_rows:
        raise ConfigError(
            f"{path} has {footer.num_rows} rows, and its source gives {shard.num_rows}: rows were taken out, or put "
            "in, by something that does not say so. Remove it to measure it again, or choose another --output_dir"
        )
    _check_columns(path, footer, metadata, schema, carry)


def _check_source(path: Location, metadata: ShardMetadata, shard: Shard) -> None:
    drawn = [(source.sample_fraction, source.sample_seed) for source in (metadata.source, shard.source)]
    if drawn[0] != drawn[1]:
        raise ConfigError(
            f"{path.name} holds a share of {drawn[0][0]:g} of its rows (seed {drawn[0][1]}), this run would measure "
            f"{drawn[1][0]:g} (seed {drawn[1][1]}): a subset (--sample) needs an --output_dir of its own"
        )
    was, now = metadata.source, shard.source
    changed = [field for field in _SAME_SOURCE if getattr(was, field) != getattr(now, field)]
    if changed:
        listed = "; ".join(f"{field} was {getattr(was, field)}, is {getattr(now, field)}" for field in changed)
        ways_out = "remove that shard to measure it again, or choose another --output_dir"
        if changed == ["mtime_ns"]:
            seconds, part = divmod(was.mtime_ns, 10**9)
            ways_out += (
                ". A mere copy (made without cp -p or rsync -t) wants its time back: "
                f"touch -d @{seconds}.{part:09d} {shlex.quote(now.uri)}"
            )
        if was.revision != now.revision and was.revision:
            ways_out += f", or go on with the commit that it was measured at: @{was.revision} after the data set's name"
        raise ConfigError(f"{now.uri} has changed since the shard {path} was measured from it ({listed}): {ways_out}")


def _check_columns(
    path: Location, footer: pq.FileMetaData, metadata: ShardMetadata, schema: pa.Schema, carry: str
) -> None:
    if metadata.carry != carry:
        raise ConfigError(
            f"{path} was written with --carry {metadata.carry}, this run has {carry}; give --carry {metadata.carry}, "
            f"{_ANOTHER}"
        )
    columns = footer.schema.to_arrow_schema()
    if not comparable(columns).equals(comparable(schema)):
        raise ConfigError(
            f"{path} has other columns than this run would write: "
            f"{differing_columns(columns, schema, '{name} ({a} there, {b} now)')}; look at --extra_columns and the "
            f"columns of all sources in --data_path; {_ANOTHER}"
        )
