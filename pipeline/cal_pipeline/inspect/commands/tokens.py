"""Prints the tokens with the highest and lowest deltas: occurrences with the text around them, and means by token.

Reads one batch of rows after the other: memory does not grow with the rows.
"""

from __future__ import annotations

import argparse
import heapq
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.tables.flat import LIST_COLUMNS, FlatTokens
from cal_pipeline.inspect.tables.reading import open_paths, read_batches
from cal_pipeline.inspect.tables.token_text import Pieces, pieces_of_measurement, printable
from cal_schemas.errors import ConfigError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.storage.locations import Location

CONTEXT = 8
"""Tokens shown on each side."""


@dataclass(frozen=True, slots=True, order=True)
class Occurrence:
    """One token of one row; ordered by delta, then by where it stands."""

    delta: float
    order: tuple[int, int]
    sample_id: str = field(compare=False)
    position: int = field(compare=False)
    before: tuple[int, ...] = field(compare=False)
    token_id: int = field(compare=False)
    after: tuple[int, ...] = field(compare=False)


@dataclass(kw_only=True, slots=True)
class TokenStatistics:
    """What one pass over the shards finds."""

    highest: list[Occurrence]
    lowest: list[Occurrence]
    count: np.ndarray
    """[V] int64, defined deltas of every token id."""
    total: np.ndarray
    """[V] float64, their sum."""

    def mean(self) -> np.ndarray:
        """[V] float64, NaN where a token does not occur."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.total / self.count)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cal-inspect tokens`."""
    flags.add_annotated(parser)
    flags.add_tokenizer(parser)
    parser.add_argument("--top", type=flags.at_least(1), default=15, help="how many of each (default 15)")
    parser.add_argument(
        "--min_count", type=flags.at_least(1), default=5, help="means are of tokens that occur so often (default 5)"
    )
    parser.add_argument("--output", type=flags.place, help="FILE.csv: count and mean delta of every token")


def run(arguments: argparse.Namespace) -> int:
    """Prints four tables; 0."""
    path = flags.new_file(arguments.output, ".csv") if arguments.output else None
    opened = open_paths(arguments.annotated)
    pieces = pieces_of_measurement(opened, arguments.tokenizer)
    statistics = token_statistics(opened, arguments.top)
    if not statistics.highest:
        raise ConfigError(
            f"no tokens: none of the {opened.num_rows} rows of {opened.files[0].parent} has a defined delta "
            "(cal-inspect summary tells their statuses)"
        )
    if path:  # Before anything is printed, whose reader may leave.
        write_csv(path, statistics, pieces)
    console = flags.console()
    console.print(_occurrences("highest deltas", statistics.highest, pieces), "")
    console.print(_occurrences("lowest deltas", statistics.lowest, pieces), "")
    _print_means(console, statistics, pieces, arguments.top, arguments.min_count)
    if path:
        console.print(f"{path}: every token")
    return 0


def token_statistics(opened: AnnotatedDataset, top: int) -> TokenStatistics:
    """One pass; the `top` highest and lowest occurrences, and sums by token id."""
    highest: list[Occurrence] = []
    lowest: list[Occurrence] = []
    count, total = np.zeros(0, np.int64), np.zeros(0)
    for number, batch in enumerate(read_batches(opened, ["sample_id", *LIST_COLUMNS])):
        flat = FlatTokens.of(batch.data)
        defined = np.flatnonzero(~np.isnan(flat.deltas))
        if not len(defined):
            continue
        ids, deltas = flat.label_ids[defined], flat.deltas[defined]
        size = max(len(count), int(ids.max()) + 1)
        count = np.pad(count, (0, size - len(count)))
        total = np.pad(total, (0, size - len(total)))
        count += np.bincount(ids, minlength=size)
        total += np.bincount(ids, weights=deltas, minlength=size)
        order = np.argsort(deltas, kind="stable")
        for kept, chosen, pick in (
            (lowest, order[:top], heapq.nsmallest),
            (highest, order[::-1][:top], heapq.nlargest),
        ):
            new = [_occurrence(flat, int(defined[at]), batch.data.column("sample_id"), number) for at in chosen]
            kept[:] = pick(top, [*kept, *new])
    return TokenStatistics(highest=highest, lowest=lowest, count=count, total=total)


def _occurrence(flat: FlatTokens, at: int, sample_ids: object, batch: int) -> Occurrence:
    row = int(flat.row[at])
    stop = int(flat.lengths[: row + 1].sum())
    start = stop - int(flat.lengths[row])
    return Occurrence(
        delta=float(flat.deltas[at]),
        order=(batch, at),
        sample_id=sample_ids[row].as_py(),  # type: ignore[index]
        position=int(flat.positions[at]),
        before=tuple(flat.label_ids[max(start, at - CONTEXT) : at].tolist()),
        token_id=int(flat.label_ids[at]),
        after=tuple(flat.label_ids[at + 1 : min(stop, at + 1 + CONTEXT)].tolist()),
    )


def _occurrences(title: str, occurrences: list[Occurrence], pieces: Pieces) -> Table:
    columns = ("delta", "sample_id", "token in its text")
    table = flags.table(*columns, left=columns[1:], title=title, overflow="fold")
    texts = []
    for item in occurrences:
        before, token, after = (
            printable("".join(pieces.spelled(ids))) for ids in (item.before, (item.token_id,), item.after)
        )
        # A blank before a word stands outside of the brackets, a blank alone inside.
        blank = len(token) - len(token.lstrip()) if token.strip() else 0
        texts.append((before + token[:blank], token[blank:], after))
    width = max((cell_len(before) for before, _, _ in texts), default=0)
    for item, (before, token, after) in zip(occurrences, texts, strict=True):
        indent = " " * (width - cell_len(before))  # Brackets below each other.
        text = Text.assemble(indent, before, (f"[{token}]", "bold reverse"), after)
        table.add_row(f"{item.delta:.2f}", Text(printable(item.sample_id)), text)
    return table


def _print_means(console: Console, statistics: TokenStatistics, pieces: Pieces, top: int, min_count: int) -> None:
    mean = statistics.mean()
    often = np.flatnonzero(statistics.count >= min_count)
    if not len(often):
        console.print(f"no token occurs {min_count} times: lower --min_count for means by token")
        return
    order = often[np.argsort(mean[often], kind="stable")]
    for title, chosen in (("highest mean delta", order[::-1][:top]), ("lowest mean delta", order[:top])):
        title = f"{title}, of tokens that occur at least {min_count} times"
        table = flags.table("mean", "count", "token", left=["token"], title=title)
        for token_id in chosen:
            table.add_row(
                f"{mean[token_id]:.2f}",
                f"{statistics.count[token_id]:,}",
                Text(f"[{printable(pieces.text_of(int(token_id)))}]"),
            )
        console.print(table, "")


def write_csv(path: Location, statistics: TokenStatistics, pieces: Pieces) -> None:
    """Columns token_id, token, count, mean_delta; most frequent first."""
    ids = np.argsort(-statistics.count, kind="stable")[: np.count_nonzero(statistics.count)]
    texts = [printable(pieces.text_of(int(token_id))) for token_id in ids]
    columns = {"token": texts, "count": statistics.count[ids], "mean_delta": statistics.mean()[ids]}
    with flags.written(path) as local:
        pd.DataFrame({"token_id": ids, **columns}).to_csv(local, index=False, float_format="%.6g")
