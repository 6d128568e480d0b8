"""Measures how cost grows with the work: rows of a shard, image tokens, vocabulary.

Fits an exponent to each; 1 is linear.

    python benchmarks/scale.py

Rows go through `annotate_shard` with a tiny model, so that what this project adds to the passes is what grows. Tokens
and vocabulary grow at the shape asked for, for our two passes and for those of the released code.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from baselines import released_passes
from cal_pipeline.annotate import annotate_shard
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.measuring.contrast import contrast_logits
from cal_pipeline.models.loading import load_reference
from cal_pipeline.output.store import LocalStore
from cal_pipeline.sources.planning import plan_shards
from measuring import fitted_exponent, interleave, peak_memory
from reporting import add_device_flags, begin, dtype_of, make_parser, print_table, suffix_of, write_report
from shapes import SHAPES, Shape, build_batch, build_model
from workload import annotate_options, measurement, write_checkpoint, write_source

WAYS = {"drop": contrast_logits, "released": released_passes}


def measure_rows(sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    """CPU and wall seconds of a shard with so many rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder = Encoder(write_checkpoint(folder / "model", SHAPES["tiny"]))
        model = load_reference(folder / "model", dtype="float32", device="cpu")
        runs = {}
        for size in sizes:
            write_source(folder / f"rows{size}", [size], SHAPES["tiny"].text_tokens)
            (shard,) = plan_shards([str(folder / f"rows{size}")])
            store = LocalStore(output_dir=folder / f"out{size}")
            store.prepare()
            runs[str(size)] = partial(
                annotate_shard, shard, encoder=encoder, model=model, spec=measurement(encoder), store=store,
                options=annotate_options(16384),
            )  # fmt: skip
        times = interleave(runs, repeats)
    return [{"size": size, "way": "shard", **times[str(size)].row()} for size in sizes]


def measure_shapes(shapes: dict[int, Shape], flags: Namespace) -> list[dict[str, Any]]:
    """Seconds and peak memory of the passes, by size; one model at a time."""
    dtype = dtype_of(flags)
    results = []
    for size, shape in shapes.items():
        model = build_model(shape, device=flags.device, dtype=dtype)
        batch = build_batch(shape, device=flags.device, dtype=dtype)
        runs = {name: partial(way, model, batch.inputs, batch.labels, batch.image_mask) for name, way in WAYS.items()}
        times = interleave(runs, flags.repeats, flags.device)
        for name, run in runs.items():
            memory = peak_memory(run, flags.device) / 2**20
            results.append({"size": size, "way": name, "peak_memory_mb": memory, **times[name].row()})
    return results


def exponents(results: list[dict[str, Any]], key: str) -> dict[str, float]:
    """By way; of the CPU seconds on CPU, which others on the machine disturb least."""
    ways = dict.fromkeys(row["way"] for row in results)
    return {
        way: fitted_exponent(
            [row["size"] for row in results if row["way"] == way], [row[key] for row in results if row["way"] == way]
        )
        for way in ways
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="cpu")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 80, 800])
    parser.add_argument("--image_tokens", type=int, nargs="+", default=[64, 256, 576, 1024, 2880])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32_000, 128_000, 256_000])
    add_device_flags(parser, repeats=3)
    flags = begin(parser)
    shape = SHAPES[flags.shape]
    results = {
        "rows": measure_rows(flags.rows, flags.repeats),
        "image_tokens": measure_shapes({size: shape.with_image_tokens(size) for size in flags.image_tokens}, flags),
        "vocabulary": measure_shapes({size: replace(shape, vocabulary=size) for size in flags.vocabulary}, flags),
    }
    seconds = "median_cpu_s" if flags.device == "cpu" else "median_s"
    table = []
    ratios = {}
    for axis, rows in results.items():
        table += [[axis, row["size"], row["way"], 1e3 * row["median_s"], 1e3 * row["median_cpu_s"],
                   row.get("peak_memory_mb", "")] for row in rows]  # fmt: skip
        ratios |= {f"{way}_log_seconds/log_{axis}": value for way, value in exponents(rows, seconds).items()}
        if axis != "rows":
            memory = exponents(rows, "peak_memory_mb")
            ratios |= {f"{way}_log_memory/log_{axis}": value for way, value in memory.items()}
    print_table(["axis", "size", "way", "median ms", "CPU ms", "peak MB"], table)
    print("Exponents, of seconds and of memory:\n")
    write_report(f"scale-{flags.shape}{suffix_of(flags)}", flags, settings={}, results=results, ratios=ratios)


if __name__ == "__main__":
    main()
