"""Checks what one annotated shard promises by itself, row by row and page by page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cal_pipeline.sources.reading import is_surroundings
from cal_schemas.errors import STATUS_OK, CalError, StoreError
from cal_schemas.features import comparable
from cal_schemas.metadata import ShardMetadata, drawn_rows, read_shard_metadata
from cal_schemas.storage.locations import Location, open_parquet
from cal_schemas.token_columns import REQUIRED_TOKEN_COLUMNS, TOKEN_COLUMNS

_FILLED = ("sample_id", "sample_key", "status")
_KEY = re.compile(r"[0-9a-f]{32}")


@dataclass(kw_only=True, slots=True)
class ShardCheck:
    """What one file turned out to be."""

    name: str
    rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    metadata: ShardMetadata | None = None
    schema: pa.Schema | None = None
    keys: np.ndarray = field(default_factory=lambda: np.empty(0, "S16"))
    """[rows] S16."""


def check_shard(file: Location, name: str) -> ShardCheck:
    """Reads one file to its end. A store that gives no answer is raised: it says nothing about the file."""
    check = ShardCheck(name=name)
    try:
        with open_parquet(file, verify=True) as parquet:
            check.metadata = read_shard_metadata(file, parquet.metadata)
            check.schema = comparable(parquet.schema_arrow)
            check.problems += _metadata_problems(parquet.metadata, check.metadata, name)
            required = (*_FILLED, *REQUIRED_TOKEN_COLUMNS)
            if lacking := [column for column in required if column not in check.schema.names]:
                check.problems.append(f"lacks the columns {', '.join(lacking)}")
                return check
            _check_rows(parquet, check)
        expected = int(drawn_rows(check.metadata.source).sum())
        filtered = bool(check.metadata.filters)
        if check.rows > expected or (check.rows < expected and not filtered):
            check.problems.append(f"{check.rows} rows, but its source gave {expected}")
    except (StoreError, MemoryError):
        raise
    except CalError as error:
        check.problems.append(str(error))
    except (
        pa.ArrowException,
        OSError,
        TypeError,
        ValueError,
    ) as error:  # TypeError: columns that are no text any more.
        what = "cannot be read" if is_surroundings(error) else "broken"
        check.problems.append(f"{what} after row {check.rows}: {' '.join(str(error).split())[:300]}")
    return check


def _metadata_problems(footer: pq.FileMetaData, metadata: ShardMetadata, name: str) -> Iterator[str]:
    pairs = footer.metadata or {}
    if (fingerprint := pairs.get(b"cal.fingerprint", b"").decode()) != metadata.spec.fingerprint():
        yield f"its fingerprint {fingerprint} is not that of its measurement, {metadata.spec.fingerprint()}"
    source = metadata.source
    if source.row_stop - source.row_start != source.num_rows:
        yield f"says rows {source.row_start}-{source.row_stop} of its source and {source.num_rows} rows"
    if (named := re.search(r"-r(\d{9,})-(\d{9,})(?:-first\d+)?\.parquet$", name)) and int(named[1]) != source.row_start:
        yield f"its name says row {int(named[1])}, its metadata {source.row_start}: was it renamed?"


def _check_rows(parquet: pq.ParquetFile, check: ShardCheck) -> None:
    keys: list[np.ndarray] = []
    counts: Counter[str] = Counter()
    for number in range(parquet.num_row_groups):
        # All columns: images too are read, and every page has a checksum.
        for batch in parquet.iter_batches(batch_size=1024, row_groups=[number]):
            batch.validate(full=True)
            counts.update(_batch_problems(batch))
            check.statuses.update(
                {item["values"]: item["counts"] for item in pc.value_counts(batch["status"]).to_pylist()}
            )
            good = [key if key and _KEY.fullmatch(key) else "0" * 32 for key in batch["sample_key"].to_pylist()]
            keys.append(np.frombuffer(bytes.fromhex("".join(good)), "S16"))
            check.rows += batch.num_rows
    check.keys = np.concatenate([check.keys, *keys])
    check.problems += [f"{count} rows {what}" for what, count in counts.items()]


def _batch_problems(batch: pa.RecordBatch) -> dict[str, int]:
    """What is wrong -> in how many rows of the batch."""
    problems: dict[str, int] = {}

    def count(what: str, mask: Any) -> None:
        if number := int(np.asarray(pc.fill_null(mask, True), bool).sum()):
            problems[what] = number

    names = [name for name in TOKEN_COLUMNS if name in batch.schema.names]
    for name in (*_FILLED, *names):
        count(f"have no {name}", pc.is_null(batch[name]))
    lengths = pc.list_value_length(batch["label_ids"])
    for name in names[1:]:
        count(
            f"have lists of different lengths (label_ids, {name})",
            pc.not_equal(pc.list_value_length(batch[name]), lengths),
        )
    for name in names:
        row_of = np.asarray(pc.list_parent_indices(batch[name]))
        values = batch[name].flatten()
        # A null float is an undefined one; a null id is none.
        what, bad = (
            (f"have NaN or infinity in {name}", pc.invert(pc.is_finite(values)))
            if TOKEN_COLUMNS[name] is np.float32
            else (f"have null in {name}", pc.is_null(values))
        )
        rows = np.zeros(batch.num_rows, bool)
        rows[row_of[np.asarray(pc.fill_null(bad, False), bool)]] = True
        count(what, pa.array(rows))
    ok = pc.equal(batch["status"], STATUS_OK)
    count("are ok and have no labels", pc.and_(ok, pc.equal(lengths, 0)))
    count("are not ok and have labels", pc.and_(pc.invert(ok), pc.greater(lengths, 0)))
    if "error" in batch.schema.names:
        count("are not ok and do not say why", pc.and_(pc.invert(ok), pc.is_null(batch["error"])))
    bad_keys = [key is not None and not _KEY.fullmatch(key) for key in batch["sample_key"].to_pylist()]
    count("have a sample_key that is no digest", pa.array(bad_keys, pa.bool_()))
    return problems
