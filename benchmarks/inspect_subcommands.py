"""Measures seconds and peak memory of each subcommand of `cal-inspect`, in processes of their own.

    python benchmarks/inspect_subcommands.py
    python benchmarks/inspect_subcommands.py --tree /path/to/another/checkout

All but the export read a million rows of 150 tokens without image files. The export encodes rows with JPEGs of COCO's
size again for a LLaVA-1.5 input, of which there are fewer. Seconds of CPU and megabytes are those of the program and of
all that it starts, memory that they share counted once. What goes beyond a limit is stopped, and the result says so.
`--tree` measures the packages of another checkout, which do not know all of these subcommands; the data are written by
this one.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer, models

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.inspect.tables.token_text import tokenizer_digest
from cal_schemas.annotated import annotated_schema
from cal_schemas.spec import LabelSpec
from cal_schemas.writer import parquet_writer
from inspect_frames import VOCABULARY, rows
from measuring import load_average
from reporting import begin, make_parser, print_table, write_report
from shapes import SHAPES
from workload import SYNTHETIC, annotate, synthetic_metadata, write_checkpoint, write_source

ROWS_PER_FILE = 10_000
SHAPE = replace(SHAPES["tiny"], tile_tokens=576, image_tokens=576, text_tokens=128)
SUBCOMMANDS: dict[str, list[str]] = {
    "summary": ["summary", "{shards}"],
    "samples": ["samples", "{shards}", "--output", "{out}/samples.parquet"],
    "tokens": ["tokens", "{shards}", "--tokenizer", "{tokenizer}", "--output", "{out}/tokens.csv"],
    "plot": ["plot", "{shards}", "--output", "{out}/plot.png"],
    "plot --by turn": ["plot", "{shards}", "--by", "turn", "--output", "{out}/turns.png"],
    "plot --by kind": ["plot", "{shards}", "--by", "kind", "--output", "{out}/kinds.png"],
    "show": ["show", "{shards}", "{last}", "--tokenizer", "{tokenizer}"],
    "filter, counts": ["filter", "{shards}", "mean_delta < 0.2 OR share_negative > 0.4"],
    "filter, a quantile": ["filter", "{shards}", "mean_delta < quantile(mean_delta, 0.1)"],
    "filter --output": ["filter", "{shards}", "share_negative > 0.4", "--drop", "--output", "{out}/kept"],
    "filter --ids": ["filter", "{shards}", "share_negative > 0.4", "--ids", "{out}/ids.csv"],
    "filter --ids_from": ["filter", "{shards}", "TRUE", "--ids_from", "{out}/ids.csv"],
    "compare": ["compare", "{shards}", "{shards}", "--output", "{out}/scatter.png"],
    "page": ["page", "{shards}", "--tokenizer", "{tokenizer}", "--samples", "100", "--output", "{out}/page.html"],
    "export, a sheet": ["export", "{shards}", "--to", "labelling-sheet", "--output", "{out}/sheet"],
    "agreement": ["agreement", "{sheet}", "--annotated", "{shards}"],
    "export, weights": ["export", "{images}", "--to", "messages-jsonl", "--model_name_or_path", "{model}", "--output",
                        "{out}/weights"],
}  # fmt: skip
"""Name -> what follows `cal-inspect`."""
_PROGRAM = "import sys; from cal_pipeline.inspect.cli import run; sys.exit(run(sys.argv[1:]))"
_EVERY_S = 0.5
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def write_shards(folder: Path, num_rows: int, digest: str) -> None:
    """Files of one shard's rows, with other ids, keys and deltas in each, and a column `kind` of 400 values."""
    generator = np.random.default_rng(0)
    schema = annotated_schema(carry="paths").append(pa.field("kind", pa.string()))
    plain = annotated_schema(carry="paths")
    first = rows(generator, 0, min(num_rows, ROWS_PER_FILE), plain)
    spec = replace(SYNTHETIC, label=LabelSpec(tokenizer_digest=digest, chat_template_digest="0", template="auto"))
    shard = synthetic_metadata(len(first), spec=spec)
    metadata = replace(shard, source=replace(shard.source, image_folder=str(folder))).to_parquet()
    deltas = first.column("delta_logits").combine_chunks()
    values = deltas.flatten().to_numpy(zero_copy_only=False)
    folder.mkdir()
    for start in range(0, num_rows, ROWS_PER_FILE):
        table = first.append_column("kind", pa.array([f"kind {row % 400}" for row in range(start, start + len(first))]))
        noisy = values + generator.normal(0, 0.1, len(values)).astype(np.float32)
        columns = {
            "sample_id": pa.array([f"{row:012d}" for row in range(start, start + len(first))]),
            "sample_key": pa.array([f"{row:032x}" for row in range(start, start + len(first))]),
            "delta_logits": pa.ListArray.from_arrays(deltas.offsets, pc.if_else(pc.is_nan(noisy), None, noisy)),
        }
        for name, column in columns.items():
            table = table.set_column(schema.get_field_index(name), schema.field(name), column)
        table = table.slice(0, num_rows - start).cast(schema).replace_schema_metadata(metadata)
        with parquet_writer(folder / f"{start:09d}.parquet", table.schema) as writer:
            writer.write_table(table, row_group_size=len(table))


