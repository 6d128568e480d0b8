"""Writes what was counted as the tables of a page: titles, columns, and cells of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cal_pipeline.inspect.tables.row_groups import OTHERS, RowGroup
from cal_pipeline.inspect.tables.token_statistics import Occurrence, TokenStatistics
from cal_pipeline.inspect.tables.token_text import Pieces, printable

MIN_COUNT = 5
"""Means are of tokens that occur at least so often."""
TOP_TOKENS = 15
"""Shown of each kind."""
MAX_SOURCES = 20
"""Shown one by one: those with most rows."""
Cell = str | dict[str, Any]
"""Text, or `{"row", "text"}`, which leads to that row's card, or `{"before", "token", "after"}`."""


def page_tables(
    summary: Mapping[str, Any],
    by_status: Mapping[str, RowGroup],
    by_source: Mapping[str, RowGroup],
    tokens: TokenStatistics,
    pieces: Pieces | None,
) -> list[dict[str, Any]]:
    """One dict a table: `title`, `note`, `columns`, `left` (numbers of the columns with text), and `rows` of cells."""
    made = [_statuses(summary["statuses"], by_status), _turns(summary["turns"]), _sources(by_source)]
    if pieces is not None and len(tokens.count):
        made += _by_mean(tokens, pieces)
        for title, items in (("Lowest deltas of single tokens", tokens.lowest), ("Highest deltas of single tokens",
                             tokens.highest)):  # fmt: skip
            made.append(_occurrences(title, items, pieces))
    return [table for table in made if table["rows"]]


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], left: Sequence[int] = (0,),
           note: str = "") -> dict[str, Any]:  # fmt: skip
    return {
        "title": title,
        "note": note,
        "columns": list(columns),
        "left": list(left),
        "rows": [[*row] for row in rows],
    }


def _number(value: float | None, form: str = ".2f") -> str:
    return "\u2013" if value is None or math.isnan(value) else format(value, form)


def _statuses(counts: Mapping[str, int], groups: Mapping[str, RowGroup]) -> dict[str, Any]:
    rows = sum(counts.values())
    cells = [
        [
            name,
            f"{count:,}",
            f"{count / rows:.1%}",
            f"{groups[name].tokens:,}",
            printable((groups[name].error or "")[:300]),
        ]
        for name, count in counts.items()
    ]
    return _table("By status", ["status", "rows", "share", "tokens with a delta", "for example"], cells, (0, 4))


def _turns(turns: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    cells = [
        [name, f"{of['tokens']:,}", *(_number(of[key]) for key in ("mean", "q10", "q50", "q90")),
         _number(of["share_negative"], ".1%")]
        for name, of in turns.items()
    ]  # fmt: skip
    columns = ["answer", "tokens", "mean delta", "10% quantile", "median", "90% quantile", "below 0"]
    return _table("By turn", columns, cells, note="Answers of the conversation, from 1.")


def _sources(groups: Mapping[str, RowGroup]) -> dict[str, Any]:
    ordered = sorted(groups.items(), key=lambda item: (item[0] == OTHERS, -item[1].rows))
    shown = dict(ordered[:MAX_SOURCES])
    cells = [
        [printable(name), f"{of.rows:,}", f"{of.ok:,}", f"{of.tokens:,}", _number(of.mean), _number(of.lowest),
         _number(of.negative / of.tokens if of.tokens else None, ".1%")]
        for name, of in shown.items()
    ]  # fmt: skip
    columns = ["source", "rows", "ok", "tokens", "mean delta", "lowest", "below 0"]
    left_out = len(groups) - len(shown)
    note = f"The {MAX_SOURCES} with most rows; {left_out:,} more are not shown." if left_out else ""
    return _table("By source", columns, cells, note=note)


def _by_mean(tokens: TokenStatistics, pieces: Pieces) -> list[dict[str, Any]]:
    mean, order = tokens.mean(), tokens.by_mean(MIN_COUNT)
    made = []
    for title, ids in (("Tokens the image speaks against", order[:TOP_TOKENS]),
                       ("Tokens the image speaks for", order[::-1][:TOP_TOKENS])):  # fmt: skip
        cells: list[list[Cell]] = [
            [{"before": "", "token": printable(pieces.text_of(int(at))), "after": ""}, _number(mean[at]),
             f"{tokens.count[at]:,}"]
            for at in np.asarray(ids)
        ]  # fmt: skip
        note = f"By mean delta, of tokens that occur at least {MIN_COUNT} times."
        made.append(_table(title, ["token", "mean delta", "times"], cells, note=note))
    return made


def _occurrences(title: str, items: Sequence[Occurrence], pieces: Pieces) -> dict[str, Any]:
    cells: list[list[Cell]] = []
    for item in items:
        before, token, after = item.in_text(pieces)
        row = item.order[0]
        cells.append([_number(item.delta), {"row": row, "text": printable(item.sample_id)},
                      {"before": before, "token": token, "after": after}])  # fmt: skip
    return _table(title, ["delta", "sample", "token in its text"], cells, (1, 2))
