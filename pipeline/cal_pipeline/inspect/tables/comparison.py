"""Counts how far the scores and weights of two measurements of the same samples are apart, joined by sample_key."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cal_pipeline.inspect.tables.flat import FlatTokens, token_columns
from cal_pipeline.inspect.tables.joining import BATCH_ROWS, Rows, matching_rows, read_rows
from cal_pipeline.inspect.tables.reading import read_batches
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.scores import DEFAULT_SCORE, Score

MOVED = 0.05
"""A weight that differs by more has moved."""
_NAMED = 5
_RANGE, _BINS = 20.0, 160
"""The scatter plot's square in logits (what lies outside is drawn at its edge), and its bins; of other scores B's."""


@dataclass(kw_only=True)
class Comparison:
    """Sums over the tokens that both measured, filled batch by batch."""

    weightings: Sequence[Mapping[str, Any]]
    """Map, alpha, beta, window and pool of A and of B, which a map of all data may differ in."""
    range: float = _RANGE
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
        """Counts N tokens of A and the scores [N] of the same tokens in B, NaN where undefined."""
        a = mine.scores
        both = zip((mine, replace(mine, scores=b)), self.weightings, strict=True)
        weights = [flat.weights(**weighting) for flat, weighting in both]
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
        bins = [np.clip((values / self.range + 1) * (_BINS / 2), 0, _BINS - 1).astype(np.int64) for values in (a, b)]
        self.grid += np.bincount(bins[0] * _BINS + bins[1], minlength=_BINS * _BINS).reshape(_BINS, _BINS)

    def result(self) -> dict[str, Any]:
        """Plain values, of at least one token; differences are A minus B, in the score's unit."""
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


def compare(a: AnnotatedDataset, b: AnnotatedDataset, weightings: Sequence[Mapping[str, Any]]) -> Comparison:
    """Joins by key and counts; `weightings` are `weighting_of` each. See `Comparison`."""
    score: Score = weightings[0]["score"]
    of_weights = [{name: value for name, value in own.items() if name != "score"} for own in weightings]
    comparison = Comparison(weightings=of_weights, rows_a=a.num_rows, rows_b=b.num_rows)
    matches = matching_rows(a, b)
    comparison.joined = int((matches >= 0).sum())
    theirs = read_rows(b, score)
    if score != DEFAULT_SCORE:
        comparison.range = float(np.nanmax(np.abs(theirs.scores), initial=0.0)) or 1.0
    stop = 0
    for batch in read_batches(a, ["sample_id", "status", *token_columns(score)], BATCH_ROWS):
        flat = FlatTokens.of(batch.data, score)
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


def trimmed(comparison: Comparison) -> tuple[np.ndarray, np.ndarray]:
    """The square around 0 that holds every counted token."""
    middle = _BINS // 2
    used = np.flatnonzero(comparison.grid.any(0) | comparison.grid.any(1))
    half = int(np.clip(max(middle - used.min(), used.max() + 1 - middle) + 2, 8, middle))
    inner = slice(middle - half, middle + half)
    edges = np.linspace(-comparison.range, comparison.range, _BINS + 1)
    return comparison.grid[inner, inner], edges[middle - half : middle + half + 1]
