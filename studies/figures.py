"""Plots of the study, from the committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import arm
import comparison
import results
from arm import Arm
from comparison import Rows
from condition import REFERENCES, WORLDS, Run

_COLOURS = {
    "uniform": "tab:gray", "online": "black", "initial": "tab:blue", "early": "tab:cyan", "quarter": "tab:olive",
    "final": "tab:red", "crossfit": "tab:orange", "longer": "tab:pink", "larger": "tab:purple",
    "oracle": "tab:green",
}  # fmt: skip
DriftLog = list[tuple[int, float, float]]


def write_all(results_dir: Path, images: Path) -> None:
    runs = comparison.rows_by_key(results.runs(results_dir).read())
    measurements = comparison.rows_by_key(results.measurements(results_dir).read())
    _save(noise(runs), images / "study-noise.png")
    _save(gains(runs), images / "study-gains.png")
    _save(drift(runs), images / "study-drift.png")
    _save(swap(runs, measurements), images / "study-swap.png")


def drift_logs(chosen: Arm, world: str, runs: Rows) -> dict[str, list[DriftLog]]:
    """By reference, of every seed: (step, rank correlation, clamp flips)."""
    found: dict[str, list[DriftLog]] = {}
    for label, fields in chosen.groups["drift"].items():
        keys = [Run(world=world, seed=seed, **fields).key for seed in range(64)]  # type: ignore[arg-type]
        logs = [json.loads(str(runs[key]["drift_log"])) for key in keys if key in runs]
        if logs:
            found[label] = logs
    return found


def noise(runs: Rows) -> Figure:
    """Gain over uniform by share of exchanged pictures."""
    chosen, others = arm.load("noise"), arm.load("noise_others")
    figure, panels = _panels("share of exchanged pictures", "nll lower than uniform's by")
    for panel, world in zip(panels, WORLDS, strict=True):
        lines = list(comparison.lines(chosen, world, runs))
        lines += [line for line in comparison.lines(others, world, runs) if line.label in REFERENCES]
        labels = ["online", *REFERENCES]
        for place, label in enumerate(labels):
            found = {float(line.group.split()[-1]): line.gain for line in lines if line.label == label and line.gain}
            points = sorted(found.items())
            if len(points) > 1:  # one noise is no curve
                shifted = [at + 0.002 * (place - len(labels) / 2) for at, _ in points]
                values = [gain.value for _, gain in points]
                halves = [0.0 if gain.count < 2 else gain.high - gain.value for _, gain in points]
                panel.errorbar(shifted, values, yerr=halves, label=label, color=_COLOURS[label], capsize=2, linewidth=1)
        _finish(panel)
    return figure


def gains(runs: Rows) -> Figure:
    """Gain of every reference at the main noise."""
    chosen = arm.load("reference")
    figure, panels = _panels("", "nll lower than uniform's by")
    for panel, world in zip(panels, WORLDS, strict=True):
        lines = [line for line in comparison.lines(chosen, world, runs) if line.gain and line.gain.count > 1]
        for line in lines:
            assert line.gain is not None
            half = line.gain.high - line.gain.value
            panel.bar(line.label, line.gain.value, yerr=half, color=_COLOURS[line.label], capsize=3, alpha=0.8)
        panel.axhline(0, color="black", linewidth=0.8)
        panel.tick_params(axis="x", rotation=45)
    return figure


def drift(runs: Rows) -> Figure:
    chosen = arm.load("staleness")
    figure, panels = _panels("training step", "rank correlation with the cache")
    for panel, world in zip(panels, WORLDS, strict=True):
        for label, logs in drift_logs(chosen, world, runs).items():
            steps = [step for step, _, _ in logs[0]]
            values = [sum(log[place][1] for log in logs) / len(logs) for place in range(len(steps))]
            panel.plot(steps, values, label=label, color=_COLOURS[label], marker="o", markersize=3)
        _finish(panel)
    return figure


def swap(runs: Rows, measurements: Rows) -> Figure:
    """The cheap test beside the gain, a point for each reference and seed."""
    chosen = arm.load("swap")
    conditions = next(iter(chosen.groups.values()))
    figure, panels = _panels("swap control (AUC)", "nll lower than uniform's by")
    for panel, world in zip(panels, WORLDS, strict=True):
        frame = comparison.measured(chosen, world, measurements)
        uniform = comparison.scores(runs, world, conditions["uniform"], "nll")
        for label, part in [] if frame.empty else frame.groupby("reference", sort=False):
            gain = comparison.differences(uniform, comparison.scores(runs, world, conditions[str(label)], "nll"))
            seeds = [(seed, auc) for seed, auc in zip(part["seed"], part["swap_auc"], strict=True) if seed in gain]
            panel.scatter([auc for _, auc in seeds], [gain[seed] for seed, _ in seeds], label=label,
                          color=_COLOURS[str(label)], s=14)  # fmt: skip
        _finish(panel)
    return figure


def _panels(x: str, y: str) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, 2))
    for panel, world in zip(panels, WORLDS, strict=True):
        panel.set_title(f"world of {world}", fontsize=10)
        panel.set_xlabel(x)
    panels[0].set_ylabel(y)
    return figure, panels


def _finish(panel: Any) -> None:
    if panel.get_legend_handles_labels()[0]:
        panel.legend(fontsize=7, ncols=2)
    else:
        panel.text(0.5, 0.5, "not run", ha="center", transform=panel.transAxes)
    panel.grid(alpha=0.25)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None})
