"""Prints and writes what every benchmark does: a Markdown table, targets met or missed, one JSON file in results/."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from measuring import MIN_REPEATS, Times, cpu_ratio, load_average, ratio
from targets import Target, targets_of

RESULTS = Path(__file__).parent / "results"
_LIBRARIES = ("torch", "transformers", "datasets", "pyarrow", "numpy", "pillow", "ray")


def make_parser(description: str | None) -> ArgumentParser:
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=RESULTS, help="of the JSON file")
    return parser


def add_device_flags(parser: ArgumentParser, repeats: int = MIN_REPEATS) -> None:
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of weights and pixels")
    add_timing_flags(parser, threads=os.cpu_count() or 1, repeats=repeats)


def add_timing_flags(parser: ArgumentParser, *, threads: int, repeats: int = MIN_REPEATS) -> None:
    parser.add_argument("--threads", type=int, default=threads, help="of torch, on CPU")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"timed runs of each; {MIN_REPEATS} for a result")


def begin(parser: ArgumentParser) -> Namespace:
    """Returns the flags; sets torch's threads, and notes how busy the machine is before any work."""
    parser.set_defaults(load_before=load_average())
    flags = parser.parse_args()
    if "threads" in flags:
        torch.set_num_threads(flags.threads)
    return flags


def dtype_of(flags: Namespace) -> torch.dtype:
    return getattr(torch, flags.dtype)  # type: ignore[no-any-return]


def suffix_of(flags: Namespace) -> str:
    """What of device and dtype goes into a file's name."""
    device = "" if flags.device == "cpu" else f"-{flags.device}"
    return device + ("" if flags.dtype == "float32" else f"-{flags.dtype}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    print(markdown(header, rows), flush=True)


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *([_formatted(value) for value in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _formatted(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def compare(
    what: str,
    pairs: Sequence[tuple[str, str]],
    times: Mapping[str, Times],
    memory: Mapping[str, int],
    flops: Mapping[str, int],
) -> dict[str, Any]:
    """Prints variants side by side; returns what `write_report` takes of them, ratios of those pairs that were run."""
    first = next(iter(times))
    print_table(
        [what, "median ms", "/ first", "peak MB", "TFLOP"],
        [[key, 1e3 * own.median, f"{ratio(times, key, first):.3f}", f"{memory[key] / 2**20:.1f}", flops[key] / 1e12]
         for key, own in times.items()],
    )  # fmt: skip
    run = [pair for pair in pairs if set(pair) <= set(times)]
    ratios = {f"{top}/{bottom}": ratio(times, top, bottom) for top, bottom in run}
    ratios |= {f"{top}_memory/{bottom}_memory": memory[top] / memory[bottom] for top, bottom in run}
    ratios |= {f"{top}_flops/{bottom}_flops": flops[top] / flops[bottom] for top, bottom in run}
    return {
        "results": {
            key: {**own.row(), "peak_memory_mb": memory[key] / 2**20, "tera_flops": flops[key] / 1e12}
            for key, own in times.items()
        },
        "ratios": ratios,
        "cpu_time_ratios": {f"{top}/{bottom}": cpu_ratio(times, top, bottom) for top, bottom in run},
    }


def growth(results: Sequence[Mapping[str, Any]], by: str, peak: str) -> dict[str, float]:
    """For each value of the column `by`: the peak memory of its last row over that of its first."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in results:
        groups.setdefault(row[by], []).append(row)
    return {
        f"{name}_peak_of_{last['rows']}/{name}_peak_of_{first['rows']}": last[peak] / first[peak]
        for name, rows in groups.items()
        for first, last in [(rows[0], rows[-1])]
    }


def write_report(
    name: str,
    flags: Namespace,
    *,
    settings: Mapping[str, Any],
    results: Any,
    ratios: Mapping[str, float],
    cpu_time_ratios: Mapping[str, float] | None = None,
) -> None:
    """Prints the ratios beside their targets, and writes `<output_dir>/<name>.json`."""
    benchmark = name.split("-")[0]
    given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(flags).items()}
    judged = [_judged(target, ratios) for target in targets_of(name) if target.ratio in ratios]
    report = {
        "benchmark": benchmark,
        "machine": machine(str(given.get("device", "cpu"))) | {"load_average_before": given.pop("load_before")},
        "versions": versions(),
        "settings": {key: value for key, value in given.items() if key != "output_dir"} | dict(settings),
        "results": results,
        "ratios": {key: round(value, 4) for key, value in ratios.items()},
        "cpu_time_ratios": {key: round(value, 4) for key, value in (cpu_time_ratios or {}).items()},
        "targets": judged,
    }
    both = cpu_time_ratios or {}
    print_table(
        ["ratio", "measured", "by CPU time"],
        [[key, f"{value:.3f}", f"{both[key]:.3f}" if key in both else ""] for key, value in ratios.items()],
    )
    if judged:
        print_table(
            ["target", "measured", ""],
            [[f"{item['ratio']} {item['bound']}", f"{item['measured']:.3f}", item["verdict"]] for item in judged],
        )
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    path = flags.output_dir / f"{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}\n", flush=True)


def _judged(target: Target, ratios: Mapping[str, float]) -> dict[str, Any]:
    value = ratios[target.ratio]
    return {"ratio": target.ratio, "bound": str(target), "measured": round(value, 4),
            "verdict": "met" if target.met(value) else "missed"}  # fmt: skip


def machine(device: str) -> dict[str, Any]:
    """Hardware, and how busy it was."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "platform": platform.platform(),
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "load_average": load_average(),
    }


def versions() -> dict[str, str]:
    by_library = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            by_library[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return by_library
