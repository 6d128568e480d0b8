"""Draws figures of deltas without a display and saves them by suffix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cal_schemas.delta_counts import DeltaCounts

BINS = 80
_OUTERMOST = 0.001
"""Share of the tokens on each side that would squeeze everything else; they are counted in the end bins."""

_LONGEST_NAME = 60


def delta_figure(groups: Mapping[str, DeltaCounts], *, alpha: float, beta: float, title: str = "") -> Figure:
    """Histogram of delta with alpha and beta marked, and its cumulative share on the right axis (CAL, Fig. 4).

    One group is drawn filled, several as outlines of area 1 each, with a line of the cumulative share for each. At
    least one group must hold a defined delta.
    """
    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    cumulative = axes.twinx()
    edges = _edges(groups, alpha, beta)
    middles = (edges[1:] + edges[:-1]) / 2
    for number, (name, counts) in enumerate(groups.items()):
        colour = f"C{number % 10}"
        heights = counts.histogram(edges)
        total = max(int(heights.sum()), 1)
        density = heights / total / (edges[1] - edges[0])
        shown = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
        # Legends leave out what begins with an underscore.
        label = f"{' ' if shown.startswith('_') else ''}{shown} ({total:,} tokens)"
        if len(groups) == 1:
            axes.bar(middles, density, width=edges[1] - edges[0], color=colour, alpha=0.6, label=label)
        else:
            axes.stairs(density, edges, color=colour, linewidth=1.5, label=label)
        cumulative.plot(edges[1:], np.cumsum(heights) / total, color=colour, linestyle=":", linewidth=1.5)
    _mark_bounds(axes, alpha, beta)
    axes.set_xlabel("delta: logit with image minus logit without (logits)")
    axes.set_ylabel("density")
    cumulative.set_ylabel("cumulative share of tokens (dotted)")
    cumulative.set_ylim(0, 1.02)
    if len(groups) > 1:
        axes.legend(loc="center right", fontsize=8, framealpha=0.9)
    axes.set_title(title, fontsize=10)
    return figure


def scatter_figure(
    counts: np.ndarray, edges: np.ndarray, *, names: tuple[str, str], alpha: float, beta: float, title: str
) -> Figure:
    """Deltas of two measurements against each other: `counts` [n, n] tokens by bin, first axis the first one's."""
    figure = Figure(figsize=(6.0, 5.4), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.pcolormesh(
        edges, edges, np.ma.masked_equal(counts.T, 0), cmap="viridis", norm=LogNorm(1, max(counts.max(), 2))
    )
    # Plain numbers: powers of ten are formulas, which `save` switches off.
    figure.colorbar(drawn, ax=axes, label="tokens in a bin", format="{x:,.0f}", shrink=0.8)
    axes.plot(edges[[0, -1]], edges[[0, -1]], color="black", linewidth=0.8, linestyle="--")
    for value, name in ((alpha, "alpha"), (beta, "beta")):
        if edges[0] < value < edges[-1]:
            axes.axvline(value, color="gray", linewidth=0.6)
            axes.axhline(value, color="gray", linewidth=0.6)
            axes.annotate(f" {name}", (value, 0.02), xycoords=("data", "axes fraction"), fontsize=8, color="gray")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(9, integer=True))
    axes.set_xlabel(f"delta in {names[0]} (logits)")
    axes.set_ylabel(f"delta in {names[1]} (logits)")
    axes.set_aspect("equal")
    axes.set_title(title, fontsize=10)
    return figure


def panels(count: int, width: float = 4.2, height: float = 4.6) -> tuple[Figure, Sequence[Axes]]:
    """A figure with `count` axes side by side, without ticks; width and height of one, in inches."""
    figure = Figure(figsize=(width * count, height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for one in axes:
        one.set_axis_off()
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Writes the figure; the suffix is one of `flags.FIGURE_SUFFIXES`, and equal figures give equal files."""
    # Dataset text may stand in a title or legend: a lone dollar must not start a formula.
    with mpl.rc_context({"svg.hashsalt": "cal", "text.parse_math": False}):
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
        figure.savefig(path, dpi=130, metadata=metadata)


def _edges(groups: Mapping[str, DeltaCounts], alpha: float, beta: float) -> np.ndarray:
    filled = [counts for counts in groups.values() if counts.defined]
    low = min(counts.quantile(_OUTERMOST) for counts in filled)
    high = max(counts.quantile(1 - _OUTERMOST) for counts in filled)
    shown = [0.0, alpha, *([beta] if np.isfinite(beta) else [])]
    return np.linspace(min(low, *shown) - 0.5, max(high, *shown) + 1.5, BINS + 1)


def _mark_bounds(axes: Axes, alpha: float, beta: float) -> None:
    for value, name in ((alpha, "alpha"), (beta, "beta")):
        if np.isfinite(value):
            axes.axvline(value, color="black", linestyle="--", linewidth=1)
            axes.annotate(
                f" {name} = {value:g}", (value, 0.97), xycoords=("data", "axes fraction"), va="top", fontsize=9
            )
