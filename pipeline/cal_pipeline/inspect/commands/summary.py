"""Prints counts by status, tokens, quantiles of a score, the score by turn, bytes per token, and what measured it.

    cal-inspect summary annotated/
    cal-inspect summary annotated/ --alpha 0.5 --beta 3
    cal-inspect summary annotated/ --score kl --map top_share=0.4
    cal-inspect summary annotated/ --json

With --json the same figures are one object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import Any

from rich.filesize import decimal
from rich.table import Table

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.flags import say
from cal_pipeline.inspect.tables.flat import noun, number_form
from cal_pipeline.inspect.tables.reading import open_paths
from cal_pipeline.inspect.tables.statistics import bounds_scores
from cal_pipeline.inspect.tables.summary import measured_with, summarise
from cal_pipeline.inspect.tables.weighting import weighting_of
from cal_schemas.counted import counted
from cal_schemas.scores import SCORES

_NAME_WIDTH = 15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cal-inspect summary`."""
    flags.add_annotated(parser)
    flags.add_weighting(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def run(arguments: argparse.Namespace) -> int:
    """Prints the summary; 0."""
    opened = open_paths(arguments.annotated)
    weighting = weighting_of(arguments, opened)
    summary = summarise(opened, **weighting)
    if arguments.json:
        print(json.dumps(summary, indent=1, allow_nan=False))  # noqa: T201
    else:
        print_summary(summary)
    return 0


def print_summary(summary: Mapping[str, Any]) -> None:
    """The summary as tables."""
    tokens, undefined, size = summary["tokens"], summary["undefined"], summary["bytes"]
    statuses = ", ".join(f"{name} {count:,}" for name, count in summary["statuses"].items()) or "none"
    say(f"{counted(summary['rows'], 'row')} in {counted(summary['files'], 'file')}: {statuses}")
    if summary["images"] is None:
        say("a sidecar: images and messages are in its source")
    else:
        say(f"{counted(summary['images'], 'image')}; text only (deltas 0): "
            f"{counted(summary['text_only_rows'], 'row')}")  # fmt: skip
    say(
        f"{counted(tokens, 'supervised token')} of {summary['encoded_tokens']:,} encoded"
        + (f"; {counted(undefined, 'token')} without a defined {noun(summary['score'])}" if undefined else "")
    )
    say(
        f"{decimal(size['files'])} in all, {decimal(size['images'])} of it images"
        + (f"; columns of tokens take {size['per_token']:.2f} bytes a token" if tokens else "")
    )
    if not tokens:
        say("no row has deltas: look at the column `error` of the rows, mend the source, and use "
            "cal-precompute --redo_status")  # fmt: skip
    else:
        for table in _tables(summary):
            flags.console().print("", table)
    say("")
    for name, value in measured_with(summary):
        say(f"{name:<{_NAME_WIDTH}}{value}")


def _tables(summary: Mapping[str, Any]) -> Iterator[Table]:
    """Each of at most 80 columns."""
    beta = "inf" if summary["beta"] is None else f"{summary['beta']:g}"
    figures = {"tokens": "tokens", "mean": "mean", "std": "std", "min": "min", "max": "max", "share_negative": "< 0",
               "share_below_alpha": f"< {summary['alpha']:g}", "share_below_beta": f"< {beta}"}  # fmt: skip
    if not bounds_scores(summary["map"]):
        figures = {key: name for key, name in figures.items() if key not in ("share_below_alpha", "share_below_beta")}
    name, form = noun(summary["score"]), number_form(summary["score"])
    in_unit = f" in {unit}" if (unit := SCORES[summary["score"]].unit) else ""
    quantiles = {f"q{share}": f"{share}%" for share in (1, 10, 25, 50, 75, 90, 99)}
    weighed = "" if str(summary["map"]) == "clamp" else f", weighed by {summary['map']}"
    turns = {"all": summary[name], **summary["turns"]}
    for title, first, rows, columns in (
        (f"{name}{in_unit}, of all tokens and by turn (answer of the conversation)", "turn", turns, figures),
        (f"quantiles of {name}", "turn", turns, quantiles),
        (
            f"quantiles over the samples with {'deltas' if name == 'delta' else f'a {name}'}{weighed}",
            "of samples",
            summary["samples"],
            quantiles,
        ),
    ):
        table = flags.table(first, *columns.values(), left=[first], title=title)
        for row, values in rows.items():
            forms = {key: "," if key == "tokens" else ".1%" if "share" in key + row else form for key in columns}
            table.add_row(row, *("-" if values[key] is None else format(values[key], forms[key]) for key in columns))
        yield table
