"""Writes the tables of docs/performance.md from the committed results, between their markers.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from estimate import counted, hours, memory, operations
from reporting import RESULTS, markdown
from targets import targets_of

PAGE = RESULTS.parent.parent / "docs" / "performance.md"
STAGES = ("load", "encode", "forward", "write")
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
Report = dict[str, Any]


def reports(benchmark: str, folder: Path = RESULTS) -> dict[str, Report]:
    """Results of one benchmark by name, those on CPU at the `cpu` shape first."""
    by_name = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob(f"{benchmark}*.json"))}
    return {name: by_name[name] for name in sorted(by_name, key=lambda name: ("cpu" not in name.split("-"), name))}


def targets() -> str:
    rows = []
    for name, report in reports("").items():
        for target in targets_of(name):
            values = [report[of].get(target.ratio) for of in ("ratios", "cpu_time_ratios")]
            verdicts = ["" if value is None else f"{value:.3f} {'met' if target.met(value) else '**missed**'}"
                        for value in values]  # fmt: skip
            top, _, bottom = target.ratio.partition("/")
            operations = report["ratios"].get(f"{top}_flops/{bottom}_flops")
            counted = "" if operations is None else f"{operations:.3f}"
            rows.append([name, f"`{target.ratio}`", target, *verdicts, counted])
    return markdown(["result", "ratio", "target", "measured", "by CPU time", "by operations"], rows)


def contrast() -> str:
    rows = []
    for name, report in reports("contrast").items():
        for way, row in report["results"].items():
            plain, released = (report["results"][key]["median_s"] for key in ("plain", "released"))
            rows.append([name, way, f"{1e3 * row['median_s']:.0f}", f"{row['median_s'] / plain:.2f}",
                         f"{row['median_s'] / released:.2f}", f"{row['peak_memory_mb']:.0f}",
                         f"{1e3 * row['tera_flops']:.1f}"])  # fmt: skip
    return markdown(["result", "way", "ms", "/ plain", "/ released", "peak MB", "GFLOP"], rows)


def train_step() -> str:
    rows = []
    for name, report in reports("train_step").items():
        uniform = report["results"]["uniform"]["median_s"]
        for step, row in report["results"].items():
            rows.append([name, step, f"{1e3 * row['median_s']:.0f}", f"{row['median_s'] / uniform:.3f}",
                         f"{row['median_cpu_s'] / report['results']['uniform']['median_cpu_s']:.3f}",
                         f"{row['peak_memory_mb']:.0f}", f"{1e3 * row['tera_flops']:.1f}"])  # fmt: skip
    header = ["result", "step", "ms", "/ uniform", "the same by CPU time", "peak MB", "GFLOP"]
    return markdown(header, rows)


def peers() -> str:
    rows = [
        [
            name,
            trainer,
            f"{row['step_s']:.2f}",
            f"{row['epoch_s']:.1f}",
            f"{row['peak_mb']:.0f}",
            f"{row['padding']:.1%}",
        ]
        for name, report in reports("peers").items()
        for trainer, row in report["results"].items()
    ]
    return markdown(["result", "trainer", "step, s", "epoch, s", "peak MB", "padding"], rows)


def precompute() -> str:
    rows = []
    for report in reports("precompute").values():
        results = report["results"]
        for key, rate in results["rows_per_s"].items():
            start_up, shares = results["start_up_s"].get(key), results["stage_shares"].get(key, dict.fromkeys(STAGES))
            rows.append([key, f"{rate:.2f}", "" if start_up is None else f"{start_up:.0f}",
                         *("" if share is None else f"{share:.1%}" for share in shares.values())])  # fmt: skip
    return markdown(["", "rows/s", "start-up s", *STAGES], rows)


def padding() -> str:
    rows = [
        [kind.replace("_", " "), f"{first:.1%}", f"{second:.1%}"]
        for report in reports("precompute").values()
        for kind, (first, second) in report["results"]["padding"].items()
    ]
    return markdown(["4096 rows, 16384 tokens a batch", "with image", "without"], rows)


def storage() -> str:
    rows = []
    for report in reports("storage").values():
        for key, row in report["results"].items():
            columns = row["column_bytes_per_token"].values()
            rows.append([key, f"{row['bytes_per_token']:.2f}", *([f"{size:.2f}" for size in columns] or [""] * 3),
                         f"{row['write_tokens_per_s'] / 1e6:.2f}", f"{row['read_tokens_per_s'] / 1e6:.2f}",
                         f"{row['random_row_ms']:.2f}"])  # fmt: skip
    header = ["format", "bytes/token", "ids", "positions", "deltas", "written, M tokens/s", "read", "random row, ms"]
    return markdown(header, rows)


def checksums() -> str:
    rows = [
        [kind, f"{1e3 * report['results'][kind]['median_s']:.1f}", f"{ratio:.3f}",
         f"{report['cpu_time_ratios'][f'{kind}_verified/{kind}']:.3f}"]
        for report in reports("checksums").values()
        for kind in ("sidecar", "images")
        for ratio in [report["ratios"][f"{kind}_verified/{kind}"]]
    ]  # fmt: skip
    return markdown(["shard", "read, ms", "verified / not", "the same by CPU time"], rows)


def data() -> str:
    rows = [
        [key, f"{row['rows_per_s']:.1f}", f"{row['rows_per_s'] / report['results']['source']['rows_per_s']:.3f}",
         f"{1e3 * row['median_cpu_s'] / report['settings']['rows']:.1f}"]
        for report in reports("data").values()
        for key, row in report["results"].items()
    ]  # fmt: skip
    return markdown(["", "rows/s", "/ source", "ms of CPU a row"], rows)


def scale() -> str:
    rows = []
    for report in reports("scale").values():
        for key, value in report["ratios"].items():
            way, what, axis = re.fullmatch(r"(\w+)_log_(\w+)/log_(\w+)", key).groups()  # type: ignore[union-attr]
            sizes = dict.fromkeys(row["size"] for row in report["results"][axis])
            rows.append([axis, f"{min(sizes)} to {max(sizes)}", way, what, f"{value:.2f}"])
    return markdown(["what grows", "from, to", "way", "cost", "exponent"], rows)


def breakeven() -> str:
    rows = []
    for report in reports("breakeven").values():
        for key, seconds in report["results"]["device_seconds"].items():
            point = report["ratios"].get(f"measure/added_by_{key}")
            rows.append([key, *(f"{value:.2f}" for value in seconds.values()), "" if point is None else f"{point:.1f}"])
    return markdown(["deltas", "1 run, s a sample", "3 runs", "10 runs", "cached pays after, runs"], rows)


def inspection() -> str:
    """Each subcommand of cal-inspect: at a million rows now, and as it was before at the rows that were measured."""
    now, before = (
        json.loads((RESULTS / f"inspect_subcommands{of}.json").read_text())["results"] for of in ("", "-before")
    )
    rows = [
        [name, f"{row['rows']:,}", *(f"{row[key]:.0f}" for key in ("s", "cpu_s", "peak_mb")),
         *([f"{old['rows']:,}", *(f"{old[key]:.0f}" for key in ("s", "cpu_s", "peak_mb"))]
           if (old := before.get(name)) else ["-"] * 4)]
        for name, row in now.items()
    ]  # fmt: skip
    return markdown(["subcommand", "rows", "s", "CPU s", "peak MB", "before: rows", "s", "CPU s", "peak MB"], rows)


def predicted() -> str:
    return "".join(counted(report["results"]["counted"]) for report in reports("estimate").values())


def loads() -> str:
    rows = [
        [name, *(f"{value:.1f}" for value in (report["machine"]["load_average_before"][0],
                                             report["machine"]["load_average"][0]))]
        for name, report in reports("").items() if "load_average_before" in report["machine"]
    ]  # fmt: skip
    return markdown(["result", "load before", "after"], rows)


TABLES: dict[str, Callable[[], str]] = {
    item.__name__: item
    for item in (
        targets,
        contrast,
        train_step,
        peers,
        precompute,
        padding,
        storage,
        checksums,
        data,
        scale,
        breakeven,
        operations,
        memory,
        hours,
        predicted,
        inspection,
        loads,
    )
}


def written(page: str) -> str:
    """The page with every table as the results have it."""
    return _BLOCK.sub(lambda block: block[1] + TABLES[block[2]]() + block[3], page)


def main() -> None:
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
