"""Writes one row a sample: its id, source and status, and what the scores of its tokens say together.

    cal-inspect samples annotated/ --output scores.parquet
    cal-inspect samples annotated/ --output scores.csv
    cal-inspect samples annotated/ --output chosen.csv --ids_from ids.txt
    cal-inspect samples annotated/ --output kl.csv --score kl --map top_share=0.4

Columns: the stored ones with one value a row, and those of `sample_frame` (docs/inspecting.md). Memory does not grow
with the rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.tables.answers import ANSWER_COLUMNS
from cal_pipeline.inspect.tables.flat import token_columns
from cal_pipeline.inspect.tables.named_rows import named_rows
from cal_pipeline.inspect.tables.reading import IMAGE_PATHS, open_paths, read_batches
from cal_pipeline.inspect.tables.statistics import computed_columns
from cal_pipeline.inspect.tables.stored_columns import plain, scalar_columns
from cal_pipeline.inspect.tables.weighting import weighting_of
from cal_schemas.counted import counted
from cal_schemas.errors import ConfigError
from cal_schemas.features import HUGGINGFACE, feature_text, features_of
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.scores import Score
from cal_schemas.storage.locations import lies_in


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cal-inspect samples`."""
    flags.add_annotated(parser)
    flags.add_weighting(parser)
    flags.add_ids_from(parser)
    parser.add_argument("--output", type=flags.place, required=True, metavar="FILE", help="a .parquet or a .csv")


def run(arguments: argparse.Namespace) -> int:
    """Writes the table in one step; 0."""
    opened = open_paths(arguments.annotated)
    weighting = weighting_of(arguments, opened)
    for place in arguments.annotated:
        if arguments.output.suffix.lower() == ".parquet" and lies_in(arguments.output.resolve(), place.resolve()):
            raise ConfigError(
                f"--output {arguments.output} lies in {place}, where every reader would take it for a shard: write it "
                "elsewhere, or as .csv"
            )
    path = flags.new_file(arguments.output, ".parquet", ".csv")
    chosen = named_rows(opened, arguments.ids_from)
    tables = sample_tables(opened, chosen, **weighting)
    first = next(tables)
    features, stored = features_of(opened.schema), scalar_columns(opened.schema, weighting["score"])
    kept = {address: features[name] for address, name in stored.items() if name in features}
    schema = first.schema.with_metadata({HUGGINGFACE: feature_text(kept)} if kept else None)
    make = csv.CSVWriter if path.suffix.lower() == ".csv" else pq.ParquetWriter
    with flags.written(path) as local, closing(make(str(local.absolute()), schema)) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
    flags.say(f"{path}: {counted(int(chosen.sum()), 'row')}, {first.num_columns} columns")
    return 0


def sample_tables(
    opened: AnnotatedDataset, chosen: np.ndarray, *, score: Score, **weighting: Any
) -> Iterator[pa.Table]:
    """The chosen [R] of all rows in order, a table for each batch of them, at least one.

    Values that are not defined are null. `source` is the stored one, or else what the row's shard was measured from.
    """
    stored = scalar_columns(opened.schema, score)
    sources = {file: item.source.data_path for file, item in zip(opened.files, opened.metadata, strict=True)}
    stop = 0
    for batch in read_batches(opened, [*stored.values(), IMAGE_PATHS, *ANSWER_COLUMNS, *token_columns(score)]):
        start, stop = stop, stop + batch.data.num_rows
        data = batch.data.filter(pa.array(chosen[start:stop]))
        columns = {address: plain(data.column(name)) for address, name in stored.items()}
        columns.setdefault("source", pa.array([sources[batch.file]] * len(data), pa.string()))
        if "images" in data.schema.names:
            columns["images"] = data.column("images").value_lengths()
        values = computed_columns(data, ("turns",), score=score, **weighting)
        columns |= {name: pa.array(value, from_pandas=True) for name, value in values.items()}
        yield pa.table(columns)
    if not opened.num_rows:
        raise ConfigError(f"{opened.files[0].parent}: no rows")
