"""Peak memory of opening annotated shards for training, ordering an epoch and encoding rows, by number of rows.

Rows have a small picture each and about 60 supervised tokens; a few hundred of them are encoded. Each line is measured
in processes of its own: python benchmarks/train_data_memory.py --rows 1000 10000 100000
Prints a Markdown table, writes benchmarks/results/train_data_memory.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from cal_pipeline.encode import IGNORE_INDEX, Encoder
from cal_pipeline.encoding_spec import input_spec, label_spec
from cal_pipeline.loading import load_processor
from cal_pipeline.shards import plan_shards
from cal_schemas.annotated import AnnotatedRow, ShardWriter, annotated_schema
from cal_schemas.sample import ImageRef, Sample, Turn, sample_key
from cal_trainer.dataset import AnnotatedExamples
from cal_trainer.sampling import EpochSampler, StepShape
from cal_trainer.sidecar import SidecarExamples
from cal_trainer.streaming import StreamedExamples, StreamSampler
from examples_of import measurement_spec, shard_metadata
from tiny_models import build_llava, sample_image

ROWS_PER_SHARD = 4096
NUM_ENCODED = 200
COLUMNS = {
    "opening_s": "opening s",
    "epoch_order_s": "epoch order s",
    "ms_per_example": "ms/example",
    "mb_before": "MB before",
    "mb_opened": "MB after opening and ordering",
    "mb_peak": "MB at the peak",
    "mb_anonymous": "MB anonymous at the end",
}
ANSWER = "A small dog sits next to a large white cat. The bus is behind the tree, and the sign says stop."


def write_shards(folder: Path, encoder: Encoder, num_rows: int) -> None:
    """Shards as cal-precompute writes them; only row 0 is encoded, its labels are those of all rows."""
    pictures = []
    for seed in range(64):
        file = io.BytesIO()
        sample_image(seed).save(file, "PNG")
        pictures.append(file.getvalue())
    turns = (Turn(role="user", content="<image>\nWhat is in the picture?"), Turn(role="assistant", content=ANSWER))
    first = Sample(sample_id="0", images=(), messages=turns)
    encoded = encoder(first, [sample_image(0)])
    positions = np.flatnonzero(encoded.labels.numpy() != IGNORE_INDEX).astype(np.int32)
    label_ids = encoded.labels.numpy()[positions].astype(np.int32)
    spec = measurement_spec(label=label_spec(encoder), input=input_spec(encoder))
    folder.mkdir()
    rng = np.random.default_rng(0)
    for start in range(0, num_rows, ROWS_PER_SHARD):
        schema, metadata = annotated_schema(carry="images"), shard_metadata(spec=spec)
        with ShardWriter(folder / f"{start:09d}.parquet", schema, metadata) as writer:
            for number in range(start, min(start + ROWS_PER_SHARD, num_rows)):
                image = ImageRef(data=pictures[number % 64], path=None)
                sample = Sample(sample_id=str(number), images=(image,), messages=turns)
                deltas = rng.normal(1.0, 2.0, len(label_ids)).astype(np.float32)
                writer.write(
                    AnnotatedRow(
                        sample=sample,
                        sample_key=sample_key(sample),
                        label_ids=label_ids,
                        label_positions=positions,
                        delta_logits=deltas,
                        num_tokens=encoded.num_tokens - number % 7,
                    )
                )


def measure(mode: str, folder: Path) -> None:
    """Prints seconds until the first example, seconds of an epoch's order, milliseconds an example, and RSS in MB."""
    encoder = Encoder(load_processor(folder / "model"))
    plan_shards([str(folder / "whole")])  # Imports and first-use caches belong to the baseline.
    before = memory_mb("VmHWM")
    at = time.monotonic()
    shape = StepShape(batch_size=4, accumulation_steps=8)
    if mode == "streaming":
        examples = StreamedExamples(folder / "whole", encoder)
        sampler = StreamSampler(examples, shape, seed=0)
    else:
        cache = folder / "cache"
        examples = (
            AnnotatedExamples(folder / "whole", encoder, cache_dir=cache)
            if mode == "mapped"
            else SidecarExamples(folder / "whole", [str(folder / "whole")], encoder, cache_dir=cache)
        )
        sampler = EpochSampler(
            examples.lengths(), examples.has_image(), group_by="modality_length", step_size=shape.size, seed=0
        )
    opened = time.monotonic() - at
    at = time.monotonic()
    num_indices = sum(1 for _ in sampler)
    ordered = time.monotonic() - at
    assert num_indices == len(sampler) >= len(examples)
    light = memory_mb("VmHWM")
    at = time.monotonic()
    for index in islice(sampler, NUM_ENCODED):
        examples[index]
    encoded = (time.monotonic() - at) / NUM_ENCODED * 1000
    print(opened, ordered, encoded, before, light, memory_mb("VmHWM"), memory_mb("RssAnon"))


def memory_mb(name: str) -> float:
    """VmHWM: the most that was resident (getrusage would give the parent's before exec, if that was more).

    RssAnon: resident now and no mapped file, which the kernel could drop.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--modes", nargs="+", default=["mapped", "streaming", "sidecar"])
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "train_data_memory.json")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.measure:
        measure(flags.modes[0], flags.measure)
        return
    print("| mode | rows | first opening s | " + " | ".join(COLUMNS.values()) + " |")
    print("|---" * (3 + len(COLUMNS)) + "|")
    results = []
    for num_rows in flags.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            build_llava(folder / "model")
            encoder = Encoder(load_processor(folder / "model"))
            write_shards(folder / "whole", encoder, num_rows)
            for mode in flags.modes:
                command = [sys.executable, __file__, "--modes", mode, "--measure", str(folder)]
                runs = [
                    [float(item) for item in subprocess.run(
                        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
                    ).stdout.split()]
                    for _ in range(2)
                ]  # fmt: skip
                # The first opening makes the Arrow copy; memory is the larger of both runs.
                values = [*runs[1][:3], *(max(pair) for pair in zip(runs[0][3:], runs[1][3:], strict=True))]
                found = dict(zip(COLUMNS, (round(value, 3) for value in values), strict=True))
                results.append({"mode": mode, "rows": num_rows, "first_opening_s": round(runs[0][0], 3), **found})
                print("| " + " | ".join(str(value) for value in results[-1].values()) + " |", flush=True)
    machine = {"platform": platform.platform(), "cores": os.cpu_count(), "load_average": os.getloadavg()}
    report = {"benchmark": "train_data_memory", "machine": machine, "results": results}
    flags.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
