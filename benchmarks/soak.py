"""Runs `cal-precompute` over many shards, and looks at what a long run gathers: memory, open files, files, logs.

    python benchmarks/soak.py --shards 600 --rows_per_shard 100

Two workers measure a tiny model. A look is taken when a third, two thirds and all of the shards are there; what grows
from one look to the next grows with a week's run too. Every fiftieth row names an image that is not there, so that
rows with a status are among what is gathered. Needs Ray, and Linux.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from reporting import begin, make_parser, print_table, write_report
from shapes import SHAPES
from workload import draw_answer, write_checkpoint, write_images

_KB, _MB = 2**10, 2**20
_LOOKS = 3
_MISSING_EVERY = 50
_WORKER, _DRIVER, _RAY = "workers", "driver", "Ray"


def write_source(folder: Path, num_shards: int, rows_per_shard: int) -> None:
    """JSON lines that name their images, a file a shard."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    names = write_images(folder / "images", rng)
    for shard in range(num_shards):
        with (folder / f"{shard:05d}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(shard * rows_per_shard, (shard + 1) * rows_per_shard):
                missing = number % _MISSING_EVERY == _MISSING_EVERY - 1
                row = {
                    "id": str(number),
                    "image": "images/missing.jpg" if missing else f"images/{names[number % len(names)]}",
                    "conversations": [
                        {"from": "human", "value": "<image>\nbal bam ban bar"},
                        {"from": "gpt", "value": draw_answer(rng, SHAPES["tiny"].text_tokens)},
                    ],
                }
                file.write(json.dumps(row) + "\n")


def look(driver: psutil.Process, output: Path, driver_log: Path) -> dict[str, Any]:
    """Resident MB and open files by kind of process; files and KB that the run has written beside its shards."""
    found: dict[str, Any] = {}
    folders = set()
    for process in [driver, *driver.children(recursive=True)]:
        try:
            name, *arguments = process.cmdline() or [""]
            kind = _DRIVER if process == driver else _WORKER if "_Actor" in name else _RAY
            size, files = process.memory_info().rss / _MB, process.num_fds()
        except psutil.Error:
            continue
        folders |= set(re.findall(r"/\S*?/cal-ray-\w+", " ".join(arguments)))
        found[f"{kind}, MB"] = found.get(f"{kind}, MB", 0) + size
        found[f"{kind}, open files"] = found.get(f"{kind}, open files", 0) + files
    of_run = [path for path in (output / ".cal").rglob("*") if path.is_file()]
    of_ray = [
        path
        for path in (path for folder in folders for path in Path(folder).rglob("*"))
        if path.is_file() and not path.is_symlink()
    ]
    found |= {".cal, files": len(of_run), ".cal, KB": _size_kb(of_run), "driver's log, KB": _size_kb([driver_log])}
    found |= {"Ray's directory, files": len(of_ray), "Ray's directory, KB": _size_kb(of_ray)}
    return {key: round(value, 3) for key, value in sorted(found.items())}


def _size_kb(paths: list[Path]) -> float:
    total = 0
    for path in paths:
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total / _KB


def run(folder: Path, num_shards: int, rows_per_shard: int) -> tuple[list[dict[str, Any]], float]:
    """Looks at a run three times; returns them, and its seconds."""
    write_checkpoint(folder / "model", SHAPES["tiny"])
    write_source(folder / "data", num_shards, rows_per_shard)
    output, log = folder / "out", folder / "driver.log"
    command = [
        str(Path(sys.executable).parent / "cal-precompute"), "--model_name_or_path", str(folder / "model"),
        "--data_path", str(folder / "data"), "--image_folder", str(folder / "data"), "--output_dir", str(output),
        "--dtype", "float32", "--num_workers", "2", "--gpus_per_worker", "0",
    ]  # fmt: skip
    looks: list[dict[str, Any]] = []
    started = time.monotonic()
    with log.open("w") as file:
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        driver = psutil.Process(process.pid)
        while process.poll() is None:
            done = sum(1 for _ in output.glob("*.parquet"))
            # The last look a little before the end, while all processes are there.
            if done >= num_shards * (len(looks) + 1) / _LOOKS - 2:
                looks.append({"shards": done, **look(driver, output, log)})
            time.sleep(0.2)
    seconds = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"cal-precompute ended with {process.returncode}:\n{log.read_text()[-4000:]}")
    assert sum(1 for _ in output.glob("*.parquet")) == num_shards
    return looks, seconds


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--shards", type=int, default=600)
    parser.add_argument("--rows_per_shard", type=int, default=100)
    flags = begin(parser)
    with tempfile.TemporaryDirectory(prefix="cal-") as name:
        looks, seconds = run(Path(name), flags.shards, flags.rows_per_shard)
    print_table(["", *(f"after {row['shards']} shards" for row in looks)],
                [[key, *(float(row[key]) for row in looks)] for key in looks[0] if key != "shards"])  # fmt: skip
    ratios = {f"{kind}_mb_last/{kind}_mb_first": looks[-1][f"{kind}, MB"] / looks[0][f"{kind}, MB"]
              for kind in (_DRIVER, _WORKER, _RAY)}  # fmt: skip
    settings = {"seconds": round(seconds, 1), "rows": flags.shards * flags.rows_per_shard}
    write_report("soak", flags, settings=settings, results=looks, ratios=ratios)


if __name__ == "__main__":
    main()
