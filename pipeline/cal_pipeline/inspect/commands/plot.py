"""Draws the histogram of delta with alpha, beta and the cumulative share, as PNG, SVG or PDF (CAL, Fig. 4).

Reads one batch of rows after the other: memory does not grow with the rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.tables.answers import ANSWER_COLUMNS, irregular_answers
from cal_pipeline.inspect.tables.flat import LIST_COLUMNS, FlatTokens
from cal_pipeline.inspect.tables.reading import open_paths, read_batches
from cal_pipeline.inspect.tables.stored_columns import plain, scalar_columns
from cal_schemas.delta_counts import DeltaCounts
from cal_schemas.errors import ConfigError
from cal_schemas.opened import AnnotatedDataset

OTHERS = "(others)"
MAX_SHOWN = 8
_MAX_COUNTED = 64
_BITS = 18


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cal-inspect plot`."""
    flags.add_annotated(parser)
    flags.add_weighting(parser)
    parser.add_argument("--output", type=Path, default=Path("deltas.png"), help="FILE.png, .svg or .pdf")
    parser.add_argument(
        "--by", metavar="source|turn|COLUMN", help="one outline for each source, turn, or value of a stored column"
    )


def run(arguments: argparse.Namespace) -> int:
    """Draws and names the file; 0."""
    from cal_pipeline.inspect.page import plots

    opened = open_paths(arguments.annotated)
    weighting = flags.weighting_of(arguments)
    path = flags.new_file(arguments.output, *flags.FIGURE_SUFFIXES)
    groups = shown_groups(count_groups(opened, arguments.by))
    tokens = sum(counts.defined for counts in groups.values())
    if not tokens:
        raise ConfigError(
            f"nothing to plot: none of the {opened.num_rows} rows of {opened.files[0].parent} has a defined delta "
            "(cal-inspect summary tells their statuses)"
        )
    figure = plots.delta_figure(
        groups,
        alpha=weighting["alpha"],
        beta=weighting["beta"],
        title=f"{tokens:,} tokens of {opened.num_rows:,} rows, measured with {opened.spec.model_id}",
    )
    plots.save(figure, path)
    print(f"{path}: {tokens:,} tokens" + (f" in {flags.counted(len(groups), 'group')}" if arguments.by else ""))  # noqa: T201
    return 0


def count_groups(opened: AnnotatedDataset, by: str | None) -> dict[str, DeltaCounts]:
    """Deltas counted by group, in order of appearance; one group where `by` is None.

    `by` is `source` (the data path of a row), `turn` (which answer of the conversation), or a stored column with one
    value a row (`source_turn`: the stored one of that name). Raises ConfigError for an unknown one, naming those there
    are.
    """
    left_out = ("sample_id", "sample_key", "error")
    own = {address: name for address, name in scalar_columns(opened.schema).items() if name not in left_out}
    if by is not None and by not in ("source", "turn", *own):
        raise ConfigError(f"--by {by}: there are {', '.join(dict.fromkeys(['source', 'turn', *own]))}")
    column = None if by is None else own.get(by)
    groups: dict[str, DeltaCounts] = {}
    for names, numbers, deltas in _grouped(opened, by, column):
        for number, name in enumerate(names):
            # Past a number of groups that nobody can look at, the rest is one.
            key = name if name in groups or len(groups) < _MAX_COUNTED else OTHERS
            groups.setdefault(key, DeltaCounts(bits=_BITS)).add(
                deltas if len(names) == 1 else deltas[numbers == number]
            )
    return groups


def _grouped(
    opened: AnnotatedDataset, by: str | None, column: str | None
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """(names of groups, [N] number of each token's group, [N] deltas) of every batch."""
    source_of = {path: item.source.data_path for path, item in zip(opened.files, opened.metadata, strict=True)}
    extra = [*ANSWER_COLUMNS] if by == "turn" else [] if column is None else [column]
    for batch in read_batches(opened, [*LIST_COLUMNS, *extra]):
        flat = FlatTokens.of(batch.data)
        if not len(flat.deltas):
            continue
        if column is not None:
            numbers, names = pd.factorize(_text(batch.data.column(column)))
            yield list(names), numbers[flat.row], flat.deltas
        elif by == "turn":
            numbers, present = pd.factorize(flat.turns(irregular_answers(batch.data)), sort=True)
            yield [f"turn {turn}" for turn in present], numbers, flat.deltas
        else:
            name = "all tokens" if by is None else source_of[batch.file]
            yield [name], np.zeros(len(flat.deltas), np.int64), flat.deltas


def _text(column: pa.Array) -> np.ndarray:
    column = plain(column)
    if pa.types.is_timestamp(column.type) or pa.types.is_time(column.type):  # Python's own are coarser or narrower.
        column = column.cast(pa.large_string())
    return np.array([str(value) for value in column.to_pylist()], dtype=object)


def shown_groups(groups: dict[str, DeltaCounts]) -> dict[str, DeltaCounts]:
    """The MAX_SHOWN groups with most tokens, in their order, and the rest as one."""
    kept: set[str] = set(sorted(groups, key=lambda name: (name == OTHERS, -groups[name].defined))[:MAX_SHOWN])
    shown: dict[str, DeltaCounts] = {name: counts for name, counts in groups.items() if name in kept and counts.defined}
    rest: list[Any] = [counts for name, counts in groups.items() if name not in kept]
    if rest:
        shown[OTHERS] = DeltaCounts(bits=_BITS)
        for counts in rest:
            shown[OTHERS].merge(counts)
    return shown
