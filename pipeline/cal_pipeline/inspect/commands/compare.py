"""Compares two measurements of the same samples, joined by sample_key: how far deltas and weights are apart.

    cal-inspect compare annotated_7b/ annotated_13b/
    cal-inspect compare annotated_7b/ annotated_13b/ --output scatter.png
    cal-inspect compare annotated_7b/ annotated_13b/ --json

Equal samples have equal keys; where a key occurs several times the first is joined to the first, and so on. B's deltas
are held in memory (4 bytes a token), and about 100 bytes a row; A streams by.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.flags import say
from cal_pipeline.inspect.tables.flat import LIST_COLUMNS, FlatTokens
from cal_pipeline.inspect.tables.joining import BATCH_ROWS, Rows, keyed_by_bytes, matching_rows, read_rows
from cal_pipeline.inspect.tables.reading import open_paths, read_batches
from cal_schemas.counted import are, counted
from cal_schemas.errors import ConfigError
from cal_schemas.opened import AnnotatedDataset

MOVED = 0.05
"""A weight that differs by more has moved."""
_NAMED = 5
_RANGE, _BINS = 20.0, 160
"""The scatter plot's square in logits (what lies outside is drawn at its edge), and its bins."""
_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Comparison:
    """Sums over the tokens that both measured, filled batch by batch."""

    weighting: Mapping[str, Any]
    """alpha, beta, window and pool."""
    rows_a: int = 0
    rows_b: int = 0
    joined: int = 0
    both_ok: int = 0
    other_labels: int = 0
    examples: list[str] = field(default_factory=list)
    """sample_ids of the first rows whose label ids differ."""
    tokens: int = 0
    undefined_in_one: int = 0
    moved: int = 0
    max_difference: float = 0.0
    sums: np.ndarray = field(default_factory=lambda: np.zeros(7))
    """Of a, b, a*a, b*b, a*b, a-b, |a-b|."""
    grid: np.ndarray = field(default_factory=lambda: np.zeros((_BINS, _BINS), np.int64))

    def add(self, mine: FlatTokens, b: np.ndarray) -> None:
        """Counts N tokens of A and the deltas [N] of the same tokens in B, NaN where undefined."""
        a = mine.deltas
        weights = [flat.weights(**self.weighting) for flat in (mine, replace(mine, deltas=b))]
        defined = ~(np.isnan(a) | np.isnan(b))
        self.undefined_in_one += int((np.isnan(a) != np.isnan(b)).sum())
        a, b = a[defined].astype(np.float64), b[defined].astype(np.float64)
        if not len(a):
            return
        difference = a - b
        self.tokens += len(a)
        self.sums += [a.sum(), b.sum(), a @ a, b @ b, a @ b, difference.sum(), np.abs(difference).sum()]
        self.max_difference = max(self.max_difference, float(np.abs(difference).max()))
        self.moved += int((np.abs(weights[0] - weights[1])[defined] > MOVED).sum())
        bins = [np.clip((values + _RANGE) * (_BINS / (2 * _RANGE)), 0, _BINS - 1).astype(np.int64) for values in (a, b)]
        self.grid += np.bincount(bins[0] * _BINS + bins[1], minlength=_BINS * _BINS).reshape(_BINS, _BINS)

    def result(self) -> dict[str, Any]:
        """Plain values, of at least one token; differences are A minus B, in logits."""
        n = self.tokens
        a, b, aa, bb, ab, signed, absolute = self.sums
        variances = (aa - a * a / n) * (bb - b * b / n)
        correlation = (ab - a * b / n) / math.sqrt(variances) if variances > 1e-12 * (aa * bb or 1.0) else None
        names = ("rows_a", "rows_b", "joined", "both_ok", "other_labels", "examples", "tokens", "undefined_in_one")
        return {
            **{name: getattr(self, name) for name in names},
            "correlation": None if correlation is None else min(1.0, max(-1.0, correlation)),
            "mean_difference": signed / n,
            "mean_absolute_difference": absolute / n,
            "rms_difference": math.sqrt(max(aa + bb - 2 * ab, 0.0) / n),
            "max_difference": self.max_difference,
            "share_moved": self.moved / n,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cal-inspect compare`."""
    parser.add_argument("a", type=flags.place, metavar="A", help="annotated directory")
    parser.add_argument("b", type=flags.place, metavar="B", help="another measurement of the same samples")
    flags.add_weighting(parser)
    parser.add_argument("--output", type=flags.place, metavar="FILE", help="scatter plot as .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Prints the comparison; 0. Two directories with nothing to compare are refused."""
    weighting = flags.weighting_of(arguments)
    a, b = open_paths(arguments.a), open_paths(arguments.b)
    path = None
    if arguments.output:
        from cal_pipeline.inspect.page import plots

        path = flags.new_file(arguments.output, *flags.FIGURE_SUFFIXES)
    comparison = compare(a, b, weighting)
    _validate(comparison, arguments, a, b)
    result = comparison.result()
    differing = {name: [one, other] for name, one, other in a.spec.differences(b.spec)}
    if arguments.json:
        print(json.dumps({**result, "spec_differences": differing}, indent=1, allow_nan=False))  # noqa: T201
    else:
        _print(result, differing, arguments)
    if path:
        names = (arguments.a.name or str(arguments.a), arguments.b.name or str(arguments.b))
        title = f"{result['tokens']:,} tokens, correlation {_correlation(result)}"
        figure = plots.scatter_figure(
            *_trimmed(comparison), names=names, alpha=weighting["alpha"], beta=weighting["beta"], title=title
        )
        plots.save(figure, path)
        if not arguments.json:
            print(path)  # noqa: T201
    return 0


def _validate(comparison: Comparison, arguments: argparse.Namespace, a: AnnotatedDataset, b: AnnotatedDataset) -> None:
    ok, others = comparison.both_ok, comparison.other_labels
    alone = comparison.joined < min(comparison.rows_a, comparison.rows_b)
    keyed = (keyed_by_bytes(a), keyed_by_bytes(b)) if alone else (None, None)
    if comparison.tokens:
        if None not in keyed and keyed[0] != keyed[1]:
            _log.warning("some rows are in A or B alone: %s", _why_other_keys(*keyed))
        return
    if not comparison.joined:
        reason = f"no sample_key is in both; {_why_other_keys(*keyed)}"
    elif not ok:
        reason = f"of {comparison.joined} joined rows none is ok in both"
    elif others == ok:
        examples = ", ".join(comparison.examples)
        reason = (
            f"all {others} rows that are ok in both have other label ids ({examples}): another tokenizer or template"
        )
    else:
        reason = "no token has a defined delta in both"
    raise ConfigError(
        f"nothing to compare in {arguments.a} ({comparison.rows_a} rows) and {arguments.b} ({comparison.rows_b} rows): "
        f"{reason}"
    )


def _why_other_keys(a: bool | None, b: bool | None) -> str:
    """What can be the reason, by what `keyed_by_bytes` says of both."""
    if a is None or b is None:
        return "words or images differ, or images were embedded in one and named by path in the other"
    if a != b:
        one, other = ("A", "B") if a else ("B", "A")
        return f"{one} was measured from embedded images, {other} from paths: measure both from the same source"
    how = "embedded images, so the words or the images" if a else "image paths, so the words or the paths"
    return f"both were measured from {how} differ: a key is made from them"


def compare(a: AnnotatedDataset, b: AnnotatedDataset, weighting: Mapping[str, Any]) -> Comparison:
    """Joins by key and counts; see `Comparison`."""
    comparison = Comparison(weighting=weighting, rows_a=a.num_rows, rows_b=b.num_rows)
    matches = matching_rows(a, b)
    comparison.joined = int((matches >= 0).sum())
    theirs = read_rows(b)
    stop = 0
    for batch in read_batches(a, ["sample_id", "status", *LIST_COLUMNS], BATCH_ROWS):
        flat = FlatTokens.of(batch.data)
        mine = Rows.of(batch.data.column("status"), flat)
        start, stop = stop, stop + len(mine.ok)
        match = matches[start:stop]
        rows = np.flatnonzero((match >= 0) & mine.ok)
        rows = rows[theirs.ok[match[rows]]]
        same = (mine.lengths[rows] == theirs.lengths[match[rows]]) & (mine.digests[rows] == theirs.digests[match[rows]])
        comparison.both_ok += len(rows)
        comparison.add(flat.take(rows[same]), theirs.tokens(match[rows[same]]))
        comparison.other_labels += int((~same).sum())
        ids = batch.data.column("sample_id")
        left = rows[~same][: max(0, _NAMED - len(comparison.examples))]
        comparison.examples += [ids[int(row)].as_py() for row in left]
    return comparison


def _trimmed(comparison: Comparison) -> tuple[np.ndarray, np.ndarray]:
    """The square around 0 that holds every counted token."""
    middle = _BINS // 2
    used = np.flatnonzero(comparison.grid.any(0) | comparison.grid.any(1))
    half = int(np.clip(max(middle - used.min(), used.max() + 1 - middle) + 2, 8, middle))
    inner = slice(middle - half, middle + half)
    edges = np.linspace(-_RANGE, _RANGE, _BINS + 1)  # in logits
    return comparison.grid[inner, inner], edges[middle - half : middle + half + 1]


def _correlation(result: Mapping[str, Any]) -> str:
    value = result["correlation"]
    return "undefined (no spread)" if value is None else f"{value:.4f}"


def _print(result: Mapping[str, Any], differing: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    say(f"A: {arguments.a}, {counted(result['rows_a'], 'row')}\nB: {arguments.b}, {counted(result['rows_b'], 'row')}")
    only = [result[f"rows_{side}"] - result["joined"] for side in "ab"]
    say(f"{counted(result['joined'], 'row')} joined by sample_key ({only[0]:,} only in A, {only[1]:,} only in B); "
        f"{result['both_ok']:,} {are(result['both_ok'])} ok in both")  # fmt: skip
    if result["other_labels"]:
        say(
            f"{result['other_labels']:,} of them have other label ids and are left out: {', '.join(result['examples'])}"
        )
    undefined = result["undefined_in_one"]
    note = f"; {undefined:,} are undefined in one of the two" if undefined else ""
    say(f"{counted(result['tokens'], 'token')} compared{note}")
    say(f"correlation               {_correlation(result)}")
    say(f"mean difference, A - B    {result['mean_difference']:+#.4g} logits")
    say(f"mean absolute difference  {result['mean_absolute_difference']:#.4g} logits")
    say(f"rms difference            {result['rms_difference']:#.4g} logits")
    say(f"max difference            {result['max_difference']:#.4g} logits")
    say(f"weight moved by more than {MOVED}: {result['share_moved']:.2%} of the tokens")
    say("measured alike" if not differing else "measured differently:")
    for name, (one, other) in differing.items():
        say(f"  {name}: {one!r} in A, {other!r} in B")
