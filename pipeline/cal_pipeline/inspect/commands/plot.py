"""Draws histograms of delta, or another score, with its cumulative share, and of weights (CAL, Fig. 4): PNG, SVG, PDF.

    cal-inspect plot annotated/ --output deltas.png
    cal-inspect plot annotated/ --output turns.svg --by turn
    cal-inspect plot annotated/ --output deltas.pdf --alpha 0.5 --beta 3
    cal-inspect plot annotated/ --output kl.png --score kl --map top_share=0.4

Reads one batch of rows after the other: memory does not grow with the rows. `--by` reads twice, first to find out which
groups have most tokens.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.tables.answers import ANSWER_COLUMNS, irregular_answers
from cal_pipeline.inspect.tables.flat import FlatTokens, noun, token_columns
from cal_pipeline.inspect.tables.reading import open_paths, read_batches
from cal_pipeline.inspect.tables.stored_columns import plain, scalar_columns
from cal_pipeline.inspect.tables.weighting import weighting_of
from cal_schemas.counted import counted
from cal_schemas.delta_counts import DeltaCounts
from cal_schemas.errors import ConfigError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.scores import DEFAULT_SCORE, Score

NO_VALUE, OTHERS = "(null)", "(others)"
MAX_SHOWN = 8
_BITS = 18


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cal-inspect plot`."""
    flags.add_annotated(parser)
    flags.add_weighting(parser)
    parser.add_argument("--output", type=flags.place, default="deltas.png", help="FILE.png, .svg or .pdf")
    parser.add_argument(
        "--by", metavar="source|turn|COLUMN", help="one outline for each source, turn, or value of a stored column"
    )


def run(arguments: argparse.Namespace) -> int:
    """Draws and names the file; 0."""
    from cal_pipeline.inspect.page import plots

    opened = open_paths(arguments.annotated)
    weighting = weighting_of(arguments, opened)
    path = flags.new_file(arguments.output, *flags.FIGURE_SUFFIXES)
    groups = count_groups(opened, arguments.by, **weighting)
    name = noun(weighting["score"])
    tokens = sum(scores.defined for scores, _ in groups.values())
    if not tokens:
        raise ConfigError(
            f"nothing to plot: none of the {opened.num_rows} rows of {opened.files[0].parent} has a defined {name} "
            "(cal-inspect summary tells their statuses)"
        )
    figure = plots.score_figure(
        groups,
        alpha=weighting["alpha"],
        beta=weighting["beta"],
        score=weighting["score"],
        map=weighting["map"],
        title=f"{counted(tokens, 'token')} of {counted(opened.num_rows, 'row')}, measured with {opened.spec.model_id}",
    )
    plots.save(figure, path)
    said = "" if arguments.by is None else f" in {counted(len(groups), 'group')}"
    flags.say(f"{path}: {counted(tokens, 'token')}{said}")
    return 0


def count_groups(
    opened: AnnotatedDataset, by: str | None, *, score: Score = DEFAULT_SCORE, **weighting: Any
) -> dict[str, tuple[DeltaCounts, DeltaCounts]]:
    """Scores and weights of the tokens with a defined score, by group: the MAX_SHOWN with most, and the rest as one.

    `by` is `source` (the data path of a row), `turn` (which answer of the conversation), or a stored column with one
    value a row (`source_turn`: the stored one of that name); None makes one group. Groups are in order of appearance.
    Raises ConfigError for an unknown `by`, naming those there are.
    """
    left_out = ("sample_id", "sample_key", "error")
    own = {address: name for address, name in scalar_columns(opened.schema, score).items() if name not in left_out}
    if by is not None and by not in ("source", "turn", *own):
        raise ConfigError(f"--by {by}: there are {', '.join(dict.fromkeys(['source', 'turn', *own]))}")
    column = None if by is None else own.get(by)
    tokens: Counter[str] = Counter()
    for names, numbers, flat in _grouped(opened, by, column, score) if by is not None else ():
        defined = np.bincount(numbers[~np.isnan(flat.scores)], minlength=len(names)).tolist()
        tokens.update({name: count for name, count in zip(names, defined, strict=True) if count})
    most = {name for name, _ in tokens.most_common(MAX_SHOWN)}
    shown = [name for name in tokens if name in most] if by is not None else ["all tokens"]
    if len(tokens) > len(shown):
        shown.append(OTHERS)
    place = {name: at for at, name in enumerate(shown)}
    groups = {name: (DeltaCounts(bits=_BITS), DeltaCounts(bits=_BITS)) for name in shown}
    for names, numbers, flat in _grouped(opened, by, column, score):
        # Bytes are sorted in one go, however many groups there are.
        group = np.array([place.get(name, MAX_SHOWN) for name in names], np.uint8)[numbers]
        group[np.isnan(flat.scores)] = MAX_SHOWN + 1
        order = np.argsort(group, kind="stable")
        weights = flat.weights(**weighting)
        for counts, part in zip(groups.values(), np.split(order, np.cumsum(np.bincount(group))), strict=False):
            counts[0].add(flat.scores[part])
            counts[1].add(weights[part])
    return groups


def _grouped(
    opened: AnnotatedDataset, by: str | None, column: str | None, score: Score
) -> Iterator[tuple[list[str], np.ndarray, FlatTokens]]:
    """(names of groups, [N] number of each token's group, the tokens) of every batch that has tokens."""
    source_of = {path: item.source.data_path for path, item in zip(opened.files, opened.metadata, strict=True)}
    extra = [*ANSWER_COLUMNS] if by == "turn" else [] if column is None else [column]
    for batch in read_batches(opened, [*token_columns(score), *extra]):
        flat = FlatTokens.of(batch.data, score)
        if not len(flat.scores):
            continue
        if column is not None:
            names, of_row = _values(batch.data.column(column))
            yield names, of_row[flat.row], flat
        elif by == "turn":
            numbers, present = pd.factorize(flat.turns(irregular_answers(batch.data)), sort=True)
            yield [f"turn {turn}" for turn in present], numbers, flat
        else:
            name = "all tokens" if by is None else source_of[batch.file]
            yield [name], np.zeros(len(flat.scores), np.int64), flat


def _values(column: pa.Array) -> tuple[list[str], np.ndarray]:
    """(the distinct values as text, [R] number of each row's)."""
    column = plain(column)
    if pa.types.is_timestamp(column.type) or pa.types.is_time(column.type):  # Python's own are coarser or narrower.
        column = column.cast(pa.large_string())
    encoded = column.dictionary_encode()
    names = [str(value) for value in encoded.dictionary.to_pylist()]
    # A value that is spelled like a name of ours stands in quotes.
    names = [repr(name) if name in (NO_VALUE, OTHERS) else name for name in names]
    return [*names, NO_VALUE], np.asarray(encoded.indices.fill_null(len(names)))
