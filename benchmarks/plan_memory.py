"""Measures time and peak memory of planning a LLaVA-like file and reading one of its shards.

    python benchmarks/plan_memory.py --rows 1000 100000

Each row of the table is measured in a process of its own.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import read_samples
from measuring import Stopwatch, in_own_process, resident_mb
from reporting import begin, growth, make_parser, print_table, write_report


def write_rows(path: Path, num_rows: int) -> None:
    """Rows of about 1.1 kB, a third of them without an image."""
    answer = "The cat sits on a red mat near the window and looks at the bird outside. " * 12
    array = path.suffix == ".json"
    with path.open("w", encoding="utf-8") as file:
        file.write("[" if array else "")
        for number in range(num_rows):
            row = {
                "id": f"{number:012d}",
                "image": f"coco/train2017/{number:012d}.jpg",
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat is in the image?"},
                    {"from": "gpt", "value": f"{number}: {answer}"},
                ],
            }
            if number % 3 == 0:
                del row["image"]
            separator = "" if number == 0 else ",\n" if array else "\n"
            file.write(separator + json.dumps(row))
        file.write("]" if array else "\n")


def measure(path: Path, rows_per_shard: int) -> dict[str, Any]:
    """Seconds of planning and of reading a shard in the middle, and this process's resident set."""
    before = resident_mb()
    watch = Stopwatch()
    shards = plan_shards([str(path)], [str(path.parent)], rows_per_shard=rows_per_shard)
    planning = watch.read("planning")
    middle = shards[len(shards) // 2]
    watch = Stopwatch()
    assert sum(1 for _ in read_samples(middle)) == middle.num_rows
    memory = {"before_mb": before, "peak_mb": resident_mb()}
    return {"shards": len(shards), **planning, **watch.read("reading"), **memory}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--formats", nargs="+", choices=["jsonl", "json"], default=["jsonl", "json"])
    parser.add_argument("--rows_per_shard", type=int, default=4096)
    flags = begin(parser)
    results = []
    for data_format in flags.formats:
        for num_rows in flags.rows:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"rows.{data_format}"
                write_rows(path, num_rows)
                measured = in_own_process(measure, path, flags.rows_per_shard)
                results.append({"format": data_format, "rows": num_rows, "mb": path.stat().st_size / 1e6, **measured})
    print_table(
        ["format", "rows", "MB", "shards", "planning s", "reading one shard s", "RSS before, MB", "peak RSS, MB"],
        [[row["format"], row["rows"], f"{row['mb']:.0f}", row["shards"], f"{row['planning_s']:.2f}",
          f"{row['reading_s']:.3f}", f"{row['before_mb']:.0f}", f"{row['peak_mb']:.0f}"] for row in results],
    )  # fmt: skip
    ratios = growth(results, "format", "peak_mb")
    write_report("plan_memory", flags, settings={}, results=results, ratios=ratios)


if __name__ == "__main__":
    main()
