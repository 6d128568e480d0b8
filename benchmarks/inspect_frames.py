"""Measures time and peak memory of looking at annotated shards: pandas frames and `cal-inspect summary`.

    python benchmarks/inspect_frames.py

The summary is of up to a million rows. Each measurement runs in a process of its own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, models

from cal_schemas.annotated import annotated_schema
from cal_schemas.writer import parquet_writer
from measuring import Stopwatch, in_own_process, resident_mb
from reporting import begin, make_parser, print_table, write_report
from workload import synthetic_metadata

ROWS_PER_FILE, TOKENS, VOCABULARY = 4096, 150, 32_000
ANSWER = "The cat sits on a red mat near the window and looks at the bird outside. " * 8


def write_shards(folder: Path, num_rows: int) -> None:
    """Rows of about 150 supervised tokens (50 to 250, in one or two answers), with messages, without images."""
    generator = np.random.default_rng(0)
    schema = annotated_schema(carry="paths")
    for start in range(0, num_rows, ROWS_PER_FILE):
        stop = min(start + ROWS_PER_FILE, num_rows)
        metadata = synthetic_metadata(stop - start)
        table = rows(generator, start, stop, schema)
        with parquet_writer(folder / f"{start:09d}.parquet", schema.with_metadata(metadata.to_parquet())) as writer:
            writer.write_table(table.replace_schema_metadata(metadata.to_parquet()), row_group_size=len(table))


def rows(generator: np.random.Generator, start: int, stop: int, schema: pa.Schema) -> pa.Table:
    count = stop - start
    lengths = generator.integers(TOKENS - 100, TOKENS + 101, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens = int(offsets[-1])
    position = np.arange(tokens, dtype=np.int32) - np.repeat(offsets[:-1], lengths) + 600
    # A second answer, after a question of ten tokens, from the middle of the row on.
    position += 10 * (position - 600 > np.repeat(lengths // 2, lengths)).astype(np.int32)
    deltas = generator.gamma(1.2, 1.3, tokens).astype(np.float32) - np.float32(0.6)
    deltas[generator.random(tokens) < 0.001] = np.nan
    messages = [[{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": f"{row}: {ANSWER}"}]
                for row in range(start, stop)]  # fmt: skip
    ids = generator.integers(0, VOCABULARY, tokens).astype(np.int32)
    columns = {
        "sample_id": pa.array([f"{row:012d}" for row in range(start, stop)]),
        "sample_key": pa.array([f"{row:032x}" for row in range(start, stop)]),
        "images": pa.array([[{"bytes": None, "path": f"{row}.jpg"}] for row in range(start, stop)],
                           schema.field("images").type),
        "messages": pa.array(messages, schema.field("messages").type),
        "template_inputs": pa.nulls(count, pa.string()),
        "status": pa.array(["ok"] * count),
        "error": pa.nulls(count, pa.string()),
        "label_ids": pa.ListArray.from_arrays(offsets, ids),
        "label_positions": pa.ListArray.from_arrays(offsets, position),
        "delta_logits": pa.ListArray.from_arrays(offsets, pa.array(deltas, mask=np.isnan(deltas))),
        "num_tokens": pa.array((lengths + 620).astype(np.int32)),
    }  # fmt: skip
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def measure_frames(folder: Path, tokenizer: Path) -> dict[str, float]:
    from cal_pipeline.inspect import load_annotated, sample_frame, token_frame

    watch = Stopwatch()
    frame = load_annotated(folder)
    seconds = watch.read("load_annotated")
    frame.attrs.clear()  # These rows were made up: no tokenizer's digest is theirs.
    watch = Stopwatch()
    tokens = token_frame(frame, tokenizer)
    seconds |= watch.read("token_frame")
    watch = Stopwatch()
    samples = sample_frame(frame)
    seconds |= watch.read("sample_frame")
    return {**seconds, "rows": len(samples), "tokens": len(tokens), "peak_mb": resident_mb()}


def measure_summary(folder: Path) -> dict[str, float]:
    from cal_pipeline.inspect.tables.reading import open_paths
    from cal_pipeline.inspect.tables.summary import summarise

    before, watch = resident_mb(), Stopwatch()
    summary = summarise(open_paths(folder))
    return {"rows": summary["rows"], "tokens": summary["tokens"], **watch.read("summary"), "before_mb": before,
            "peak_mb": resident_mb(), "file_mb": summary["bytes"]["files"] / 1e6}  # fmt: skip


def _rounded(measured: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in measured.items()}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--frame_rows", type=int, default=100_000)
    parser.add_argument("--summary_rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    flags = begin(parser)
    results: dict[str, Any] = {"summary": []}
    for num_rows in sorted({flags.frame_rows, *flags.summary_rows}):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_shards(folder, num_rows)
            if num_rows in flags.summary_rows:
                results["summary"].append(_rounded(in_own_process(measure_summary, folder)))
            if num_rows == flags.frame_rows:
                tokenizer = folder / "tokenizer.json"
                vocabulary = {f"w{number}": number for number in range(VOCABULARY)}
                Tokenizer(models.WordLevel(vocabulary, unk_token="w0")).save(str(tokenizer))
                results["frames"] = _rounded(in_own_process(measure_frames, folder, tokenizer))
    print_table(
        ["what", "rows", "tokens", "s", "s of CPU", "peak MB"],
        [["summary", row["rows"], row["tokens"], row["summary_s"], row["summary_cpu_s"], row["peak_mb"]]
         for row in results["summary"]]
        + [[step, results["frames"]["rows"], results["frames"]["tokens"], results["frames"][f"{step}_s"],
            results["frames"][f"{step}_cpu_s"], results["frames"]["peak_mb"]]
           for step in ("load_annotated", "token_frame", "sample_frame")],
    )  # fmt: skip
    first, last = results["summary"][0], results["summary"][-1]
    ratios = {f"peak_of_{last['rows']}/peak_of_{first['rows']}": last["peak_mb"] / first["peak_mb"]}
    write_report("inspect_frames", flags, settings={}, results=results, ratios=ratios)


if __name__ == "__main__":
    main()
