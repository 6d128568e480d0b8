"""Writes annotated shards, in the encodings of the format and in row groups of bounded size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cal_schemas.annotated import AnnotatedRow, rows_to_table
from cal_schemas.metadata import ShardMetadata
from cal_schemas.token_columns import TOKEN_COLUMNS

MAX_ROW_GROUP_IMAGE_BYTES = 64 * 2**20
MAX_ROW_GROUP_ROWS = 8192


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Writes tables of `schema` in the encodings of the format; row groups are the caller's business."""
    encodings = {np.int32: "DELTA_BINARY_PACKED", np.float32: "BYTE_STREAM_SPLIT"}
    return pq.ParquetWriter(
        path.absolute(),  # As in locations.open_parquet.
        schema,
        compression="zstd",
        # True (all columns) clashes with the column encodings.
        use_dictionary=[name for name in ("status", "source") if name in schema.names],
        column_encoding={
            f"{name}.list.element": encodings[kind] for name, kind in TOKEN_COLUMNS.items() if name in schema.names
        },
        write_page_checksum=True,
    )


class ShardWriter:
    """Writes one annotated shard in row groups of bounded image bytes; a context manager.

    What it writes to is a staging file: publishing is the store's business.
    """

    def __init__(self, path: Path, schema: pa.Schema, metadata: ShardMetadata) -> None:
        self.num_rows = 0
        self._schema = schema.with_metadata({**(schema.metadata or {}), **metadata.to_parquet()})
        self._carry = metadata.carry
        self._pending: list[AnnotatedRow] = []
        self._pending_bytes = 0
        self._writer = parquet_writer(path, self._schema)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def write(self, row: AnnotatedRow) -> None:
        """Appends one row; a row group is written whenever enough has gathered."""
        size = row.sample.num_bytes
        if self._pending and (
            self._pending_bytes + size > MAX_ROW_GROUP_IMAGE_BYTES or len(self._pending) >= MAX_ROW_GROUP_ROWS
        ):
            self._flush()
        self._pending.append(row)
        self._pending_bytes += size

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(
                rows_to_table(self._pending, self._schema, self._carry), row_group_size=len(self._pending)
            )
        self.num_rows += len(self._pending)
        self._pending, self._pending_bytes = [], 0
