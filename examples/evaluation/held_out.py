"""Writes what the task `shapes` asks: clean images of the demo's world that none of its models was trained on.

    python examples/evaluation/held_out.py --output evaluation/held_out.parquet

They are the images that the demo's own table is made of.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.append(str(Path(__file__).parent.parent / "shapes"))
import world
from demo import HELD_OUT_SAMPLES, HELD_OUT_SEED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("evaluation/held_out.parquet"))
    parser.add_argument("--num_images", type=int, default=HELD_OUT_SAMPLES)
    parser.add_argument("--seed", type=int, default=0, help="the seed that the demo was run with")
    options = parser.parse_args()
    samples = world.generate(options.num_images, seed=options.seed + HELD_OUT_SEED, wrong_share=0.0, prefix="held-out")
    write(samples, options.output)
    print(f"{len(samples)} images in {options.output}")


def write(samples: Sequence[world.WorldSample], path: Path) -> None:
    """One row per sample: its image, its question, the words that are true of the image, those that are not."""
    attributes = (*world.COLOURS, *world.SHAPES, *world.SIZES, *world.SIDES)
    rows = []
    for sample in samples:
        assert isinstance(sample.scene, world.Scene)
        shown = sample.scene
        true_words = [shown.colour, shown.shape, shown.size, shown.side]
        false_words = [word for word in attributes if word not in true_words]
        rows.append({"id": sample.sample_id, "image": sample.image_png, "question": sample.question,
                     "true_words": true_words, "false_words": false_words})  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


if __name__ == "__main__":
    main()
