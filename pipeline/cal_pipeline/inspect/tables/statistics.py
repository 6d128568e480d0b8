"""Computes what the scores of a row say together, and how well a score tells two groups apart."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa

from cal_pipeline.inspect.tables.answers import irregular_answers
from cal_pipeline.inspect.tables.flat import FlatTokens, noun
from cal_schemas.errors import ConfigError
from cal_schemas.maps import Map
from cal_schemas.scores import DEFAULT_SCORE, Score
from cal_schemas.weighting import Pool


def sample_names(score: Score = DEFAULT_SCORE) -> tuple[str, ...]:
    """Names of what `sample_columns` computes of a score."""
    of_score = (f"{part}_{noun(score)}" for part in ("mean", "min", "max"))
    return ("tokens", "undefined", "turns", *of_score, "share_negative", *OF_BOUNDS[:2], "mean_weight", OF_BOUNDS[2])


OF_BOUNDS = ("share_below_alpha", "share_above_beta", "visual_dependence")
"""Defined where alpha and beta bound the score itself."""
SAMPLE_COLUMNS = sample_names()
FIT_AUC = 0.7
"""A swap control below says that a reference hardly tells the right image from a wrong one."""
FEW_SAMPLES = 30
"""So few give a rough figure only."""


def sample_columns(
    flat: FlatTokens,
    turns: np.ndarray,
    *,
    alpha: float,
    beta: float,
    window: int,
    pool: Pool,
    map: Map | str = "clamp",  # noqa: A002 - as the flag
) -> dict[str, np.ndarray]:
    """`sample_names` of its score, each [R]: counts int64, the rest float64, NaN where a row has no defined score.

    Without those that this map or these bounds do not define, see `check_defined`.
    """
    rows = len(flat.lengths)
    weights = flat.weights(alpha=alpha, beta=beta, window=window, pool=pool, map=map)
    defined = ~np.isnan(flat.scores)
    row, scores = flat.row[defined], flat.scores[defined]
    count = np.bincount(row, minlength=rows)
    least, most = np.full(rows, np.nan), np.full(rows, np.nan)
    if len(row):
        first = np.flatnonzero(np.diff(row, prepend=-1))
        least[row[first]] = np.minimum.reduceat(scores, first)
        most[row[first]] = np.maximum.reduceat(scores, first)
    new_turn = (np.diff(flat.row, prepend=-1) != 0) | (np.diff(turns, prepend=0) != 0)
    name = noun(flat.score)
    columns = {
        "tokens": flat.lengths.astype(np.int64),
        "undefined": flat.lengths.astype(np.int64) - count,
        "turns": np.bincount(flat.row[new_turn], minlength=rows),
        f"mean_{name}": flat.mean(flat.scores),
        f"min_{name}": least,
        f"max_{name}": most,
        "share_negative": flat.mean(flat.scores < 0),
        "share_below_alpha": flat.mean(flat.scores < alpha),
        "share_above_beta": flat.mean(flat.scores > beta),
        "mean_weight": flat.mean(weights),
    }
    if not bounds_scores(map):
        return {name: values for name, values in columns.items() if name not in OF_BOUNDS}
    if alpha < beta < np.inf:
        raised = np.clip(flat.scores.astype(np.float64), alpha, beta) - alpha
        columns["visual_dependence"] = flat.mean(raised / (beta - alpha))
    return columns


def bounds_scores(map: Map | str) -> bool:  # noqa: A002 - as the flag
    """True where alpha and beta are of the score itself."""
    return str(map) == "clamp"


def computed_columns(
    batch: pa.RecordBatch, names: Collection[str], *, score: Score = DEFAULT_SCORE, **weighting: Any
) -> dict[str, np.ndarray]:
    """`sample_columns` of a batch of shards; ConfigError where one of `names` is not defined by these weights."""
    check_defined(names, **weighting)
    flat = FlatTokens.of(batch, score)
    return sample_columns(flat, flat.turns(irregular_answers(batch) if "turns" in names else None), **weighting)


def check_defined(
    names: Collection[str],
    *,
    alpha: float,
    beta: float,
    map: Map | str = "clamp",  # noqa: A002 - as the flag
    **_: Any,
) -> None:
    """ConfigError where one of the columns is asked for that this map or these bounds do not define."""
    if (of_bounds := [name for name in OF_BOUNDS if name in names]) and not bounds_scores(map):
        raise ConfigError(f"{of_bounds[0]} compares scores with alpha and beta, which are of map clamp; got map {map}")
    if "visual_dependence" in names and not alpha < beta < np.inf:
        raise ConfigError(
            f"visual_dependence is a share of the way from alpha to beta: it needs a finite beta above alpha, got "
            f"alpha {alpha:g} and beta {beta:g}"
        )


def auc(high: Any, low: Any) -> float:
    """Chance that a value of `high` [N] is above a value of `low` [M], ties counting half; NaN if one is empty."""
    high, low = np.asarray(high, np.float64), np.asarray(low, np.float64)
    if not len(high) or not len(low):
        return float("nan")
    ordered = np.sort(low)
    below = np.searchsorted(ordered, high, side="left")
    upto = np.searchsorted(ordered, high, side="right")
    return float((below + upto).sum() / (2 * len(high) * len(low)))
