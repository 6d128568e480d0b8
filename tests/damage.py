"""Annotated directories that are not what was written any more: a byte flipped, rows taken out, NaN put in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from annotated_data import annotate
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import Shard
from cal_schemas.writer import parquet_writer
from conftest import Family
from tiny_data import write_llava_json


def whole_output(folder: Path, family: Family) -> Path:
    """Three shards of ten rows, with their plan."""
    source, images = write_llava_json(folder / "raw", 30)
    shards = plan_shards([str(source)], [str(images)], rows_per_shard=10)
    return plan(annotate(folder / "out", shards, family.encoder, family.model), shards)


def plan(output: Path, shards: Sequence[Shard]) -> Path:
    """The plan as `cal-precompute` leaves it beside its shards."""
    (output / ".cal").mkdir(exist_ok=True)
    (output / ".cal" / "plan.json").write_text(json.dumps([asdict(shard) for shard in shards], indent=1))
    return output


def deltas_of(file: Path) -> list[list[float | None]]:
    """Of every row, read by a program that verifies nothing."""
    return pq.read_table(file, columns=["delta_logits"])["delta_logits"].to_pylist()  # type: ignore[no-any-return]


def flip_a_byte(file: Path) -> Path:
    """One byte of the deltas, such that who does not verify reads other deltas without a word."""
    whole, before = file.read_bytes(), deltas_of(file)
    group = pq.read_metadata(file).row_group(0)
    column = next(
        item for item in map(group.column, range(group.num_columns)) if item.path_in_schema.startswith("delta_logits")
    )
    for at in range(column.data_page_offset + column.total_compressed_size - 1, column.data_page_offset, -1):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            if deltas_of(file) != before:
                return file
        except (pa.ArrowException, OSError):
            continue
    raise AssertionError(f"no byte of {file} changes a delta in silence")


def flip_a_page_header(file: Path, column: str = "delta_logits") -> Path:
    """One bit of the kind of a page: Arrow knows no such kind and gives fewer rows, without a word.

    No checksum covers it. A header begins with its first field: a 32-bit integer, zig-zag, 0 for a data page.
    """
    content = bytearray(file.read_bytes())
    group = pq.read_metadata(file).row_group(0)
    columns = map(group.column, range(group.num_columns))
    at = next(item.data_page_offset for item in columns if item.path_in_schema.split(".")[0] == column)
    assert content[at : at + 2] == b"\x15\x00"
    content[at + 1] |= 0x10
    file.write_bytes(content)
    assert sum(batch.num_rows for batch in pq.ParquetFile(file).iter_batches()) < pq.read_metadata(file).num_rows
    return file


def rewrite(file: Path, table: pa.Table) -> Path:
    """What a script does that takes the metadata along: fresh checksums, old promises."""
    with parquet_writer(file, table.schema) as writer:
        writer.write_table(table)
    return file


def put_in(file: Path, value: float, row: int = 0) -> Path:
    """NaN or infinity in place of the first delta of a row."""
    table = pq.read_table(file)
    at = table.schema.get_field_index("delta_logits")
    lists = table.column(at).to_pylist()
    assert lists[row]
    lists[row][0] = value
    flat = [delta for deltas in lists for delta in deltas]
    mask = np.array([delta is None for delta in flat])
    values = pa.array(np.array([0.0 if delta is None else delta for delta in flat], np.float32), mask=mask)
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int32)
    return rewrite(file, table.set_column(at, table.schema.field(at), pa.ListArray.from_arrays(offsets, values)))
