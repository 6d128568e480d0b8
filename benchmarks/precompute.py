"""Measures `cal-precompute` end to end with one and two workers, against a bare loop over encoded batches.

    python benchmarks/precompute.py --shape cpu

The bare loop is the limit: the two passes over the same batches and nothing else, in one process. All compute in as
many torch threads as a worker has CPUs (`--threads`, 1). A rate is the median over shards of rows a second inside a
shard; the two workers' is the sum of theirs. Half of the bare loop runs before the other runs and half after them.
Needs Ray.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cal_pipeline.encoding.collate import Batch, batches_by_tokens, collate
from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.measuring.contrast import contrast_logits
from cal_pipeline.models.loading import load_processor, load_reference
from cal_pipeline.sources.images import decode_images, read_images
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import read_samples
from reporting import add_device_flags, begin, make_parser, print_table, suffix_of, write_report
from shapes import Shape, add_shape_flags, shape_of
from workload import draw_text_tokens, write_checkpoint, write_source

STAGES = ("load", "encode", "forward", "write")
WINDOW_BATCHES, WINDOW_ROWS = 16, 1024
"""Of `cal_pipeline.annotate`."""
DEFAULT_TOKENS_PER_BATCH = 16384


def run_precompute(model: Path, source: Path, output: Path, num_workers: int, flags: Any) -> dict[str, Any]:
    """Runs the console program; its own report."""
    command = [
        str(Path(sys.executable).parent / "cal-precompute"), "--model_name_or_path", str(model),
        "--data_path", str(source), "--output_dir", str(output), "--dtype", flags.dtype,
        "--num_workers", str(num_workers), "--gpus_per_worker", "1" if flags.device == "cuda" else "0",
        "--cpus_per_worker", str(flags.threads), "--tokens_per_batch", str(flags.tokens_per_batch),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": str(flags.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"cal-precompute failed:\n{done.stdout}\n{done.stderr}")
    report = next((output / ".cal" / "reports").glob("run-*.json"))
    return json.loads(report.read_text())  # type: ignore[no-any-return]


def rate(report: dict[str, Any]) -> float:
    """Rows a second of all workers: of each the median over its shards."""
    rates = defaultdict(list)
    for shard in report["shards"]:
        rates[shard["worker"]].append(shard["rows"] / shard["seconds"]["total"])
    return sum(statistics.median(of_shards) for of_shards in rates.values())


def stage_shares(report: dict[str, Any]) -> dict[str, float]:
    """Seconds of each stage over those of the shards; stages overlap, so they add up to more than one."""
    total = sum(shard["seconds"]["total"] for shard in report["shards"])
    return {stage: sum(shard["seconds"][stage] for shard in report["shards"]) / total for stage in STAGES}


def encode_all(model: Path, source: Path) -> tuple[Encoder, list[list[EncodedSample]]]:
    """Every shard's rows, encoded."""
    encoder = Encoder(load_processor(model))
    shards = [
        [encoder(sample, decode_images(read_images(sample.images, None))) for sample in read_samples(shard)]
        for shard in plan_shards([str(source)])
    ]
    return encoder, shards


def collate_windows(encoder: Encoder, samples: Sequence[EncodedSample], tokens_per_batch: int) -> list[Batch]:
    """The batches of one shard, as long as it is a single window."""
    assert sum(sample.num_tokens for sample in samples) <= WINDOW_BATCHES * tokens_per_batch, "more than one window"
    chosen = batches_by_tokens(samples, tokens_per_batch)
    return [collate([samples[index] for index in batch], pad_token_id=encoder.pad_token_id) for batch in chosen]


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Tokens of one sample, and how many of them stand for its image."""

    tokens: int
    image_tokens: int


def padding(samples: Sequence[Lengths], tokens_per_batch: int) -> tuple[float, float]:
    """Share of the padded tokens that are padding, in the pass with the image and in the one without."""
    padded, real = [0, 0], [0, 0]
    for window in windows(samples, WINDOW_BATCHES * tokens_per_batch):
        stand_ins = [
            EncodedSample(sequence_inputs={}, image_inputs={"pixel_values": torch.zeros(1)},
                          labels=torch.zeros(sample.tokens), image_mask=torch.zeros(sample.tokens))
            for sample in window
        ]  # fmt: skip
        for batch in batches_by_tokens(stand_ins, tokens_per_batch):
            whole = [window[index].tokens for index in batch]
            text = [window[index].tokens - window[index].image_tokens for index in batch]
            for which, lengths in enumerate((whole, text)):
                padded[which] += len(lengths) * max(lengths)
                real[which] += sum(lengths)
    return 1 - real[0] / padded[0], 1 - real[1] / padded[1]


def windows(samples: Sequence[Lengths], num_tokens: int) -> list[list[Lengths]]:
    """As `annotate_shard` gathers them: rows in their order until there are so many tokens; the rest is left out."""
    gathered: list[list[Lengths]] = []
    window: list[Lengths] = []
    for sample in samples:
        window.append(sample)
        if sum(item.tokens for item in window) >= num_tokens or len(window) == WINDOW_ROWS:
            gathered.append(window)
            window = []
    return gathered


def drawn_lengths(shape: Shape, count: int, tiles: Sequence[int]) -> list[Lengths]:
    """Text as in the benchmark's source, images of one of so many tiles."""
    rng = np.random.default_rng(2)
    lengths = []
    for _ in range(count):
        image = int(rng.choice(tiles)) * shape.tile_tokens
        text = draw_text_tokens(rng, shape.text_tokens)
        lengths.append(Lengths(tokens=image + text, image_tokens=image))
    return lengths


