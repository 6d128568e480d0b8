"""Time and peak memory of planning a LLaVA-like file and reading one of its shards, as a Markdown table.

Each row is measured in a process of its own: python benchmarks/plan_memory.py --rows 1000 100000
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cal_pipeline.shards import plan_shards, read_samples


def write_rows(path: Path, num_rows: int) -> None:
    """Rows of about 1.1 kB, a third of them without a picture."""
    answer = "The cat sits on a red mat near the window and looks at the bird outside. " * 12
    array = path.suffix == ".json"
    with path.open("w", encoding="utf-8") as file:
        file.write("[" if array else "")
        for number in range(num_rows):
            row = {
                "id": f"{number:012d}",
                "image": f"coco/train2017/{number:012d}.jpg",
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat is in the picture?"},
                    {"from": "gpt", "value": f"{number}: {answer}"},
                ],
            }
            if number % 3 == 0:
                del row["image"]
            separator = "" if number == 0 else ",\n" if array else "\n"
            file.write(separator + json.dumps(row))
        file.write("]" if array else "\n")


def measure(path: Path, rows_per_shard: int) -> None:
    """Prints shards, seconds of planning, seconds of reading a shard in the middle, and this process's peak in MB."""
    baseline = peak_mb()
    started = time.monotonic()
    shards = plan_shards([str(path)], [str(path.parent)], rows_per_shard=rows_per_shard)
    planned = time.monotonic()
    middle = shards[len(shards) // 2]
    assert sum(1 for _ in read_samples(middle)) == middle.num_rows
    print(len(shards), planned - started, time.monotonic() - planned, baseline, peak_mb())


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--formats", nargs="+", choices=["jsonl", "json"], default=["jsonl", "json"])
    parser.add_argument("--rows_per_shard", type=int, default=4096)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.measure:
        measure(flags.measure, flags.rows_per_shard)
        return
    print("| format | rows | MB | shards | planning s | reading one shard s | RSS before, MB | peak RSS, MB |")
    print("|---|---|---|---|---|---|---|---|")
    for data_format in flags.formats:
        for num_rows in flags.rows:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"rows.{data_format}"
                write_rows(path, num_rows)
                command = [sys.executable, __file__, "--measure", path, "--rows_per_shard", str(flags.rows_per_shard)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                shards, planning, reading, before, peak = done.stdout.split()
                size = f"{path.stat().st_size / 1e6:.0f}"
                seconds = f"{float(planning):.2f} | {float(reading):.3f}"
                memory = f"{float(before):.0f} | {float(peak):.0f}"
                print(f"| {data_format} | {num_rows} | {size} | {shards} | {seconds} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
