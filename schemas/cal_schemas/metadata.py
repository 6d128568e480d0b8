"""Defines what an annotated shard says of itself in its footer: measurement, source, version.

docs/data-format.md is the same contract in prose; the rows are in annotated.py.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cal_schemas.errors import FormatError, StoreError
from cal_schemas.spec import MeasurementSpec
from cal_schemas.storage.locations import Location, read_footer

FORMAT_VERSION = 1
Carry = Literal["images", "embedded", "paths", "none"]
_FOOTER_THREADS = 16
_FOOTERS_AHEAD = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSource:
    """Where a shard's rows came from, and how to notice that the source has changed since."""

    uri: str
    data_path: str
    image_folder: str | None
    num_rows: int
    size: int
    """Bytes of the whole source file."""
    mtime_ns: int
    row_start: int
    row_stop: int
    """Rows [row_start, row_stop) of the source file; all of them unless the shard is a virtual one."""
    sample_fraction: float = 1.0
    """Below 1 in a run of a subset: the share of those rows that was drawn."""
    sample_seed: int = 0
    etag: str | None = None
    """In an object store: changes whenever the object does; mtime_ns is 0 then."""
    revision: str | None = None
    """On the Hub: the commit that was read."""
    data_format: str = "auto"
    """Input format it was read as; `auto` where an older file does not say: the name tells."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Of its fields by name; later versions may say more about a file's source."""
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def drawn_rows(source: ShardSource) -> np.ndarray:
    """[num_rows] bool: which rows of the shard's range are measured."""
    if source.sample_fraction >= 1.0:
        return np.ones(source.num_rows, bool)
    seed = [source.sample_seed, zlib.crc32(Path(source.uri).name.encode()), source.row_start]
    return np.random.default_rng(seed).random(source.num_rows) < source.sample_fraction


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardMetadata:
    """Parquet key-value metadata of one annotated shard."""

    spec: MeasurementSpec
    source: ShardSource
    carry: Carry
    tokens_per_batch: int
    library_versions: Mapping[str, str] = field(default_factory=dict)
    filters: tuple[str, ...] = ()
    """Conditions that chose these rows out of the shard as it was measured; none: it has them all."""
    format_version: int = FORMAT_VERSION

    def to_parquet(self) -> dict[str, str]:
        """Key-value pairs as stored in the footer."""
        shard: dict[str, Any] = {
            "source": asdict(self.source),
            "carry": self.carry,
            "tokens_per_batch": self.tokens_per_batch,
        }
        shard |= {"filters": list(self.filters)} if self.filters else {}
        return {
            "cal.format_version": str(self.format_version),
            "cal.fingerprint": self.spec.fingerprint(),
            "cal.measurement_spec": self.spec.to_json(),
            "cal.shard": json.dumps({**shard, "library_versions": dict(self.library_versions)}),
        }


def with_filter(schema: pa.Schema, condition: str) -> pa.Schema:
    """A shard's own schema and metadata, saying that rows were chosen by one more condition."""
    metadata = dict(schema.metadata)
    shard = json.loads(metadata[b"cal.shard"])
    shard["filters"] = [*shard.get("filters", []), condition]
    return schema.with_metadata({**metadata, b"cal.shard": json.dumps(shard).encode()})


def raise_if_ill(path: Location | str, error: Exception) -> None:
    """StoreError for the system's word about a file (EIO, EMFILE, EACCES, …), which has a number: it is not damaged."""
    if number := getattr(error, "errno", None):
        ill = StoreError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}")
        ill.errno = number
        raise ill from error


def read_annotated_footer(path: Location | str) -> pq.FileMetaData:
    """Footer of a Parquet file; FormatError when it is none, StoreError when its store or disk gives no answer."""
    try:
        footer = read_footer(path)
        footer.schema.to_arrow_schema()  # Raises for types that Arrow does not have.
        return footer
    except (StoreError, MemoryError):
        raise
    except (pa.ArrowException, OSError) as error:
        if not isinstance(error, FileNotFoundError):  # A link to nothing.
            raise_if_ill(path, error)
        if not str(path).endswith(".parquet"):
            raise FormatError(
                f"{path} is no annotated shard, whose name ends in .parquet: cal-precompute writes them"
            ) from error
        raise FormatError(
            f"{path}: not a readable Parquet file: {str(error).rstrip('.')}. If it was a shard, remove it and run the "
            "same cal-precompute command, which measures it again"
        ) from error


def read_annotated_footers(files: Sequence[Location]) -> Iterator[pq.FileMetaData]:
    """Footers of several files, in their order; a few hundred are read ahead.

    Not all at once: a footer takes 30 kB of memory, and a run may have ten thousand.
    """
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        for start in range(0, len(files), _FOOTERS_AHEAD):
            yield from pool.map(read_annotated_footer, files[start : start + _FOOTERS_AHEAD])


def status_of_rows(group: Any) -> str | None:
    """The status that all rows of a row group have, by its statistics; None where they are several, or not told."""
    columns = map(group.column, range(group.num_columns))
    bounds = next(column.statistics for column in columns if column.path_in_schema == "status")
    told = bounds is not None and bounds.has_min_max and bounds.min == bounds.max
    return str(bounds.min) if told else None


def read_shard_metadata(path: Location | str, footer: pq.FileMetaData | None = None) -> ShardMetadata:
    """Metadata of one annotated shard from its footer; FormatError when it is none or has another version."""
    metadata = (footer or read_annotated_footer(path)).metadata or {}
    # What is no text was damaged: the checks below say which part.
    pairs = {
        key.decode(errors="replace"): value.decode(errors="replace")
        for key, value in metadata.items()
        if key.startswith(b"cal.")
    }
    if "cal.format_version" not in pairs:
        raise FormatError(f"{path}: a Parquet file, but not an annotated shard (it has no cal.format_version)")
    if pairs["cal.format_version"] != str(FORMAT_VERSION):
        raise FormatError(
            f"{path}: annotated-shard format {pairs['cal.format_version']}, this version reads {FORMAT_VERSION}. "
            "Run cal-precompute again, or install the version that wrote it."
        )
    try:
        shard = json.loads(pairs["cal.shard"])
        return ShardMetadata(
            spec=MeasurementSpec.from_json(pairs["cal.measurement_spec"]),
            source=ShardSource.from_json(shard["source"]),
            carry=shard["carry"],
            tokens_per_batch=shard["tokens_per_batch"],
            library_versions=shard["library_versions"],
            filters=tuple(shard.get("filters", ())),
        )
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{path}: broken metadata of an annotated shard: {error!r}") from error
