"""Scores how well deltas agree with what people marked on a sheet of `cal-inspect export --to labelling-sheet`.

    cal-inspect agreement sheet/sheet.csv
    cal-inspect agreement sheet/sheet.csv --json
    cal-inspect agreement sheet/sheet.csv --annotated annotated/

A mark in the column `contradictory` is yes or no (also 1/0, x, true/false, y/n, ja/nein, oui/non, si); empty rows are
left out and counted, `?` is unsure. The measured scores are in measured.csv beside the sheet, which the people who mark
do not need. Reads what spreadsheets make of a CSV: a byte order mark, semicolons or tabs, UTF-16, Windows-1252.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.tables.flat import token_columns
from cal_pipeline.inspect.tables.labelling_sheet import KEY_COLUMN, KEY_PREFIX, MARK_COLUMN, MEASURED, SCORES
from cal_pipeline.inspect.tables.reading import open_paths, read_batches
from cal_pipeline.inspect.tables.spreadsheet import read_table
from cal_pipeline.inspect.tables.statistics import auc, computed_columns
from cal_schemas.counted import counted
from cal_schemas.errors import ConfigError
from cal_schemas.scores import DEFAULT_SCORE

_YES = {"1", "x", "yes", "y", "true", "t", "ja", "j", "wahr", "oui", "o", "vrai", "si", "s\u00ed", "s", "verdadero",
        "vero"}  # fmt: skip
_NO = {"0", "no", "n", "false", "f", "nein", "falsch", "non", "faux", "falso", "-"}
_UNSURE = {"?", "unsure", "maybe"}
_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Marks:
    """What is on a sheet: key -> contradictory or not, and how many rows say nothing."""

    by_key: Mapping[str, bool]
    unmarked: int
    unsure: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cal-inspect agreement`."""
    parser.add_argument(
        "sheet", type=flags.place, nargs="+", metavar="SHEET.csv", help="marked sheet; one for each person"
    )
    parser.add_argument(
        "--annotated", type=flags.place, nargs="+", help="take the scores from these shards instead of measured.csv"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Prints the agreement of every score with the marks; 0."""
    if len({path.resolve() for path in arguments.sheet}) < len(arguments.sheet):
        raise ConfigError("a sheet is named twice, and would count as two people: name each person's once")
    sheets = [read_marks(path) for path in arguments.sheet]
    marked = {key for sheet in sheets for key in sheet.by_key}
    scores = (
        scores_of_shards(arguments.annotated, marked)
        if arguments.annotated
        else _scores_beside([path.with_name(MEASURED) for path in arguments.sheet])
    )
    result = agreement(sheets, scores, arguments.sheet)
    if arguments.json:
        print(json.dumps(result, indent=1, allow_nan=False))  # noqa: T201
    else:
        _print(result)
    return 0


def read_marks(path: Path) -> Marks:
    """Marks of one person; ConfigError for a mark that means nothing or a row that is marked twice differently."""
    by_key: dict[str, bool] = {}
    unmarked = unsure = 0
    for number, row in enumerate(read_table(path, [KEY_COLUMN, MARK_COLUMN]), start=1):
        mark = row[MARK_COLUMN].strip().lower()
        key = row[KEY_COLUMN].strip().lower().removeprefix(KEY_PREFIX)
        if not mark:
            unmarked += 1
        elif mark in _UNSURE:
            unsure += 1
        elif mark not in _YES | _NO:
            raise ConfigError(
                f"{path}: row {number} has the mark {mark!r}; write yes or no, leave it empty, or ? if unsure"
            )
        elif by_key.setdefault(key, mark in _YES) != (mark in _YES):
            raise ConfigError(
                f"{path}: row {number}, key {KEY_PREFIX}{key}, is marked yes in one row and no in another"
            )
    return Marks(by_key=by_key, unmarked=unmarked, unsure=unsure)


def _scores_beside(paths: Sequence[Path]) -> dict[str, dict[str, float]]:
    scores: dict[str, dict[str, float]] = {}
    for path in dict.fromkeys(paths):
        if not path.is_file():
            raise ConfigError(f"{path} is missing: it came with the sheet and holds the measured scores. Put it beside "
                              "the sheet, or name the shards with --annotated")  # fmt: skip
        for row in read_table(path, [KEY_COLUMN, *SCORES]):
            try:
                scores[row[KEY_COLUMN].removeprefix(KEY_PREFIX)] = {
                    name: float(row[name].replace(",", ".") or "nan") for name in SCORES
                }
            except ValueError as error:
                raise ConfigError(f"{path}: {error}") from error
    return scores


def scores_of_shards(paths: Sequence[Path], keys: Collection[str]) -> dict[str, dict[str, float]]:
    """Scores of the rows with these sample_keys, with the default weighting."""
    scores: dict[str, dict[str, float]] = {}
    for batch in read_batches(open_paths(paths), ["sample_key", *token_columns(DEFAULT_SCORE)]):
        values = computed_columns(batch.data, SCORES, alpha=1.0, beta=5.0, window=3, pool="span")
        columns = [values[name].tolist() for name in SCORES]
        for key, *row in zip(batch.data.column("sample_key").to_pylist(), *columns, strict=True):
            if key in keys:
                scores[key] = dict(zip(SCORES, row, strict=True))
    return scores


def agreement(
    sheets: Sequence[Marks], scores: Mapping[str, Mapping[str, float]], paths: Sequence[Path]
) -> dict[str, Any]:
    """AUC of every score against the marks (of several people: of the majority; a tie is left out), as plain values.

    Raises ConfigError when no marked row has a score, or when all marks are the same.
    """
    votes: dict[str, Counter[bool]] = {}
    for sheet in sheets:
        for key, mark in sheet.by_key.items():
            votes.setdefault(key, Counter())[mark] += 1
    marks = {key: count[True] > count[False] for key, count in votes.items() if count[True] != count[False]}
    known = [key for key in marks if key in scores]
    yes, no = ([key for key in known if marks[key] is value] for value in (True, False))
    names = ", ".join(map(str, paths))
    if not marks:
        raise ConfigError(f"{names}: no row is marked; write yes or no into the column {MARK_COLUMN!r}")
    if not known:
        raise ConfigError(f"{names}: none of the {len(marks)} marked rows has a measured score: another data set?")
    if not yes or not no:
        raise ConfigError(f"{names}: all {len(known)} marks are {'yes' if yes else 'no'}; agreement needs both")
    return {
        "marked": len(known),
        "contradictory": len(yes),
        "share_contradictory": len(yes) / len(known),
        "unmarked": sum(sheet.unmarked for sheet in sheets),
        "unsure": sum(sheet.unsure for sheet in sheets),
        "without_score": len(marks) - len(known),
        "ties": len(votes) - len(marks),
        "kappa": _kappa(sheets) if len(sheets) == 2 else None,
        "scores": {name: _scored(name, scores, yes, no) for name in SCORES},
    }


def _scored(
    name: str, scores: Mapping[str, Mapping[str, float]], yes: Sequence[str], no: Sequence[str]
) -> dict[str, Any]:
    sign = SCORES[name]
    high, low = (np.array([scores[key][name] for key in keys]) * sign for keys in (yes, no))
    high, low = high[~np.isnan(high)], low[~np.isnan(low)]
    if not len(high) or not len(low):
        return {"auc": None, "low": None, "high": None, "mean_contradictory": None, "mean_others": None}
    generator = np.random.default_rng(0)
    drawn = [auc(generator.choice(high, len(high)), generator.choice(low, len(low))) for _ in range(_RESAMPLES)]
    bounds = np.quantile(drawn, [0.025, 0.975])
    return {
        "auc": auc(high, low),
        "low": float(bounds[0]),
        "high": float(bounds[1]),
        "mean_contradictory": float(high.mean()) * sign,
        "mean_others": float(low.mean()) * sign,
    }


def _kappa(sheets: Sequence[Marks]) -> float | None:
    """Cohen's kappa of two people on the rows that both marked; None where it is undefined."""
    one, other = (sheet.by_key for sheet in sheets)
    both = [key for key in one if key in other]
    if not both:
        return None
    agreed = sum(one[key] == other[key] for key in both) / len(both)
    shares = [sum(marks[key] for key in both) / len(both) for marks in (one, other)]
    chance = shares[0] * shares[1] + (1 - shares[0]) * (1 - shares[1])
    return None if chance == 1 else (agreed - chance) / (1 - chance)


def _print(result: Mapping[str, Any]) -> None:
    left_out = ", ".join(
        f"{result[name]} {words}"
        for name, words in (("unmarked", "unmarked"), ("unsure", "unsure"), ("ties", "tied"),
                            ("without_score", "without a score"))
        if result[name]
    )  # fmt: skip
    print(  # noqa: T201
        f"{counted(result['marked'], 'marked sample')}, {result['contradictory']} contradictory "
        f"({result['share_contradictory']:.1%})" + (f"; left out: {left_out}" if left_out else "")
    )
    if result["kappa"] is not None:
        print(f"Cohen's kappa between the two people: {result['kappa']:.3f}")  # noqa: T201
    print("AUC: chance that a contradictory sample is told from another one (0.5: not at all); 95 % by resampling")  # noqa: T201
    print(f"{'score':20}{'AUC':>7}  {'95 %':15}{'contradictory':>14}{'others':>9}")  # noqa: T201
    for name, value in result["scores"].items():
        if value["auc"] is None:
            print(f"{name:20}{'-':>7}")  # noqa: T201
        else:
            interval = f"{value['low']:.3f} - {value['high']:.3f}"
            means = f"{value['mean_contradictory']:14.3f}{value['mean_others']:9.3f}"
            print(f"{name:20}{value['auc']:7.3f}  {interval:15}{means}")  # noqa: T201
