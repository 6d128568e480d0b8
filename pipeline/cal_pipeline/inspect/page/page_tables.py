"""Writes what was counted as the tables of a page: titles, columns, and cells of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cal_pipeline.inspect.tables.flat import noun, number_form
from cal_pipeline.inspect.tables.row_groups import OTHERS, RowGroup
from cal_pipeline.inspect.tables.token_statistics import Occurrence, TokenStatistics
from cal_pipeline.inspect.tables.token_text import Pieces, printable
from cal_schemas.scores import SCORES, Score

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
    score: Score = summary["score"]
    name = noun(score)
    plural = "deltas" if name == "delta" else name
    made = [
        _statuses(summary["statuses"], by_status, name),
        _turns(summary["turns"], score),
        _sources(by_source, score),
    ]
    if pieces is not None and len(tokens.count):
        made += _by_mean(tokens, pieces, score)
        for which, items in (("Lowest", tokens.lowest), ("Highest", tokens.highest)):
            made.append(_occurrences(f"{which} {plural} of single tokens", items, pieces, score))
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


def _number(value: float | None, form: str) -> str:
    return "\u2013" if value is None or math.isnan(value) else format(value, form)


def _statuses(counts: Mapping[str, int], groups: Mapping[str, RowGroup], name: str) -> dict[str, Any]:
    rows = sum(counts.values())
    cells = [
        [
            status,
            f"{count:,}",
            f"{count / rows:.1%}",
            f"{groups[status].tokens:,}",
            printable((groups[status].error or "")[:300]),
        ]
        for status, count in counts.items()
    ]
    return _table("By status", ["status", "rows", "share", f"tokens with {name}", "for example"], cells, (0, 4))


def _turns(turns: Mapping[str, Mapping[str, Any]], score: Score) -> dict[str, Any]:
    form = number_form(score)
    cells = [
        [turn, f"{of['tokens']:,}", *(_number(of[key], form) for key in ("mean", "q10", "q50", "q90")),
         _number(of["share_negative"], ".1%")]
        for turn, of in turns.items()
    ]  # fmt: skip
    columns = ["answer", "tokens", f"mean {noun(score)}", "10% quantile", "median", "90% quantile", "below 0"]
    return _table("By turn", columns, cells, note="Answers of the conversation, from 1.")


def _sources(groups: Mapping[str, RowGroup], score: Score) -> dict[str, Any]:
    form = number_form(score)
    ordered = sorted(groups.items(), key=lambda item: (item[0] == OTHERS, -item[1].rows))
    shown = dict(ordered[:MAX_SOURCES])
    cells = [
        [printable(source), f"{of.rows:,}", f"{of.ok:,}", f"{of.tokens:,}", _number(of.mean, form),
         _number(of.lowest, form), _number(of.negative / of.tokens if of.tokens else None, ".1%")]
        for source, of in shown.items()
    ]  # fmt: skip
    columns = ["source", "rows", "ok", "tokens", f"mean {noun(score)}", "lowest", "below 0"]
    left_out = len(groups) - len(shown)
    note = f"The {MAX_SOURCES} with most rows; {left_out:,} more are not shown." if left_out else ""
    return _table("By source", columns, cells, note=note)


def _by_mean(tokens: TokenStatistics, pieces: Pieces, score: Score) -> list[dict[str, Any]]:
    mean, order, name = tokens.mean(), tokens.by_mean(MIN_COUNT), noun(score)
    made = []
    titles = ("Tokens the image speaks against", "Tokens the image speaks for")
    if not SCORES[score].signed:
        titles = (f"Tokens of the lowest {name}", f"Tokens of the highest {name}")
    for title, ids in zip(titles, (order[:TOP_TOKENS], order[::-1][:TOP_TOKENS]), strict=True):
        cells: list[list[Cell]] = [
            [{"before": "", "token": printable(pieces.text_of(int(at))), "after": ""},
             _number(mean[at], number_form(score)), f"{tokens.count[at]:,}"]
            for at in np.asarray(ids)
        ]  # fmt: skip
        note = f"By mean {name}, of tokens that occur at least {MIN_COUNT} times."
        made.append(_table(title, ["token", f"mean {name}", "times"], cells, note=note))
    return made


def _occurrences(title: str, items: Sequence[Occurrence], pieces: Pieces, score: Score) -> dict[str, Any]:
    cells: list[list[Cell]] = []
    for item in items:
        before, token, after = item.in_text(pieces)
        row = item.order[0]
        cells.append([_number(item.score, number_form(score)), {"row": row, "text": printable(item.sample_id)},
                      {"before": before, "token": token, "after": after}])  # fmt: skip
    return _table(title, [noun(score), "sample", "token in its text"], cells, (1, 2))