def bare_loop(model: Any, shards: Sequence[Sequence[Batch]]) -> list[float]:
    """Seconds of each shard."""
    seconds = []
    for batches in shards:
        at = time.perf_counter()
        for batch in batches:
            placed = batch.to(model.device, model.dtype)
            torch.stack(contrast_logits(model, placed.inputs, placed.labels, placed.image_mask)).cpu()
        seconds.append(time.perf_counter() - at)
    return seconds


def main() -> None:
    parser = make_parser(__doc__)
    add_shape_flags(parser)
    add_device_flags(parser)
    parser.set_defaults(threads=1)
    parser.add_argument("--rows", type=int, default=12, help="of a shard; --repeats is the number of shards a worker")
    parser.add_argument("--tokens_per_batch", type=int, default=2048)
    flags = begin(parser)
    name, shape = shape_of(flags)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_checkpoint(root / "model", shape)
        write_source(root / "one", [flags.rows] * flags.repeats, shape.text_tokens)
        write_source(root / "two", [flags.rows] * flags.repeats * 2, shape.text_tokens)
        encoder, encoded = encode_all(root / "model", root / "one")
        batches = [collate_windows(encoder, samples, flags.tokens_per_batch) for samples in encoded]
        model = load_reference(root / "model", dtype=flags.dtype, device=flags.device)
        bare_loop(model, batches[:1])
        half = len(batches) // 2
        seconds = bare_loop(model, batches[:half])
        reports = {
            "one_worker": run_precompute(root / "model", root / "one", root / "out1", 1, flags),
            "two_workers": run_precompute(root / "model", root / "two", root / "out2", 2, flags),
        }
        seconds += bare_loop(model, batches[half:])
    rates = {"bare_loop": statistics.median(flags.rows / value for value in seconds)}
    rates |= {key: rate(report) for key, report in reports.items()}
    shares = {key: stage_shares(report) for key, report in reports.items()}
    wide = {
        f"{kind}_images": padding(drawn_lengths(shape, 4 * WINDOW_ROWS, tiles), DEFAULT_TOKENS_PER_BATCH)
        for kind, tiles in (("equal", (1,)), ("tiled", (3, 4, 5)))
    }
    print_table(
        ["", "rows/s", "start-up s", *STAGES],
        [["bare_loop", rates["bare_loop"], "", "", "", "", ""]]
        + [[key, rates[key], report["seconds_to_first_worker"], *(f"{shares[key][stage]:.1%}" for stage in STAGES)]
           for key, report in reports.items()],
    )  # fmt: skip
    print_table(
        [f"padding at {DEFAULT_TOKENS_PER_BATCH} tokens a batch", "with image", "without"],
        [[key, f"{first:.1%}", f"{second:.1%}"] for key, (first, second) in wide.items()],
    )
    results = {
        "rows_per_s": rates,
        "stage_shares": shares,
        "start_up_s": {key: report["seconds_to_first_worker"] for key, report in reports.items()},
        "end_to_end_s": {key: report["seconds"] for key, report in reports.items()},
        "padding": wide,
        "bare_loop_s": seconds,
        "shard_s": {key: [shard["seconds"] for shard in report["shards"]] for key, report in reports.items()},
    }
    ratios = {
        "one_worker/bare_loop": rates["one_worker"] / rates["bare_loop"],
        "two_workers/one_worker": rates["two_workers"] / rates["one_worker"],
        "padding/tokens": wide["equal_images"][0],
        "padding_tiled/tokens": wide["tiled_images"][0],
    }
    write_report(
        f"precompute-{name}{suffix_of(flags)}", flags, settings={"model": asdict(shape)}, results=results,
        ratios=ratios,
    )  # fmt: skip


if __name__ == "__main__":
    main()
