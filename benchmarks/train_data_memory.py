"""Measures peak memory of opening annotated shards for training, ordering an epoch and encoding, by number of rows.

    python benchmarks/train_data_memory.py --rows 1000 10000 100000

Rows have a small image each and about 60 supervised tokens; a few hundred of them are encoded. Each line is measured
in processes of its own.
"""

from __future__ import annotations

import io
import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.models.loading import load_processor
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.annotated import AnnotatedRow, MeasuredSample, annotated_schema
from cal_schemas.sample import ImageRef, Sample, Turn, sample_key
from cal_schemas.spec import IGNORE_INDEX
from cal_schemas.writer import ShardWriter
from cal_trainer.data.dataset import AnnotatedExamples
from cal_trainer.data.sampling import EpochSampler, StepShape
from cal_trainer.data.sidecar import SidecarExamples
from cal_trainer.data.streaming import StreamedExamples, StreamSampler
from measuring import Stopwatch, in_own_process, resident_mb
from reporting import begin, growth, make_parser, print_table, write_report
from tiny_models import build_llava, sample_image
from workload import measurement, synthetic_metadata

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
    images = []
    for seed in range(64):
        file = io.BytesIO()
        sample_image(seed).save(file, "PNG")
        images.append(file.getvalue())
    turns = (Turn(role="user", content="<image>\nWhat is in the image?"), Turn(role="assistant", content=ANSWER))
    first = Sample(sample_id="0", images=(), messages=turns)
    encoded = encoder(first, [sample_image(0)])
    positions = np.flatnonzero(encoded.labels.numpy() != IGNORE_INDEX).astype(np.int32)
    label_ids = encoded.labels.numpy()[positions].astype(np.int32)
    folder.mkdir()
    rng = np.random.default_rng(0)
    for start in range(0, num_rows, ROWS_PER_SHARD):
        stop = min(start + ROWS_PER_SHARD, num_rows)
        schema = annotated_schema(carry="images")
        metadata = synthetic_metadata(stop - start, spec=measurement(encoder), carry="images")
        with ShardWriter(folder / f"{start:09d}.parquet", schema, metadata) as writer:
            for number in range(start, stop):
                image = ImageRef(data=images[number % 64], path=None)
                sample = Sample(sample_id=str(number), images=(image,), messages=turns)
                deltas = rng.normal(1.0, 2.0, len(label_ids)).astype(np.float32)
                writer.write(
                    AnnotatedRow(
                        sample=sample,
                        sample_key=sample_key(sample),
                        measured=MeasuredSample(label_ids=label_ids, label_positions=positions, delta_logits=deltas),
                        num_tokens=encoded.num_tokens - number % 7,
                    )
                )


def measure(mode: str, folder: Path) -> dict[str, float]:
    """Seconds until the first example, seconds of an epoch's order, milliseconds an example, and memory in MB."""
    encoder = Encoder(load_processor(folder / "model"))
    plan_shards([str(folder / "whole")])  # Imports and first-use caches belong to the baseline.
    measured = {"mb_before": resident_mb()}
    watch = Stopwatch()
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
    measured["opening_s"] = watch.read("opening")["opening_s"]
    watch = Stopwatch()
    num_indices = sum(1 for _ in sampler)
    measured["epoch_order_s"] = watch.read("order")["order_s"]
    assert num_indices == len(sampler) >= len(examples)
    measured["mb_opened"] = resident_mb()
    watch = Stopwatch()
    for index in islice(sampler, NUM_ENCODED):
        examples[index]
    measured["ms_per_example"] = watch.read("encoding")["encoding_s"] / NUM_ENCODED * 1000
    return {**measured, "mb_peak": resident_mb(), "mb_anonymous": resident_mb("RssAnon")}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--modes", nargs="+", default=["mapped", "streaming", "sidecar"])
    flags = begin(parser)
    results = []
    for num_rows in flags.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            build_llava(folder / "model")
            encoder = Encoder(load_processor(folder / "model"))
            write_shards(folder / "whole", encoder, num_rows)
            for mode in flags.modes:
                first, second = (in_own_process(measure, mode, folder) for _ in range(2))
                # The first opening makes the Arrow copy; memory is the larger of both runs.
                row = {
                    key: round(max(first[key], second[key]) if key.startswith("mb") else second[key], 3)
                    for key in COLUMNS
                }
                opening = round(first["opening_s"], 3)
                results.append({"mode": mode, "rows": num_rows, "first_opening_s": opening, **row})
    print_table(["mode", "rows", "first opening s", *COLUMNS.values()], [list(row.values()) for row in results])
    ratios = growth(results, "mode", "mb_peak")
    write_report("train_data_memory", flags, settings={}, results=results, ratios=ratios)


if __name__ == "__main__":
    main()
