"""Ranks the tokens of one measurement by several scores: how alike the ranks are, and where they differ most.

Exact up to TOKENS tokens, of more on so many, drawn evenly. Memory grows with the rows by 4 bytes for each score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cal_pipeline.inspect.progress import shown_progress
from cal_pipeline.inspect.tables.measured_batches import measured_batches
from cal_pipeline.inspect.tables.token_statistics import Occurrence, occurrence
from cal_schemas.cached_scores import image_columns
from cal_schemas.errors import ConfigError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.ragged import ragged_scores
from cal_schemas.ranks import correlation, ranks
from cal_schemas.scores import DEFAULT_SCORE, SCORES, Score

TOKENS = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Differing:
    """A token that a score ranks differently than delta_logit does."""

    token: Occurrence
    """With its delta."""
    value: float
    """Of the score."""
    below: tuple[float, float]
    """Shares of the tokens that rank below it, by delta_logit and by the score; half of its equals count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRanks:
    """How K scores rank the tokens, and the means of the samples, of rows with images."""

    scores: tuple[Score, ...]
    """The first is delta_logit."""
    rows: int
    tokens: int
    """With every score defined."""
    undefined: int
    """The others."""
    compared: int
    """Of the tokens: all, or those drawn."""
    of_tokens: np.ndarray
    """[K, K] rank correlations, NaN where a score is constant."""
    of_samples: np.ndarray
    differing: Mapping[Score, Sequence[Differing]]
    """Of every other score, those whose rank differs most first."""


class _Drawn:
    """At most `limit` of the tokens that pass by, each as likely as any other; all where they are no more."""

    def __init__(self, limit: int) -> None:
        self._limit, self._rng, self._below = limit, np.random.default_rng(0), 1.0
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._held = 0

    def add(self, values: np.ndarray, row: np.ndarray, place: np.ndarray) -> None:
        """N tokens: values [K, N], number of the row and of the token in it [N]."""
        lots = self._rng.random(len(row))
        kept = lots < self._below
        self._parts.append((lots[kept], row[kept], place[kept], values[:, kept]))
        self._held += int(kept.sum())
        if self._held > 2 * self._limit:
            self._cut()

    def _cut(self) -> None:
        lots, *others = (np.concatenate(parts, axis=-1) for parts in zip(*self._parts, strict=True))
        if len(lots) > self._limit:
            self._below = float(np.partition(lots, self._limit)[self._limit])
            kept = lots < self._below
            lots, *others = (part[..., kept] for part in (lots, *others))
        self._parts, self._held = [(lots, *others)], len(lots)

    def drawn(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values [K, n], rows and places [n] of those that were drawn."""
        self._cut()
        ((_, row, place, values),) = self._parts
        return values, row, place


def cached_scores(opened: AnnotatedDataset) -> tuple[Score, ...]:
    """All scores whose columns the shards hold."""
    names = opened.schema.names
    return tuple(
        score for score, of in SCORES.items() if not of.of_training and all(name in names for name in of.columns)
    )


def _means(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[R] float64: of each row; those of equal values are equal, which rounding in float32 would make ranks of."""
    row, defined = np.repeat(np.arange(len(lengths)), lengths), ~np.isnan(values)
    count = np.bincount(row[defined], minlength=len(lengths))
    total = np.bincount(row[defined], weights=values[defined].astype(np.float64), minlength=len(lengths))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def rank_scores(opened: AnnotatedDataset, scores: Sequence[Score], *, top: int, limit: int = TOKENS) -> ScoreRanks:
    """Compares ranks by these scores, and finds the `top` tokens on which each differs most from delta_logit.

    Raises ConfigError for a score that the shards do not hold, and where fewer than two tokens can be ranked.
    """
    scores = tuple(dict.fromkeys([DEFAULT_SCORE, *scores]))
    drawn, means = _Drawn(limit), [np.empty((len(scores), 0))]
    rows = tokens = undefined = first = 0
    with shown_progress("rows read", opened.num_rows) as advance:
        for batch, columns, lengths, wanted in image_columns(opened, scores):
            row = np.repeat(np.arange(len(lengths)), lengths)
            values = np.stack([ragged_scores(score, columns, lengths) for score in scores])
            shown, defined = wanted[row], ~np.isnan(values).any(0)
            place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            ranked = shown & defined
            drawn.add(values[:, ranked], first + row[ranked], place[ranked])
            values[:, ~defined] = np.nan
            means.append(np.stack([_means(own[shown], lengths[wanted]) for own in values]))
            rows, tokens = rows + int(wanted.sum()), tokens + int(ranked.sum())
            undefined += int((shown & ~defined).sum())
            first += batch.data.num_rows
            advance(batch.data.num_rows)
    if tokens < 2:
        raise ConfigError(
            f"nothing to compare: of the {opened.num_rows} rows of {opened.files[0].parent} {rows} show an image and "
            f"are ok, with {tokens} tokens of which every score is defined (cal-inspect summary tells their statuses)"
        )
    values, of_row, place = drawn.drawn()
    ranked_by = [ranks(own) for own in values]
    samples = np.concatenate(means, axis=1)
    samples = samples[:, ~np.isnan(samples).any(0)]
    shares = (np.stack(ranked_by) - 0.5) / len(of_row)
    chosen = {
        score: np.argsort(-np.abs(shares[number] - shares[0]), kind="stable")[:top]
        for number, score in enumerate(scores)
        if number
    }
    found = _occurrences(opened, {(int(of_row[at]), int(place[at])) for own in chosen.values() for at in own})
    return ScoreRanks(
        scores=scores, rows=rows, tokens=tokens, undefined=undefined, compared=len(of_row),
        of_tokens=_matrix(ranked_by), of_samples=_matrix([ranks(own) for own in samples]),
        differing={
            score: [
                Differing(
                    token=found[int(of_row[at]), int(place[at])], value=float(values[number, at]),
                    below=(float(shares[0, at]), float(shares[number, at])),
                )
                for at in chosen[score]
            ]
            for number, score in enumerate(scores)
            if number
        },
    )  # fmt: skip


def _matrix(ranked_by: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([[correlation(one, other) for other in ranked_by] for one in ranked_by])


def _occurrences(opened: AnnotatedDataset, wanted: set[tuple[int, int]]) -> dict[tuple[int, int], Occurrence]:
    """By number of the row among those of all files and of the token in it; reads up to the last of them."""
    found: dict[tuple[int, int], Occurrence] = {}
    for batch in measured_batches(opened, ["sample_id"]) if wanted else ():
        starts = np.cumsum(batch.flat.lengths) - batch.flat.lengths
        for row, place in wanted:
            if batch.first <= row < batch.first + len(starts):
                found[row, place] = occurrence(batch, int(starts[row - batch.first]) + place)
        if len(found) == len(wanted):
            break
    return found
