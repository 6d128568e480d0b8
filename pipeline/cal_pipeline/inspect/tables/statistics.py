"""Computes what the deltas of a row say together, and how well a score tells two groups apart."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa

from cal_pipeline.inspect.tables.answers import irregular_answers
from cal_pipeline.inspect.tables.flat import FlatTokens
from cal_schemas.errors import ConfigError
from cal_schemas.weighting import Pool

SAMPLE_COLUMNS = (
    "tokens",
    "undefined",
    "turns",
    "mean_delta",
    "min_delta",
    "max_delta",
    "share_negative",
    "share_below_alpha",
    "share_above_beta",
    "mean_weight",
    "visual_dependence",
)
FIT_AUC = 0.7
"""A swap control below says that a reference hardly tells the right image from a wrong one."""
FEW_SAMPLES = 30
"""So few give a rough figure only."""


def sample_columns(
    flat: FlatTokens, turns: np.ndarray, *, alpha: float, beta: float, window: int, pool: Pool
) -> dict[str, np.ndarray]:
    """SAMPLE_COLUMNS, each [R]: counts int64, the rest float64, NaN where a row has no defined delta.

    Without `visual_dependence` where these bounds do not define it, see `check_defined`.
    """
    rows = len(flat.lengths)
    weights = flat.weights(alpha=alpha, beta=beta, window=window, pool=pool)
    defined = ~np.isnan(flat.deltas)
    row, deltas = flat.row[defined], flat.deltas[defined]
    count = np.bincount(row, minlength=rows)
    least, most = np.full(rows, np.nan), np.full(rows, np.nan)
    if len(row):
        first = np.flatnonzero(np.diff(row, prepend=-1))
        least[row[first]] = np.minimum.reduceat(deltas, first)
        most[row[first]] = np.maximum.reduceat(deltas, first)
    new_turn = (np.diff(flat.row, prepend=-1) != 0) | (np.diff(turns, prepend=0) != 0)
    columns = {
        "tokens": flat.lengths.astype(np.int64),
        "undefined": flat.lengths.astype(np.int64) - count,
        "turns": np.bincount(flat.row[new_turn], minlength=rows),
        "mean_delta": flat.mean(flat.deltas),
        "min_delta": least,
        "max_delta": most,
        "share_negative": flat.mean(flat.deltas < 0),
        "share_below_alpha": flat.mean(flat.deltas < alpha),
        "share_above_beta": flat.mean(flat.deltas > beta),
        "mean_weight": flat.mean(weights),
    }
    if alpha < beta < np.inf:
        raised = np.clip(flat.deltas.astype(np.float64), alpha, beta) - alpha
        columns["visual_dependence"] = flat.mean(raised / (beta - alpha))
    return columns


def computed_columns(batch: pa.RecordBatch, names: Collection[str], **weighting: Any) -> dict[str, np.ndarray]:
    """SAMPLE_COLUMNS of a batch of shards; ConfigError where one of `names` is not defined by these bounds."""
    check_defined(names, alpha=weighting["alpha"], beta=weighting["beta"])
    flat = FlatTokens.of(batch)
    return sample_columns(flat, flat.turns(irregular_answers(batch) if "turns" in names else None), **weighting)


def check_defined(names: Collection[str], *, alpha: float, beta: float) -> None:
    """ConfigError where one of the columns is asked for that these bounds do not define."""
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
