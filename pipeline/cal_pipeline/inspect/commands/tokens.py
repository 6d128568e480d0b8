"""Prints tokens with the highest and lowest deltas, or other scores: in the text around them, and means by token.

    cal-inspect tokens annotated/ --tokenizer llava-hf/llava-1.5-7b-hf
    cal-inspect tokens annotated/ --tokenizer llava-hf/llava-1.5-7b-hf --top 50 --min_count 5
    cal-inspect tokens annotated/ --tokenizer llava-hf/llava-1.5-7b-hf --output tokens.csv
    cal-inspect tokens annotated/ --tokenizer llava-hf/llava-1.5-7b-hf --score kl

Reads one batch of rows after the other: memory does not grow with the rows.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.tables.flat import noun, number_form
from cal_pipeline.inspect.tables.reading import open_paths
from cal_pipeline.inspect.tables.token_statistics import Occurrence, TokenStatistics, aligned, token_statistics
from cal_pipeline.inspect.tables.token_text import Pieces, pieces_of_measurement, printable
from cal_pipeline.inspect.tables.weighting import score_of
from cal_schemas.errors import ConfigError
from cal_schemas.scores import Score
from cal_schemas.storage.locations import Location


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cal-inspect tokens`."""
    flags.add_annotated(parser)
    flags.add_tokenizer(parser)
    flags.add_score(parser)
    parser.add_argument("--top", type=flags.at_least(1), default=15, help="how many of each (default 15)")
    parser.add_argument(
        "--min_count", type=flags.at_least(1), default=5, help="means are of tokens that occur so often (default 5)"
    )
    parser.add_argument("--output", type=flags.place, help="FILE.csv: count and mean of every token")


def run(arguments: argparse.Namespace) -> int:
    """Prints four tables; 0."""
    path = flags.new_file(arguments.output, ".csv") if arguments.output else None
    opened = open_paths(arguments.annotated)
    score = score_of(arguments, opened)
    name = noun(score)
    pieces = pieces_of_measurement(opened, arguments.tokenizer)
    statistics = token_statistics(opened, arguments.top, score)
    if not statistics.highest:
        raise ConfigError(
            f"no tokens: none of the {opened.num_rows} rows of {opened.files[0].parent} has a defined {name} "
            "(cal-inspect summary tells their statuses)"
        )
    if path:  # Before anything is printed, whose reader may leave.
        write_csv(path, statistics, pieces, name)
    console = flags.console()
    plural = "deltas" if name == "delta" else name
    console.print(_occurrences(f"highest {plural}", statistics.highest, pieces, score), "")
    console.print(_occurrences(f"lowest {plural}", statistics.lowest, pieces, score), "")
    _print_means(console, statistics, pieces, arguments, score)
    if path:
        console.print(f"{path}: every token")
    return 0


def _occurrences(title: str, occurrences: list[Occurrence], pieces: Pieces, score: Score) -> Table:
    columns = (noun(score), "sample_id", "token in its text")
    table = flags.table(*columns, left=columns[1:], title=title, overflow="fold")
    for item, text in zip(occurrences, aligned(occurrences, pieces), strict=True):
        table.add_row(format(item.score, number_form(score)), Text(printable(item.sample_id)), text)
    return table


def _print_means(
    console: Console, statistics: TokenStatistics, pieces: Pieces, arguments: argparse.Namespace, score: Score
) -> None:
    name, top, min_count = noun(score), arguments.top, arguments.min_count
    mean = statistics.mean()
    order = statistics.by_mean(min_count)
    if not len(order):
        console.print(f"no token occurs {min_count} times: lower --min_count for means by token")
        return
    for title, chosen in ((f"highest mean {name}", order[::-1][:top]), (f"lowest mean {name}", order[:top])):
        title = f"{title}, of tokens that occur at least {min_count} times"
        table = flags.table("mean", "count", "token", left=["token"], title=title)
        for token_id in chosen:
            table.add_row(
                format(mean[token_id], number_form(score)),
                f"{statistics.count[token_id]:,}",
                Text(f"[{printable(pieces.text_of(int(token_id)))}]"),
            )
        console.print(table, "")


def write_csv(path: Location, statistics: TokenStatistics, pieces: Pieces, name: str) -> None:
    """Columns token_id, token, count, and the mean (mean_delta); most frequent first."""
    ids = np.argsort(-statistics.count, kind="stable")[: np.count_nonzero(statistics.count)]
    texts = [printable(pieces.text_of(int(token_id))) for token_id in ids]
    columns = {"token": texts, "count": statistics.count[ids], f"mean_{name}": statistics.mean()[ids]}
    with flags.written(path) as local:
        pd.DataFrame({"token_id": ids, **columns}).to_csv(local, index=False, float_format="%.6g")
