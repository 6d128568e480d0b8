"""Two halves of a cross-fit as one measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from cal_schemas.annotated import annotated_files, parquet_writer, read_shard_metadata
from cal_schemas.spec import digest_json


def join_measurements(parts: Sequence[Path], directory: Path) -> None:
    """One measurement of several, row for row: its spec names all their weights.

    `cal-train` refuses to mix references, rightly: here it is what cross-fitting means.
    """
    files = [file for part in parts for file in annotated_files(part)]
    metadata = [read_shard_metadata(file) for file in files]
    spec = replace(
        metadata[0].spec,
        model_id="crossfit of " + " and ".join(sorted({item.spec.model_id for item in metadata})),
        weights_digest=digest_json([item.spec.weights_digest for item in metadata]),
    )
    for file, item in zip(files, metadata, strict=True):
        table = pq.read_table(file)
        stored = replace(item, spec=spec).to_parquet()
        with parquet_writer(directory / file.name, table.schema.with_metadata(stored)) as writer:
            writer.write_table(table.replace_schema_metadata(stored))
