"""Cells of the study's Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from paired import Estimate


def marked(estimate: Estimate | None) -> str:
    """Bold where the interval excludes zero."""
    if estimate is None:
        return ""
    return f"**{told(estimate)}**" if estimate.excludes_zero else told(estimate)


def told(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"


def percent(estimate: Estimate | None, digits: int = 0) -> str:
    if estimate is None or math.isnan(estimate.value):
        return ""
    if math.isinf(estimate.low):
        return f"{estimate.value:.{digits}%} (no bound)"
    return f"{estimate.value:.{digits}%} ({estimate.low:.{digits}%} to {estimate.high:.{digits}%})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
