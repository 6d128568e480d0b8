"""Time and peak memory of looking at annotated shards: pandas frames, and `cal-inspect summary` on a million rows.

Each measurement runs in a process of its own: python benchmarks/inspect_frames.py --output benchmarks/results/x.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, models

from cal_schemas.annotated import ShardMetadata, ShardSource, annotated_schema, parquet_writer
from cal_schemas.spec import ContrastSpec, InputSpec, LabelSpec, MeasurementSpec

ROWS_PER_FILE, TOKENS, VOCABULARY = 4096, 150, 32_000
ANSWER = "The cat sits on a red mat near the window and looks at the bird outside. " * 8


def write_shards(folder: Path, num_rows: int) -> None:
    """Rows of about 150 supervised tokens (50 to 250, in one or two answers), with messages, without pictures."""
    generator = np.random.default_rng(0)
    schema = annotated_schema(carry="paths")
    spec = MeasurementSpec(
        label=LabelSpec(tokenizer_digest="t", chat_template_digest="c", template="auto"),
        input=InputSpec(
            image_processor="P",
            image_processor_backend="pil",
            image_processor_digest="i",
            image_aspect_ratio="native",
            max_length=2048,
            truncation="drop",
        ),
        contrast=ContrastSpec(),
        dtype="bfloat16",
        attn_implementation="sdpa",
        model_id="synthetic",
        revision=None,
        weights_digest="w",
        reference_saw_data="no",
    )
    for start in range(0, num_rows, ROWS_PER_FILE):
        stop = min(start + ROWS_PER_FILE, num_rows)
        source = ShardSource(uri="/s", data_path="synthetic", image_folder=None, num_rows=stop - start, size=1,
                             mtime_ns=1, row_start=start, row_stop=stop)  # fmt: skip
        metadata = ShardMetadata(spec=spec, source=source, carry="paths", tokens_per_batch=1)
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
        "status": pa.array(["ok"] * count),
        "error": pa.nulls(count, pa.string()),
        "label_ids": pa.ListArray.from_arrays(offsets, ids),
        "label_positions": pa.ListArray.from_arrays(offsets, position),
        "delta_logits": pa.ListArray.from_arrays(offsets, pa.array(deltas, mask=np.isnan(deltas))),
        "num_tokens": pa.array((lengths + 620).astype(np.int32)),
    }  # fmt: skip
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def measure_frames(folder: Path, tokenizer: Path) -> dict[str, float]:
    from cal_pipeline.inspection import load_annotated, sample_frame, token_frame

    seconds = {}
    began = now()
    frame = load_annotated(folder)
    seconds |= since(began, "load_annotated")
    began = now()
    tokens = token_frame(frame, tokenizer)
    seconds |= since(began, "token_frame")
    began = now()
    samples = sample_frame(frame)
    seconds |= since(began, "sample_frame")
    return {**seconds, "rows": len(samples), "tokens": len(tokens), "peak_mb": peak_mb()}


def measure_summary(folder: Path) -> dict[str, float]:
    from cal_pipeline.inspect.reading import open_paths
    from cal_pipeline.inspect.summary import summarise

    before = peak_mb()
    began = now()
    found = summarise(open_paths(folder))
    return {"rows": found["rows"], "tokens": found["tokens"], **since(began, "summary"), "before_mb": before,
            "peak_mb": peak_mb(), "file_mb": found["bytes"]["files"] / 1e6}  # fmt: skip


def now() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def since(began: tuple[float, float], name: str) -> dict[str, float]:
    """Seconds by the clock, and of all cores: on a busy machine only the latter tell something."""
    return {f"{name}_s": time.monotonic() - began[0], f"{name}_cpu_s": time.process_time() - began[1]}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_process_of_its_own(what: str, *paths: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", what, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frame_rows", type=int, default=100_000)
    parser.add_argument("--summary_rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.measure:
        what, *paths = flags.measure
        print(json.dumps({"frames": measure_frames, "summary": measure_summary}[what](*map(Path, paths))))
        return
    results: dict[str, object] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": os.getloadavg()[0],
        "summary": [],
    }
    summaries: list[dict[str, float]] = []
    for num_rows in sorted({flags.frame_rows, *flags.summary_rows}):
        with tempfile.TemporaryDirectory() as folder:
            write_shards(Path(folder), num_rows)
            if num_rows in flags.summary_rows:
                summaries.append(in_process_of_its_own("summary", Path(folder)))
                print(summaries[-1], flush=True)
            if num_rows == flags.frame_rows:
                tokenizer = Path(folder) / "tokenizer.json"
                vocabulary = {f"w{number}": number for number in range(VOCABULARY)}
                Tokenizer(models.WordLevel(vocabulary, unk_token="w0")).save(str(tokenizer))
                results["frames"] = in_process_of_its_own("frames", Path(folder), tokenizer)
                print(results["frames"], flush=True)
    results["summary"] = summaries
    if flags.output:
        flags.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
