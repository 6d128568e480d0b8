"""Swap control beside gain: a table, and rank correlations over references."""

from __future__ import annotations

import dataclasses
import math

import comparison
import paired
from arm import Arm
from cells import markdown, marked
from comparison import Rows
from condition import IN_SAMPLE, REFERENCES, WorldName


def swap_table(chosen: Arm, world: WorldName, runs: Rows, measurements: Rows) -> str:
    """The oracle is listed and left out of the correlations: nobody has it. These have a value for each seed."""
    frame = comparison.measured(chosen, world, measurements)
    if frame.empty:
        return "*not run*\n"
    gains = gains_of(chosen, world, runs)
    swaps, knows = (
        {str(name): dict(zip(part["seed"], part[score], strict=True)) for name, part in frame.groupby("reference")}
        for score in ("swap_auc", "reference_accuracy")
    )
    rows = []
    for name in REFERENCES:
        shared = sorted(gains[name].keys() & swaps.get(name, {}).keys())
        if len(shared) > 1:
            swap, know = (sum(tested[name][seed] for seed in shared) / len(shared) for tested in (swaps, knows))
            gain = paired.mean([gains[name][seed] for seed in shared])
            told = "yes" if name in IN_SAMPLE else "no"
            rows.append([name, told, str(len(shared)), f"{swap:.3f}", f"{know:.3f}", marked(gain)])
    table = markdown(["reference", "in-sample", "seeds", "swap control", "its own accuracy", "nll is lower by"], rows)
    everyone = [name for name in REFERENCES if name != "oracle"]
    correlations = []
    unseen = [name for name in everyone if name not in IN_SAMPLE]
    for whose, names in ((f"all {len(everyone)} references", everyone), (f"the {len(unseen)} out of sample", unseen)):
        row = [whose]
        for tested in (swaps, knows):
            shared = [
                seed
                for seed in gains[names[0]]
                if all(seed in gains[name] and seed in tested.get(name, {}) for name in names)
            ]
            row.append(_correlation([([tested[name][seed] for name in names], [gains[name][seed] for name in names])
                                     for seed in shared]))  # fmt: skip
        correlations.append(row)
    header = ["rank correlation of the gain, without the oracle", "with swap control", "with its own accuracy"]
    return f"{table}\n{markdown(header, correlations)}"


def gains_of(chosen: Arm, world: WorldName, runs: Rows) -> dict[str, dict[int, float]]:
    """By reference and seed: how much lower the nll is than with uniform weights."""
    conditions = next(iter(chosen.groups.values()))
    uniform = comparison.scores(runs, world, conditions["uniform"], "nll")
    return {
        name: comparison.differences(uniform, comparison.scores(runs, world, conditions[name], "nll"))
        for name in REFERENCES
    }


def _correlation(seeds: list[tuple[list[float], list[float]]]) -> str:
    found = [paired.rank_correlation(one, other) for one, other in seeds]
    usable = [value for value in found if not math.isnan(value)]
    if len(usable) < 2:
        return "not run"
    mean = paired.mean(usable)
    return marked(dataclasses.replace(mean, low=max(mean.low, -1.0), high=min(mean.high, 1.0)))
