"""Reads the scores of all rows with images, and takes from them what a map needs of all data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from cal_schemas.counted import counted
from cal_schemas.delta_counts import DeltaCounts
from cal_schemas.errors import STATUS_OK, ConfigError
from cal_schemas.maps import Map, Quantile
from cal_schemas.opened import AnnotatedDataset, Batch
from cal_schemas.ragged import least_of_share, ragged_means, ragged_scores
from cal_schemas.scores import DEFAULT_SCORE, SCORES, Score, validate_columns

_HELD, _BITS = 2**22, 22
"""Exact up to 4 million scores (16 MB), of more to 1 part in 16384 of the value (32 MB)."""


Advance = Callable[[int], object]
"""Is told of so many rows more that were read."""


def scores_of(
    opened: AnnotatedDataset, score: Score = DEFAULT_SCORE, advance: Advance | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Scores [N] float32 and numbers of tokens [R] of the rows with an image that are ok, some at a time.

    ConfigError where the shards do not hold what the score reads.
    """
    for _, columns, lengths, wanted in image_columns(opened, (score,)):
        row = np.repeat(np.arange(len(lengths)), lengths)
        yield ragged_scores(score, columns, lengths)[wanted[row]], lengths[wanted]
        if advance is not None:
            advance(len(lengths))


def image_columns(
    opened: AnnotatedDataset, scores: tuple[Score, ...]
) -> Iterator[tuple[Batch, dict[str, np.ndarray], np.ndarray, np.ndarray]]:
    """Batches, the columns [N] that scores read, numbers of tokens [R], and which rows [R] are ok and show an image.

    A text-only row is one whose deltas are all 0, which they are there by definition; a sidecar holds no images to
    count. Rows that are not ok have none. ConfigError where the shards do not hold what a score reads.
    """
    for score in scores:
        validate_columns(opened.schema.names, score, str(opened.files[0].parent))
    names = dict.fromkeys(["delta_logits", *(name for score in scores for name in SCORES[score].cached)])
    for batch in opened.numbered_batches(["status", *names]):
        data = batch.data
        ok = np.asarray(data.column("status").to_pylist(), object) == STATUS_OK
        # A null element reads as NaN.
        columns = {
            name: np.asarray(data.column(name).flatten().to_numpy(zero_copy_only=False), np.float32) for name in names
        }
        lengths = np.asarray(data.column("delta_logits").value_lengths())
        row = np.repeat(np.arange(len(lengths)), lengths)
        moved = np.nan_to_num(columns["delta_logits"]) != 0
        yield batch, columns, lengths, ok & (np.bincount(row, weights=moved, minlength=len(lengths)) > 0)


def quantiles_of(opened: AnnotatedDataset, score: Score = DEFAULT_SCORE, advance: Advance | None = None) -> DeltaCounts:
    """Counts all defined scores of the rows with an image, in one pass over the columns that it reads.

    Counts are whole numbers, so every process that reads the same scores, in whatever order, gets the same answer.
    """
    counts = DeltaCounts(held=_HELD, bits=_BITS)
    for scores, _ in scores_of(opened, score, advance):
        counts.add(scores)
    return counts


def resolve_map(
    rule: Map, opened: AnnotatedDataset, score: Score = DEFAULT_SCORE, advance: Advance | None = None
) -> tuple[Map, str]:
    """A map that needs all data, with what these make of its number, and of how many scores or rows that is.

    Holds 4 bytes a row for a share of the samples. Raises ConfigError where the data has no defined score.
    """
    if isinstance(rule.parameter, Quantile):
        counts = quantiles_of(opened, score, advance)
        if not counts.defined:
            places = ", ".join(sorted({str(file.parent) for file in opened.files}))
            raise ConfigError(f"{places} has no defined {score} of a row with an image: give a number")
        threshold = counts.quantile(rule.parameter.share)
        return replace(rule, threshold=threshold), f"of {counted(counts.defined, 'score')} of rows with images"
    some = (ragged_means(*given) for given in scores_of(opened, score, advance))
    means = np.concatenate([np.empty(0, np.float32), *some])
    threshold = least_of_share(means, float(rule.parameter))  # type: ignore[arg-type]
    return replace(rule, threshold=threshold), f"of {counted(len(means), 'row')} with images"
