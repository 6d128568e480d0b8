"""Measures bytes of the annotation per supervised token, of deltas from a trained reference in the demo's world.

    python benchmarks/storage.py                                 # trains a small reference first, about two minutes
    python benchmarks/storage.py --annotated demo/annotated      # what `make demo` left behind

Compared: JSON lines, plain and zstd; Parquet with the writer's defaults and with the defaults and zstd; the format of
annotated shards, and the same with float16 deltas, which the format does not have. Only label_ids, label_positions and
delta_logits are counted: images and words are the source's. Every way writes and reads the same rows; random access
is the mean of reading single rows, as a map-style dataset does without a copy.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.models.loading import load_processor
from cal_schemas.opened import open_annotated
from cal_schemas.writer import parquet_writer
from measuring import interleave
from reporting import add_timing_flags, begin, make_parser, print_table, write_report
from workload import annotate

sys.path.append(str(Path(__file__).parent.parent / "examples" / "shapes"))

import reference
import world

COLUMNS = ("label_ids", "label_positions", "delta_logits")
ROW_GROUP_ROWS = 8192
NUM_LOOKUPS = 50


def annotate_world(folder: Path, num_samples: int, num_steps: int) -> Path:
    """The demo's world, its reference trained for so many steps, and what that measures."""
    clean = world.generate(4 * num_samples // 3, seed=1000, wrong_share=0.0, prefix="train")
    world.write_parquet_shards(world.generate(num_samples, seed=0), folder / "shards", num_shards=1)
    texts = [turn["content"] for sample in clean for turn in sample.messages]
    reference.build_reference(folder / "start", [*texts, *world.QUESTIONS], 0)
    reference.train_reference(folder / "start", folder / "reference", clean, seed=0, num_steps=num_steps)
    encoder = Encoder(load_processor(folder / "reference"))
    annotate(
        folder / "shards", folder / "annotated", folder / "reference", encoder, tokens_per_batch=4096, carry="none"
    )
    return folder / "annotated"


def read_rows(annotated: Path) -> pa.Table:
    """The three columns, as one table."""
    opened = open_annotated(annotated)
    return pa.Table.from_batches(opened.batches(COLUMNS)).combine_chunks()


def halved(table: pa.Table) -> pa.Table:
    """The same with float16 deltas."""
    lists = table.column("delta_logits").combine_chunks()
    values = pa.array(
        np.asarray(lists.values).astype(np.float16), type=pa.float16(), mask=np.asarray(lists.values.is_null())
    )
    column = pa.ListArray.from_arrays(lists.offsets, values)
    return table.set_column(table.schema.get_field_index("delta_logits"), "delta_logits", column)


def write_json(table: pa.Table, path: Path, *, compress: bool) -> None:
    lines = io.BytesIO()
    for row in table.to_pylist():
        lines.write(json.dumps(row).encode() + b"\n")
    data = lines.getvalue()
    path.write_bytes(zstandard.compress(data, 3) if compress else data)


def read_json(path: Path, *, compressed: bool) -> int:
    data = path.read_bytes()
    data = zstandard.decompress(data, max_output_size=2**31) if compressed else data
    return len([json.loads(line) for line in data.splitlines()])


def write_ours(table: pa.Table, path: Path) -> None:
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)


def random_rows(path: Path, num_rows: int) -> None:
    """Rows one by one, each through the row group that holds it."""
    with pq.ParquetFile(path) as file:
        starts = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))])
        for row in np.random.default_rng(0).integers(0, num_rows, NUM_LOOKUPS):
            group = int(np.searchsorted(starts, row, side="right")) - 1
            file.read_row_group(group, columns=list(COLUMNS)).slice(int(row - starts[group]), 1).to_pylist()


