"""Counts by status, tokens, quantiles of delta, delta by turn, bytes per token, and what measured it.

Reads one batch of rows after the other: memory does not grow with the rows. Everything is exact up to a million tokens;
quantiles of more are right to 1 part in 4096 (by turn 1 in 1024), all else stays exact.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow.compute as pc
from rich.table import Table

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.tables.flat import ANSWER_COLUMNS, LIST_COLUMNS, FlatTokens, irregular_answers
from cal_pipeline.inspect.tables.reading import IMAGE_PATHS, open_paths, read_batches
from cal_schemas.annotated import EXTRA_COLUMNS, AnnotatedDataset
from cal_schemas.delta_counts import DeltaCounts
from cal_schemas.errors import STATUS_OK
from cal_schemas.storage.locations import read_footer

QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
MAX_TURNS = 20
"""Later turns are counted together."""
_NAME_WIDTH = 15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cal-inspect summary`."""
    flags.add_annotated(parser)
    flags.add_weighting(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def run(arguments: argparse.Namespace) -> int:
    """Prints the summary; 0."""
    opened = open_paths(arguments.annotated)
    weighting = flags.weighting_of(arguments)
    summary = summarise(opened, alpha=weighting["alpha"], beta=weighting["beta"])
    if arguments.json:
        print(json.dumps(summary, indent=1, allow_nan=False))  # noqa: T201
    else:
        print_summary(summary)
    return 0


def summarise(opened: AnnotatedDataset, *, alpha: float = 1.0, beta: float = 5.0) -> dict[str, Any]:
    """One pass over the rows; a dict of plain values as `--json` prints it, null where nothing is defined."""
    borders = (0.0, alpha, beta)
    total = DeltaCounts(below=borders)
    by_turn: dict[int, DeltaCounts] = {}
    statuses: Counter[str] = Counter()
    images = text_only = encoded = 0
    # Messages tell which spans belong to one answer; most rows never need them, but only they know.
    for batch in read_batches(opened, ["status", "num_tokens", IMAGE_PATHS, *ANSWER_COLUMNS, *LIST_COLUMNS]):
        data = batch.data
        for item in pc.value_counts(data.column("status")).to_pylist():
            statuses[item["values"]] += item["counts"]
        flat = FlatTokens.from_arrow(data)
        encoded += pc.sum(pc.filter(data.column("num_tokens"), pc.equal(data.column("status"), STATUS_OK))).as_py() or 0
        if "images" in data.schema.names:
            counts = np.asarray(pc.list_value_length(data.column("images")))
            images += int(counts.sum())
            text_only += int(((counts == 0) & (flat.lengths > 0)).sum())
        turns = np.minimum(flat.turns(irregular_answers(data)), MAX_TURNS)
        total.add(flat.deltas)
        for turn in np.unique(turns):
            by_turn.setdefault(int(turn), DeltaCounts(bits=18, below=borders)).add(flat.deltas[turns == turn])
    tokens = total.defined + total.undefined
    carried = "images" in opened.schema.names
    return {
        "files": len(opened.files),
        "rows": opened.num_rows,
        "statuses": dict(sorted(statuses.items(), key=lambda item: (item[0] != STATUS_OK, -item[1]))),
        "images": images if carried else None,
        "text_only_rows": text_only if carried else None,
        "tokens": tokens,
        "encoded_tokens": encoded,
        "undefined": total.undefined,
        "alpha": alpha,
        "beta": None if beta == float("inf") else beta,
        "delta": _described(total, borders),
        "turns": {
            f"{turn}{'+' if turn == MAX_TURNS else ''}": _described(counts, borders)
            for turn, counts in sorted(by_turn.items())
        },
        "bytes": bytes_on_disk(opened, tokens),
        "spec": asdict(opened.spec),
        "fingerprint": opened.spec.fingerprint(),
        "sources": sorted({item.source.data_path for item in opened.metadata}),
        "carry": sorted({item.carry for item in opened.metadata}),
    }


def _described(counts: DeltaCounts, borders: tuple[float, float, float]) -> dict[str, Any]:
    below_zero, below_alpha, below_beta = (counts.share_below(value) for value in borders)
    values: dict[str, Any] = {
        "tokens": counts.defined,
        "mean": counts.mean,
        "std": counts.std,
        "min": counts.min,
        "max": counts.max,
        "share_negative": below_zero,
        "share_below_alpha": below_alpha,
        "share_below_beta": below_beta,
        **{
            f"q{share:.0%}".rstrip("%"): value
            for share, value in zip(QUANTILES, counts.quantiles(QUANTILES), strict=True)
        },
    }
    return {name: None if value != value else value for name, value in values.items()}


def bytes_on_disk(opened: AnnotatedDataset, tokens: int) -> dict[str, Any]:
    """Compressed bytes of the token columns, of the pictures, and of the files, from the footers alone."""
    by_column: Counter[str] = Counter()
    for path in opened.files:
        footer = read_footer(path)
        for group in range(footer.num_row_groups):
            row_group = footer.row_group(group)
            for number in range(row_group.num_columns):
                column = row_group.column(number)
                by_column[column.path_in_schema.split(".")[0]] += column.total_compressed_size
    extra = [name for names in EXTRA_COLUMNS.values() for name in names]
    of_tokens = sum(by_column[name] for name in (*LIST_COLUMNS, *extra))
    return {
        "files": sum(path.stat().st_size for path in opened.files),
        "images": by_column["images"],
        "token_columns": of_tokens,
        "per_token": of_tokens / tokens if tokens else None,
    }


def print_summary(summary: Mapping[str, Any]) -> None:
    """The summary as tables."""
    console = flags.console()

    def say(text: str) -> None:
        console.print(text, markup=False)

    tokens, size = summary["tokens"], summary["bytes"]
    statuses = ", ".join(f"{name} {count:,}" for name, count in summary["statuses"].items()) or "none"
    say(f"{flags.counted(summary['rows'], 'row')} in {flags.counted(summary['files'], 'file')}: {statuses}")
    if summary["images"] is None:
        say("a sidecar: pictures and messages are in its source")
    else:
        say(f"{flags.counted(summary['images'], 'picture')}; text only (deltas 0): "
            f"{flags.counted(summary['text_only_rows'], 'row')}")  # fmt: skip
    say(
        f"{tokens:,} supervised tokens of {summary['encoded_tokens']:,} encoded"
        + (f"; {summary['undefined']:,} deltas are undefined" if summary["undefined"] else "")
    )
    say(
        f"{_bytes(size['files'])} in all, {_bytes(size['images'])} of it pictures"
        + (f"; ids, positions and deltas take {size['per_token']:.2f} bytes a token" if tokens else "")
    )
    if not tokens:
        say("no row has deltas: look at the column `error` of the rows, mend the source, and use "
            "cal-precompute --redo_status")  # fmt: skip
    else:
        say("")
        console.print(_delta_table(summary))
    say("")
    for name, value in measured_with(summary):
        say(f"{name:<{_NAME_WIDTH}}{value}")


def measured_with(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of everything that the deltas depend on, and where the rows are from."""
    spec = summary["spec"]
    label, inputs = spec["label"], spec["input"]
    quantized = f", {spec['quantization']} weights" if spec["quantization"] else ""
    contrast = [
        f"{name} {value}" for name, value in spec["contrast"].items() if name != "condition" and value is not None
    ]
    return [
        ("reference", spec["model_id"] + (f" at {spec['revision']}" if spec["revision"] else "")),
        ("weights", spec["weights_digest"]),
        ("precision", f"{spec['dtype']}{quantized}, {spec['attn_implementation']} attention"),
        ("saw the data", spec["reference_saw_data"]),
        ("without image", ", ".join([spec["contrast"]["condition"], *contrast])),
        ("template", f"{label['template']}, message normalization {label['message_normalization']}"
                     + (f", at {label['date']}" if label.get("date") else "")),
        ("tokenizer", label["tokenizer_digest"]),
        ("chat template", label["chat_template_digest"]),
        ("image input", f"{inputs['image_processor']} ({inputs['image_processor_backend']}), aspect ratio "
                        f"{inputs['image_aspect_ratio']}, digest {inputs['image_processor_digest']}"),
        ("length", f"at most {inputs['max_length']} tokens, truncation {inputs['truncation']}"),
        ("fingerprint", summary["fingerprint"]),
        ("carried", ", ".join(summary["carry"])),
        ("from", ", ".join(summary["sources"])),
    ]  # fmt: skip


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def _delta_table(summary: Mapping[str, Any]) -> Table:
    beta = "inf" if summary["beta"] is None else f"{summary['beta']:g}"
    table = Table(
        title="delta in logits, of all tokens and by turn (answer of the conversation)",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    columns = {
        "tokens": "tokens", "mean": "mean", "std": "std", "min": "min", "q1": "1%", "q10": "10%", "q50": "50%",
        "q90": "90%", "q99": "99%", "max": "max", "share_negative": "< 0", "share_below_alpha":
        f"< {summary['alpha']:g}", "share_below_beta": f"< {beta}",
    }  # fmt: skip
    table.add_column("turn")
    for heading in columns.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for name, values in {"all": summary["delta"], **summary["turns"]}.items():
        cells = []
        for key in columns:
            value = values[key]
            share = key.startswith("share")
            cells.append("-" if value is None else f"{value:,}" if key == "tokens" else f"{value:.1%}" if share
                         else f"{value:.2f}")  # fmt: skip
        table.add_row(name, *cells)
    return table
