"""Estimates means and shares of paired seeds with 95 % intervals and rank correlations, and formats them for tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A value with its interval; infinite ends where the data set no bound."""

    value: float
    low: float
    high: float
    count: int
    """Of seeds."""

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def mean(values: Sequence[float], comparisons: int = 1) -> Estimate:
    """Of independent values, by Student's t; of differences of pairs it is the paired test.

    comparisons: how many intervals hold their values together with the probability LEVEL (Bonferroni).
    """
    array = np.asarray(values, float)
    count = len(array)
    if count < 2:
        return Estimate(value=float(array.mean()), low=-math.inf, high=math.inf, count=count)
    half = _quantile(count, comparisons) * float(array.std(ddof=1)) / math.sqrt(count)
    return Estimate(value=float(array.mean()), low=array.mean() - half, high=array.mean() + half, count=count)


def share(gains: Sequence[float], whole: Sequence[float]) -> Estimate:
    """Mean of `gains` over the mean of `whole`, pairs of the same seeds; the interval is Fieller's.

    It holds the ratios r for which the mean of gains - r * whole does not differ from 0. Where the mean of `whole`
    itself does not differ from 0 no ratio can be excluded for good: then both ends are infinite.
    """
    top, bottom = np.asarray(gains, float), np.asarray(whole, float)
    count = len(top)
    value = float(top.mean() / bottom.mean()) if bottom.mean() else math.nan
    unbounded = Estimate(value=value, low=-math.inf, high=math.inf, count=count)
    if count < 2:
        return unbounded
    t2 = _quantile(count) ** 2 / count
    variance, shared = np.cov(top, bottom, ddof=1)[[0, 1], [0, 1]], np.cov(top, bottom, ddof=1)[0, 1]
    a = bottom.mean() ** 2 - t2 * variance[1]
    b = top.mean() * bottom.mean() - t2 * shared
    c = top.mean() ** 2 - t2 * variance[0]
    if a <= 0:
        return unbounded
    root = math.sqrt(max(0.0, b * b - a * c))
    return Estimate(value=value, low=(b - root) / a, high=(b + root) / a, count=count)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's; NaN where one of them is constant."""
    if len(set(one)) < 2 or len(set(other)) < 2:
        return math.nan
    return float(stats.spearmanr(one, other).statistic)


def _quantile(count: int, comparisons: int = 1) -> float:
    return float(stats.t.ppf(1 - (1 - LEVEL) / 2 / comparisons, count - 1))


def marked(estimate: Estimate | None) -> str:
    """A table cell, bold where the interval excludes zero."""
    if estimate is None:
        return ""
    return f"**{estimate}**" if estimate.excludes_zero else str(estimate)


def percent(estimate: Estimate | None, digits: int = 0) -> str:
    """A table cell."""
    if estimate is None or math.isnan(estimate.value):
        return ""
    if math.isinf(estimate.low):
        return f"{estimate.value:.{digits}%} (no bound)"
    return f"{estimate.value:.{digits}%} ({estimate.low:.{digits}%} to {estimate.high:.{digits}%})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