def write_data(folder: Path, flags: Any) -> None:
    """What the subcommands look at."""
    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.save(str(folder / "tokenizer.json"))
    write_shards(folder / "shards", flags.rows, tokenizer_digest(tokenizer))
    with (folder / "sheet.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["key", "contradictory"], *([f"k{n:032x}", "yes" if n % 2 else "no"]
                                                                for n in range(100))])  # fmt: skip
    encoder = Encoder(write_checkpoint(folder / "model", SHAPE))
    write_source(folder / "source", [min(flags.export_rows, 64)], SHAPE.text_tokens)
    annotate(folder / "source", folder / "images", folder / "model", encoder)
    (measured,) = (folder / "images").glob("*.parquet")
    table = pq.read_table(measured)
    for number in range(1, flags.export_rows // len(table)):
        with parquet_writer(folder / "images" / f"copy-{number:05d}.parquet", table.schema) as writer:
            writer.write_table(table)


def _places(folder: Path, flags: Any) -> dict[str, str]:
    places = {name: str(folder / name) for name in ("shards", "images", "model")}
    return {**places, "tokenizer": str(folder / "tokenizer.json"), "sheet": str(folder / "sheet.csv"),
            "last": f"{flags.rows - 1:012d}"}  # fmt: skip


def measure(arguments: list[str], tree: Path, flags: Any) -> dict[str, Any] | None:
    """Seconds on the wall and of CPU, peak MB, and the limit at which it was stopped; None where the tree does not know
    how."""
    path = os.pathsep.join(str(tree / name) for name in ("schemas", "pipeline", "trainer"))
    started, peak_kb, stopped = time.perf_counter(), 0.0, ""
    cpu: dict[int, float] = {}
    with tempfile.TemporaryFile("w+") as said:
        program = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *arguments], env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL, stderr=said, start_new_session=True,
        )  # fmt: skip
        while os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            used = {pid: row for pid in _with_descendants(program.pid) if (row := _used(pid)) is not None}
            cpu |= {pid: row["cpu_s"] for pid, row in used.items()}
            # They map the same libraries.
            files_kb = max((row["files"] for row in used.values()), default=0)
            together = sum(row["own"] for row in used.values()) + files_kb
            peak_kb = max([peak_kb, together, *(row["most"] for row in used.values())])
            if sum(cpu.values()) > flags.limit_cpu_s:
                stopped = f"{flags.limit_cpu_s} s of CPU"
            elif peak_kb > flags.limit_mb * 1024:
                stopped = f"{flags.limit_mb} MB"
            if stopped:
                os.killpg(program.pid, signal.SIGKILL)
            time.sleep(_EVERY_S)
        code = program.wait()
        seconds = time.perf_counter() - started
        said.seek(0)
        if code and not stopped:
            print(f"cal-inspect {' '.join(arguments)}: {said.read().strip().splitlines()[-1:]}", flush=True)
            return None
    found = {"s": round(seconds, 1), "cpu_s": round(sum(cpu.values()), 1), "peak_mb": round(peak_kb / 1024, 1)}
    return found | ({"stopped_at": stopped} if stopped else {})


def _with_descendants(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # It has ended.
            for child in children.read_text().split():
                yield from _with_descendants(int(child))


def _used(pid: int) -> dict[str, float] | None:
    """Seconds of CPU, and KB: its own now, of mapped files now, the most it ever had; None: it has ended."""
    try:
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        numbers = {
            name: int(kb)
            for source in ("status", "smaps_rollup")
            for name, kb in re.findall(r"^(\w+):\s+(\d+) kB", Path(f"/proc/{pid}/{source}").read_text(), re.MULTILINE)
        }
    except OSError:
        return None
    return {
        "cpu_s": sum(map(int, times)) / _TICKS_PER_S,
        # What two processes have since one was copied from the other is counted half for each.
        "own": numbers.get("Pss_Anon", 0) + numbers.get("Pss_Shmem", 0),
        "files": numbers.get("RssFile", 0),
        "most": numbers.get("VmHWM", 0),
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--export_rows", type=int, default=4096, help="of the export of weights")
    parser.add_argument("--only", nargs="+", default=[*SUBCOMMANDS], metavar="NAME", help="of the table's first column")
    parser.add_argument("--tree", type=Path, default=Path(__file__).parent.parent, help="whose packages are measured")
    parser.add_argument("--limit_cpu_s", type=int, default=1500, help="of one subcommand")
    parser.add_argument("--limit_mb", type=int, default=8192, help="of one subcommand")
    parser.add_argument("--folder", type=Path, help="where the data lie or are put, and stay")
    parser.add_argument("--name", default="inspect_subcommands", help="of the JSON file")
    flags = begin(parser)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = flags.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "images").exists():
            write_data(folder, flags)
        places = {**_places(folder, flags), "out": temporary + "/out"}
        for name in flags.only:
            if name != "filter --ids_from":
                shutil.rmtree(places["out"], ignore_errors=True)
                Path(places["out"]).mkdir()
            measured = measure([part.format(**places) for part in SUBCOMMANDS[name]], flags.tree, flags)
            if measured is not None:
                measured["rows"] = flags.export_rows if name == "export, weights" else flags.rows
                results[name] = measured
                print(name, measured, "load", load_average()[0], flush=True)
    print_table(
        ["subcommand", "rows", "s", "s of CPU", "peak MB"],
        [[name, row["rows"], row["s"], row["cpu_s"], row["peak_mb"]] for name, row in results.items()],
    )
    worst = max(row["peak_mb"] for row in results.values())
    write_report(flags.name, flags, settings={}, results=results, ratios={"worst_mb/1000_mb": worst / 1000})


if __name__ == "__main__":
    main()
