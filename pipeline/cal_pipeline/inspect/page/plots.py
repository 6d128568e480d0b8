"""Draws figures of scores without a display and saves them by suffix."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from cal_pipeline.inspect.flags import written
from cal_pipeline.inspect.page import shading
from cal_pipeline.inspect.page.fonts import cover
from cal_pipeline.inspect.tables.flat import noun, with_unit
from cal_pipeline.inspect.tables.statistics import bounds_scores
from cal_schemas.delta_counts import DeltaCounts
from cal_schemas.maps import Map
from cal_schemas.scores import DEFAULT_SCORE, SCORES, Score
from cal_schemas.storage.locations import Location

BINS, WEIGHT_BINS = 80, 40
_OUTERMOST = 0.001
"""Share of the tokens on each side that would squeeze everything else; they are counted in the end bins."""

_LONGEST_NAME = 60
_DELTA = "delta: logit with image minus logit without"


def score_figure(
    groups: Mapping[str, tuple[DeltaCounts, DeltaCounts]],
    *,
    alpha: float,
    beta: float,
    score: Score = DEFAULT_SCORE,
    map: Map | str = "clamp",  # noqa: A002 - as the flag
    title: str = "",
) -> Figure:
    """Histograms of a score, with its cumulative share on the right axis (CAL, Fig. 4), and of weights.

    Alpha and beta are marked where they bound the score. `groups` are scores and weights of the same tokens. One group
    is drawn filled, scores in the colours of the words (against below 0, for above), several as outlines of area 1
    each, with a line of the cumulative share for each. At least one group must hold a defined score.
    """
    definition, bounds = SCORES[score], [alpha, beta] if bounds_scores(map) else []
    figure = Figure(figsize=(11.0, 4.5 + 0.1 * len(groups)), layout="constrained")
    axes, of_weights = figure.subplots(1, 2, width_ratios=[3, 2])
    cumulative = axes.twinx()
    edges = _edges([scores for scores, _ in groups.values()], bounds)
    top = beta if np.isfinite(beta) else max(alpha + 1.0, *(weights.max for _, weights in groups.values()))
    weight_edges = np.linspace(alpha, top if top > alpha else alpha + 1.0, WEIGHT_BINS + 1)
    for number, (name, (scores, weights)) in enumerate(groups.items()):
        heights = scores.histogram(edges)
        shown = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
        # Legends leave out what begins with an underscore.
        label = f"{' ' if shown.startswith('_') else ''}{shown} ({scores.defined:,} tokens)"
        colour = None if len(groups) == 1 else f"C{number}"
        _bars(axes, edges, heights / scores.defined / (edges[1] - edges[0]), colour, label)
        _bars(of_weights, weight_edges, weights.histogram(weight_edges) / weights.defined, colour, label)
        cumulative.plot(edges[1:], np.cumsum(heights) / scores.defined, color=colour or "0.3", linestyle=":")
    if bounds:
        _mark_bounds(axes, alpha, beta)
    said = _DELTA if score == DEFAULT_SCORE else f"{with_unit(score)}: {definition.equation}"
    axes.set_xlabel(f"\u2190 the image speaks against    {said}    for \u2192" if definition.signed else said)
    axes.set_ylabel("density")
    cumulative.set_ylabel("cumulative share of tokens (dotted)")
    cumulative.set_ylim(0, 1.02)
    of_weights.set_xlabel("weight, from alpha to beta" if bounds else f"weight, by {map}")
    of_weights.set_ylabel("share of tokens")
    if len(groups) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def _bars(axes: Axes, edges: np.ndarray, heights: np.ndarray, colour: str | None, label: str) -> None:
    """An outline in this colour; without one, bars in those of the words."""
    if colour:
        axes.stairs(heights, edges, color=colour, linewidth=1.5, label=label)
        return
    colours = np.where(edges[:-1, None] < 0, shading.AGAINST, shading.FOR) / 255
    axes.bar(edges[:-1], heights, np.diff(edges), align="edge", color=colours, alpha=0.8)


def scatter_figure(
    counts: np.ndarray,
    edges: np.ndarray,
    *,
    names: tuple[str, str],
    alpha: float,
    beta: float,
    title: str,
    score: Score = DEFAULT_SCORE,
    map: Map | str = "clamp",  # noqa: A002 - as the flag
) -> Figure:
    """Scores of two measurements against each other: `counts` [n, n] tokens by bin, first axis the first one's."""
    figure = Figure(figsize=(6.0, 5.4), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.pcolormesh(
        edges, edges, np.ma.masked_equal(counts.T, 0), cmap="viridis", norm=LogNorm(1, max(counts.max(), 2))
    )
    # Plain numbers: powers of ten are formulas, which `save` switches off.
    figure.colorbar(drawn, ax=axes, label="tokens in a bin", format="{x:,.0f}", shrink=0.8)
    axes.plot(edges[[0, -1]], edges[[0, -1]], color="black", linewidth=0.8, linestyle="--")
    for value, name in ((alpha, "alpha"), (beta, "beta")) if bounds_scores(map) else ():
        if edges[0] < value < edges[-1]:
            axes.axvline(value, color="gray", linewidth=0.6)
            axes.axhline(value, color="gray", linewidth=0.6)
            axes.annotate(f" {name}", (value, 0.02), xycoords=("data", "axes fraction"), fontsize=8, color="gray")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(9, integer=score == DEFAULT_SCORE))
    unit = f" ({SCORES[score].unit})" if SCORES[score].unit else ""
    axes.set_xlabel(f"{noun(score)} in {names[0]}{unit}")
    axes.set_ylabel(f"{noun(score)} in {names[1]}{unit}")
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


def save(figure: Figure, path: Location) -> None:
    """Writes the figure; the suffix is one of `flags.FIGURE_SUFFIXES`, and equal figures give equal files.

    Names of the dataset and of directories are written as they are: no dollar starts a formula, and characters that the
    default font lacks come from another installed one.
    """
    with mpl.rc_context({"svg.hashsalt": "cal", "text.parse_math": False}), warnings.catch_warnings():
        texts = figure.findobj(Text)
        for text in texts:
            text.set_parse_math(False)
        cover(texts)
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # `cover` has said so.
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
        with written(path) as file:
            figure.savefig(file, dpi=130, metadata=metadata)


def _edges(counted: Sequence[DeltaCounts], bounds: Sequence[float]) -> np.ndarray:
    """Of equal bins, with 0 between two of them."""
    filled = [counts for counts in counted if counts.defined]
    low = min(counts.quantile(_OUTERMOST) for counts in filled)
    high = max(counts.quantile(1 - _OUTERMOST) for counts in filled)
    shown = [0.0, low, high, *filter(np.isfinite, bounds)]
    # Room for the names of the bounds; where there are none, scores may all be tiny.
    below, above = (0.5, 1.5) if bounds else (0.0, 0.05 * (max(shown) - min(shown)) or 1.0)
    low, high = min(shown) - below, max(shown) + above
    width = (high - low) / BINS
    return width * np.arange(np.floor(low / width), np.ceil(high / width) + 1)


def _mark_bounds(axes: Axes, alpha: float, beta: float) -> None:
    for value, name in ((alpha, "alpha"), (beta, "beta")):
        if np.isfinite(value):
            axes.axvline(value, color="black", linestyle="--", linewidth=1)
            axes.annotate(
                f" {name} = {value:g}", (value, 0.97), xycoords=("data", "axes fraction"), va="top", fontsize=9
            )
