"""Prints counts by status, tokens, quantiles of delta, delta by turn, bytes per token, and what measured it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from rich.filesize import decimal
from rich.table import Table

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.flags import say
from cal_pipeline.inspect.tables.reading import open_paths
from cal_pipeline.inspect.tables.summary import measured_with, summarise

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
    summary = summarise(opened, **weighting)
    if arguments.json:
        print(json.dumps(summary, indent=1, allow_nan=False))  # noqa: T201
    else:
        print_summary(summary)
    return 0


def print_summary(summary: Mapping[str, Any]) -> None:
    """The summary as tables."""
    tokens, size = summary["tokens"], summary["bytes"]
    statuses = ", ".join(f"{name} {count:,}" for name, count in summary["statuses"].items()) or "none"
    say(f"{flags.counted(summary['rows'], 'row')} in {flags.counted(summary['files'], 'file')}: {statuses}")
    if summary["images"] is None:
        say("a sidecar: images and messages are in its source")
    else:
        say(f"{flags.counted(summary['images'], 'image')}; text only (deltas 0): "
            f"{flags.counted(summary['text_only_rows'], 'row')}")  # fmt: skip
    say(
        f"{tokens:,} supervised tokens of {summary['encoded_tokens']:,} encoded"
        + (f"; {summary['undefined']:,} deltas are undefined" if summary["undefined"] else "")
    )
    say(
        f"{decimal(size['files'])} in all, {decimal(size['images'])} of it images"
        + (f"; ids, positions and deltas take {size['per_token']:.2f} bytes a token" if tokens else "")
    )
    if not tokens:
        say("no row has deltas: look at the column `error` of the rows, mend the source, and use "
            "cal-precompute --redo_status")  # fmt: skip
    else:
        say("")
        flags.console().print(_delta_table(summary), "", _sample_table(summary))
    say("")
    for name, value in measured_with(summary):
        say(f"{name:<{_NAME_WIDTH}}{value}")


def _delta_table(summary: Mapping[str, Any]) -> Table:
    beta = "inf" if summary["beta"] is None else f"{summary['beta']:g}"
    columns = {
        "tokens": "tokens", "mean": "mean", "std": "std", "min": "min", "q1": "1%", "q10": "10%", "q50": "50%",
        "q90": "90%", "q99": "99%", "max": "max", "share_negative": "< 0", "share_below_alpha":
        f"< {summary['alpha']:g}", "share_below_beta": f"< {beta}",
    }  # fmt: skip
    title = "delta in logits, of all tokens and by turn (answer of the conversation)"
    table = flags.table("turn", left=["turn"], title=title)
    for heading in columns.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for name, values in {"all": summary["delta"], **summary["turns"]}.items():
        table_cells = []
        for key in columns:
            value = values[key]
            share = key.startswith("share")
            table_cells.append("-" if value is None else f"{value:,}" if key == "tokens" else f"{value:.1%}" if share
                         else f"{value:.2f}")  # fmt: skip
        table.add_row(name, *table_cells)
    return table


def _sample_table(summary: Mapping[str, Any]) -> Table:
    columns = ("q1", "q5", "q10", "q25", "q50", "q75", "q90", "q95", "q99")
    headings = (f"{name[1:]}%" for name in columns)
    table = flags.table("of samples", *headings, left=["of samples"], title="quantiles over the samples with deltas")
    for name, values in summary["samples"].items():
        form = ".0%" if name.startswith("share") else ".2f"
        table.add_row(name, *("-" if values[key] is None else f"{values[key]:{form}}" for key in columns))
    return table
