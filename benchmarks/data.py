"""Measures rows a second that a trainer gets from annotated shards, mapped and streamed, and from the source alone.

    python benchmarks/data.py

All three go through the trainer's own dataset, sampler and collator, in one process (a DataLoader's workers multiply
all alike); images are decoded and encoded for a LLaVA-1.5 input, 336 pixels a side. `source` is what training would
read without this project's columns: the same rows, memory-mapped, no labels compared and no deltas scattered.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

from cal_pipeline.encoding.encoder import Encoder
from cal_trainer.data.collator import ExampleCollator
from cal_trainer.data.factory import Examples, make_dataset, train_sampler
from cal_trainer.data.sampling import StepShape
from measuring import cpu_ratio, interleave, ratio
from reporting import add_timing_flags, begin, make_parser, print_table, write_report
from shapes import SHAPES
from workload import annotate, write_checkpoint, write_source

SHAPE = replace(SHAPES["tiny"], tile_tokens=576, image_tokens=576, text_tokens=128)
"""The tokens of LLaVA-1.5; how wide the model is that measured them does not matter here."""
RATIOS = (("mapped", "source"), ("streamed", "source"))


def reading(examples: Examples, encoder: Encoder, batch_size: int) -> Callable[[], int]:
    """One epoch in the sampler's order, collated."""
    collator = ExampleCollator(encoder=encoder, dummy=examples.blank.encoded)

    def epoch() -> int:
        sampler = iter(train_sampler(examples, StepShape(batch_size=batch_size), group_by="none", seed=0))
        rows = 0
        while batch := [examples[index] for index in islice(sampler, batch_size)]:
            collator(batch)
            rows += len(batch)
        return rows

    return epoch


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=8)
    add_timing_flags(parser, threads=1)
    flags = begin(parser)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder = Encoder(write_checkpoint(folder / "model", SHAPE))
        write_source(folder / "source", [flags.rows // 2] * 2, SHAPE.text_tokens)
        annotate(folder / "source", folder / "annotated", folder / "model", encoder)
        cache = folder / "cache"
        opened: dict[str, Examples] = {
            "mapped": make_dataset(folder / "annotated", encoder, cache_dir=cache),
            "streamed": make_dataset(folder / "annotated", encoder, streaming=True),
            "source": make_dataset(
                None, encoder, source_paths=[str(folder / "source")], use_deltas=False, cache_dir=cache
            ),
        }
        times = interleave(
            {key: reading(item, encoder, flags.batch_size) for key, item in opened.items()}, flags.repeats
        )
    print_table(
        ["", "rows/s", "ms of CPU a row"],
        [[key, flags.rows / own.median, 1e3 * own.row()["median_cpu_s"] / flags.rows]
         for key, own in times.items()],
    )  # fmt: skip
    write_report(
        "data", flags, settings={},
        results={key: {**own.row(), "rows_per_s": flags.rows / own.median} for key, own in times.items()},
        ratios={f"{top}_rows_per_s/{bottom}_rows_per_s": 1 / ratio(times, top, bottom) for top, bottom in RATIOS},
        cpu_time_ratios={
            f"{top}_rows_per_s/{bottom}_rows_per_s": 1 / cpu_ratio(times, top, bottom) for top, bottom in RATIOS
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