def random_lines(path: Path, num_rows: int, *, compressed: bool) -> None:
    """A row of JSON lines without an index: as many lines are passed over as stand before it."""
    data = path.read_bytes()
    data = zstandard.decompress(data, max_output_size=2**31) if compressed else data
    for row in np.random.default_rng(0).integers(0, num_rows, NUM_LOOKUPS):
        at = -1
        for _ in range(row):
            at = data.index(b"\n", at + 1)
        json.loads(data[at + 1 : data.index(b"\n", at + 1)])


def column_bytes(path: Path) -> dict[str, int]:
    """Compressed bytes of each column, pages' headers included."""
    metadata, sizes = pq.read_metadata(path), dict.fromkeys(COLUMNS, 0)
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            sizes[column.path_in_schema.split(".")[0]] += column.total_compressed_size
    return sizes


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--annotated", type=Path, help="directory of annotated shards instead of a fresh one")
    parser.add_argument("--samples", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=400, help="of training the reference")
    add_timing_flags(parser, threads=2)
    flags = begin(parser)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = read_rows(flags.annotated or annotate_world(folder, flags.samples, flags.steps))
        tokens = len(table.column("label_ids").combine_chunks().values)
        half = halved(table)
        writers: dict[str, Callable[[Path], None]] = {
            "jsonl": partial(write_json, table, compress=False),
            "jsonl_zstd": partial(write_json, table, compress=True),
            "parquet_defaults": partial(pq.write_table, table),
            "parquet_zstd": partial(pq.write_table, table, compression="zstd"),
            "float32": partial(write_ours, table),
            "float16": partial(write_ours, half),
        }
        paths = {key: folder / f"{key}.file" for key in writers}
        readers: dict[str, Callable[[], object]] = {
            key: partial(pq.read_table, paths[key], partitioning=None) for key in writers if "jsonl" not in key
        }
        lookups: dict[str, Callable[[], object]] = {
            key: partial(random_rows, paths[key], len(table)) for key in readers
        }
        for key, compressed in (("jsonl", False), ("jsonl_zstd", True)):
            readers[key] = partial(read_json, paths[key], compressed=compressed)
            lookups[key] = partial(random_lines, paths[key], len(table), compressed=compressed)
        writing = interleave({key: partial(write, paths[key]) for key, write in writers.items()}, flags.repeats)
        reading = interleave(readers, flags.repeats)
        looking = interleave(lookups, flags.repeats)
        results: dict[str, Any] = {}
        for key, path in paths.items():
            columns = {} if "jsonl" in key else column_bytes(path)
            results[key] = {
                "bytes_per_token": path.stat().st_size / tokens,
                "column_bytes_per_token": {column: size / tokens for column, size in columns.items()},
                "write_tokens_per_s": tokens / writing[key].median,
                "read_tokens_per_s": tokens / reading[key].median,
                "random_row_ms": 1e3 * looking[key].median / NUM_LOOKUPS,
            }
    print(f"{len(table)} rows, {tokens} supervised tokens\n")
    print_table(
        ["format", "bytes/token", "ids", "positions", "deltas", "M tokens/s written", "read", "random row, ms"],
        [[key, f"{row['bytes_per_token']:.2f}",
          *(f"{row['column_bytes_per_token'][c]:.2f}" if row["column_bytes_per_token"] else "" for c in COLUMNS),
          f"{row['write_tokens_per_s'] / 1e6:.1f}", f"{row['read_tokens_per_s'] / 1e6:.1f}", row["random_row_ms"]]
         for key, row in results.items()],
    )  # fmt: skip
    ratios = {
        f"{key}_bytes/token": results[key]["column_bytes_per_token"]["delta_logits"]
        for key in results
        if results[key]["column_bytes_per_token"]
    }
    ratios |= {f"{key}/jsonl": row["bytes_per_token"] / results["jsonl"]["bytes_per_token"]
               for key, row in results.items() if key != "jsonl"}  # fmt: skip
    settings = {"rows": len(table), "supervised_tokens": tokens}
    write_report("storage", flags, settings=settings, results=results, ratios=ratios)


if __name__ == "__main__":
    main()
