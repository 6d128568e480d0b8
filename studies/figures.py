"""Plots the study, from the committed results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import comparison
from arms import ARMS
from comparison import Rows
from condition import GENERATED, MAIN_NOISE, REFERENCES

_COLOURS = {
    "uniform": "tab:gray", "online": "black", "initial": "tab:blue", "early": "tab:cyan", "quarter": "tab:olive",
    "final": "tab:red", "crossfit": "tab:orange", "longer": "tab:pink", "larger": "tab:purple",
    "oracle": "tab:green",
}  # fmt: skip


def write_all(runs: Rows, measurements: Rows, images: Path) -> None:
    drawn = {
        "noise": noise(runs),
        "gains": gains(runs),
        "drift": drift(runs),
        "swap": swap(runs, measurements),
        "scores": scores(runs),
    }
    for name, figure in drawn.items():
        figure.savefig(images / f"study-{name}.png", dpi=110, metadata={"Software": None})


def noise(runs: Rows) -> Figure:
    """Gain over uniform by share of exchanged images."""
    figure, panels = _panels("share of exchanged images", "nll lower than uniform's by")
    for panel, world in zip(panels, GENERATED, strict=True):
        lines = list(comparison.noise_lines(world, runs))
        labels = ["online", *REFERENCES]
        for place, label in enumerate(labels):
            gains = {float(line.group.split()[-1]): line.gain for line in lines if line.label == label and line.gain}
            points = sorted(gains.items())
            if len(points) > 1:  # one noise is no curve
                shifted = [at + 0.002 * (place - len(labels) / 2) for at, _ in points]
                values = [gain.value for _, gain in points]
                halves = [gain.high - gain.value for _, gain in points]
                panel.errorbar(shifted, values, yerr=halves, label=label, color=_COLOURS[label], capsize=2, linewidth=1)
        _finish(panel)
    _legend(figure, panels)
    return figure


def gains(runs: Rows) -> Figure:
    """Gain of every reference at the main noise."""
    chosen = ARMS["reference"]
    figure, panels = _panels("", "nll lower than uniform's by")
    for panel, world in zip(panels, GENERATED, strict=True):
        lines = [line for line in comparison.lines(chosen, world, runs) if line.gain]
        for line in lines:
            assert line.gain is not None
            half = line.gain.high - line.gain.value
            panel.bar(line.label, line.gain.value, yerr=half, color=_COLOURS[line.label], capsize=3, alpha=0.8)
        _finish(panel, empty=not lines)
        panel.axhline(0, color="black", linewidth=0.8)
        panel.tick_params(axis="x", rotation=45)
    return figure


def drift(runs: Rows) -> Figure:
    chosen = ARMS["staleness"]
    figure, panels = _panels("training step", "rank correlation with the cache")
    for panel, world in zip(panels, GENERATED, strict=True):
        for label, logs in comparison.drift_logs(chosen, world, runs).items():
            steps = [step for step, _, _ in logs[0]]
            values = [sum(log[place][1] for log in logs) / len(logs) for place in range(len(steps))]
            panel.plot(steps, values, label=label, color=_COLOURS[label], marker="o", markersize=3)
        _finish(panel)
    _legend(figure, panels)
    return figure


def swap(runs: Rows, measurements: Rows) -> Figure:
    """The cheap test beside the gain, a point for each reference and seed."""
    chosen = ARMS["swap"]
    figure, panels = _panels("swap control (AUC)", "nll lower than uniform's by")
    for panel, world in zip(panels, GENERATED, strict=True):
        frame = comparison.measured(chosen, world, measurements)
        gains = comparison.gains_of(chosen, world, runs)
        for label, part in [] if frame.empty else frame.groupby("reference", sort=False):
            gain = gains[str(label)]
            seeds = [(seed, auc) for seed, auc in zip(part["seed"], part["swap_auc"], strict=True) if seed in gain]
            if seeds:
                panel.scatter(*zip(*((auc, gain[seed]) for seed, auc in seeds), strict=True), label=label,
                              color=_COLOURS[str(label)], s=14)  # fmt: skip
        _finish(panel)
    _legend(figure, panels)
    return figure


def scores(runs: Rows) -> Figure:
    """Gain over uniform of every weighting of the larger reference, where captions are right and where some are not."""
    chosen = ARMS["scores"]
    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, len(chosen.worlds), sharey=True))
    for panel, world in zip(panels, chosen.worlds, strict=True):
        lines = list(comparison.lines(chosen, world, runs))
        for noise, colour, shift in ((0.0, "tab:blue", -0.15), (MAIN_NOISE, "tab:red", 0.15)):
            group = f"uniform, p = {noise:g}, larger"
            labels = [label for label in chosen.groups[group] if label != "uniform"]
            gains = {line.label: line.gain for line in lines if line.group == group and line.gain}
            shown = [(place, gains[label]) for place, label in enumerate(labels) if label in gains]
            panel.set_yticks(range(len(labels)), labels)
            if shown:
                at, values = [place + shift for place, _ in shown], [gain.value for _, gain in shown]
                halves = [gain.high - gain.value for _, gain in shown]
                panel.errorbar(values, at, xerr=halves, fmt="o", ms=3, color=colour, capsize=2, label=f"p = {noise:g}")
        _finish(panel)
        panel.set_title(f"world of {world}", fontsize=10)
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_xlabel("nll lower than uniform's by")
    panels[0].invert_yaxis()
    _legend(figure, panels)
    return figure


def _panels(x: str, y: str) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, 2))
    for panel, world in zip(panels, GENERATED, strict=True):
        panel.set_title(f"world of {world}", fontsize=10)
        panel.set_xlabel(x)
    panels[0].set_ylabel(y)
    return figure, panels


def _finish(panel: Any, *, empty: bool | None = None) -> None:
    if not panel.get_legend_handles_labels()[0] if empty is None else empty:
        panel.text(0.5, 0.5, "not run", ha="center", transform=panel.transAxes)
    panel.grid(alpha=0.25)


def _legend(figure: Figure, panels: list[Any]) -> None:
    """One for both, below them, where it hides nothing."""
    handles, labels = max((panel.get_legend_handles_labels() for panel in panels), key=lambda entries: len(entries[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels) or 1, fontsize=8)
