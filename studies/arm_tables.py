"""Tabulates the arms in Markdown, from the record."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import comparison
import estimates
from arms import ARMS, NOISE_ARMS, NOISES, Arm
from comparison import PAIRS, Line, Rows
from condition import IN_SAMPLE, MAIN_NOISE, REFERENCES, WORLDS, WorldName
from estimates import markdown, marked, percent


def tables_of(arms: Sequence[str], runs: Rows, measurements: Rows, *, elsewhere: bool = True) -> dict[str, str]:
    """By arm: for each world its conditions, and what else the arm asks; `elsewhere`: of what ran beyond its worlds."""
    tables = {}
    for name in arms:
        chosen = ARMS[name]
        extra = _EXTRA.get(name)
        parts = []
        for world in WORLDS if elsewhere else chosen.worlds:
            lines = list(comparison.lines(chosen, world, runs))
            if not any(line.nll for line in lines):
                missing = f"*World of {world}: not run with two seeds or more.*\n"
                parts += [missing] if world in chosen.worlds else []
                continue
            shown = [line for line in lines if line.group != "drift"]  # those have their own table, and `reference`'s
            parts.append(f"World of {world}:\n\n{conditions_table(chosen, shown)}")
            parts += [extra(chosen, world, runs, measurements)] if extra else []
        begun = [part for part in parts if not part.startswith("*")]
        tables[name] = "\n".join(begun if name == "quick" and begun else parts)  # that one is of one world
    return tables


def page_tables(runs: Rows, measurements: Rows) -> dict[str, str]:
    """Of docs/study.md, by the name that stands in its marker: arms, where they have no table of another shape."""
    own_shape = {"quick", "scores", "swap", *NOISE_ARMS}
    tables = tables_of([name for name in ARMS if name not in own_shape], runs, measurements, elsewhere=False)
    tables["reference"] = reference_table(runs)
    chosen = ARMS["reference"]
    for name, table in (("noise", noise_table), ("deltas", deltas_table), ("swap", swap_table)):
        parts = [f"World of {world}:\n\n{table(chosen, world, runs, measurements)}" for world in chosen.worlds]
        tables[name] = "\n".join(parts)
    chosen = ARMS["scores"]
    parts = [f"World of {world}:\n\n{scores_table(chosen, world, runs)}" for world in chosen.worlds]
    tables["scores"] = "\n".join(parts)
    tables["pairs"] = pairs_table(runs)
    return tables


def conditions_table(chosen: Arm, lines: Sequence[Line]) -> str:
    """A row for each condition, beside its group's first."""
    header = ["", "", "seeds", "nll", "lower by", *([f"of {chosen.gain_of}'s gain"] if chosen.gain_of else []),
              "accuracy", "higher by", *(["text-only nll", "changed by"] if chosen.with_text else [])]  # fmt: skip
    rows, group = [], None
    begun = {line.group for line in lines if line.nll}
    for line in lines:
        row = [line.group if line.group != group else "", line.label]
        if line.group not in begun:
            rows += [[line.group, "*not run*", *[""] * (len(header) - 2)]] if line.group != group else []
            group = line.group
            continue
        group = line.group
        if line.nll is None or line.accuracy is None:
            rows.append([*row, "not run", *[""] * (len(header) - 3)])
            continue
        row += [str(line.nll.count), f"{line.nll.value:.3f}", marked(line.gain)]
        row += [percent(line.share)] if chosen.gain_of else []
        row += [f"{line.accuracy.value:.3f}", marked(line.accuracy_gain)]
        if chosen.with_text and line.text_nll is not None:
            change = line.text_change
            bold = "**" if change is not None and change.excludes_zero else ""
            row += [f"{line.text_nll.value:.3f}", f"{bold}{percent(change, 2)}{bold}"]
        rows.append(row)
    return markdown(header, rows)


def reference_table(runs: Rows) -> str:
    """Every source of weights at the main noise, the arm's worlds side by side."""
    chosen = ARMS["reference"]
    worlds = {world: {line.label: line for line in comparison.lines(chosen, world, runs)} for world in chosen.worlds}
    header, rows = ["weights of"], []
    for world, lines in worlds.items():
        counts = sorted({line.gain.count for line in lines.values() if line.gain}) or [0]
        seeds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        header += [f"{world}, {seeds} seeds: nll lower by", "of online's gain", "accuracy higher by"]
    for label in ("uniform", "online", *REFERENCES):
        row = [_source(label)]
        for lines in worlds.values():
            line = lines[label]
            if line.nll is None or line.accuracy is None:
                row += ["not run", "", ""]
            elif label == "uniform":
                row += [f"nll {line.nll.value:.3f}", "", f"accuracy {line.accuracy.value:.3f}"]
            else:
                row += [marked(line.gain), percent(line.share), marked(line.accuracy_gain)]
        rows.append(row)
    return markdown(header, rows)


def _source(label: str) -> str:
    """Of weights; a reference's name is set as code, as in the text."""
    return f"`{label}`" if label in REFERENCES else label


def noise_table(chosen: Arm, world: WorldName, runs: Rows, measurements: Rows) -> str:
    """Every source of weights by share of exchanged images: gain in nll, then in accuracy."""
    lines = {(line.label, line.group): line for line in comparison.noise_lines(world, runs)}
    groups = [f"p = {noise:g}" for noise in NOISES]
    tables = []
    for title in ("nll lower by", "accuracy higher by"):
        rows = []
        for label in ("uniform", "online", *REFERENCES):
            row = [_source(label)]
            for line in (lines[label, group] for group in groups):
                level, gain = (line.nll, line.gain) if title.startswith("nll") else (line.accuracy, line.accuracy_gain)
                if level is None:
                    row.append("not run")
                else:
                    row.append(f"({level.value:.3f})" if label == "uniform" else marked(gain))
            rows.append(row)
        tables.append(markdown([title, *groups], rows))
    return "\n".join(tables)


def scores_table(chosen: Arm, world: WorldName, runs: Rows) -> str:
    """Every weighting by noise and reference: gain in nll over uniform and over CAL, and in accuracy over uniform."""
    lines = {(line.label, line.group): line for line in comparison.lines(chosen, world, runs)}
    places = [f"p = {noise:g}, {reference}" for noise in (0.0, MAIN_NOISE) for reference in ("final", "larger")]
    tables = []
    for title, first, accuracy in (
        ("nll lower than uniform's by", "uniform", False),
        ("nll lower than CAL's by", "CAL", False),
        ("accuracy higher than uniform's by", "uniform", True),
    ):
        rows = []
        for label in dict.fromkeys(label for label, group in lines if group.startswith(f"{first}, ")):
            row = [label]
            for line in (lines.get((label, f"{first}, {place}")) for place in places):
                if line is None:
                    row.append("")
                    continue
                level, gain = (line.accuracy, line.accuracy_gain) if accuracy else (line.nll, line.gain)
                if level is None:
                    row.append("not run")
                else:
                    row.append(f"({level.value:.3f})" if label == first else marked(gain))
            rows.append(row)
        tables.append(markdown([title, *places], rows))
    return "\n".join(tables)


def deltas_table(chosen: Arm, world: WorldName, runs: Rows, measurements: Rows) -> str:
    """How well measurements tell the kinds of words apart, and their scale."""
    frame = comparison.measured(chosen, world, measurements)
    if frame.empty:
        return "*Deltas by themselves: not run.*\n"
    by = "contrast" if len({fields.get("contrast") for fields in chosen.measurements}) > 1 else "reference"
    columns = {"mean_correlated": "correlated", "mean_irrelevant": "irrelevant", "mean_contradictory": "contradictory",
               "q90": "9 in 10 below", "auc_irrelevant": "AUC, irrelevant", "auc_contradictory": "AUC, contradictory",
               "swap_auc": "swap control", "reference_accuracy": "its own accuracy"}  # fmt: skip
    groups = {name: group for name, group in frame.groupby(by, sort=False) if len(group) > 1}
    return markdown(
        [f"{by}: mean deltas of words", "seeds", *columns.values()],
        [
            [str(name), str(len(group)), *(f"{value:.2f}" for value in group[list(columns)].mean())]
            for name, group in groups.items()
        ],
    )


def flips_line(chosen: Arm, world: WorldName, runs: Rows, measurements: Rows) -> str:
    frame = comparison.measured(chosen, world, measurements)
    if frame.empty:
        return "*Clamp flips: not run.*\n"
    flips = estimates.mean(frame["clamp_flips"].tolist())
    return f"Clamped deltas that differ by more than 0.05: {percent(flips, 1)} of the words' tokens.\n"


def drift_table(chosen: Arm, world: WorldName, runs: Rows, measurements: Rows) -> str:
    """Means over the seeds: rank correlation of the student's own deltas with the cache, and clamp flips."""
    tables = []
    for place, title in ((1, "rank correlation with the cache after step"), (2, "clamp flips against it after step")):
        rows, steps = [], list[int]()
        for label, logs in comparison.drift_logs(chosen, world, runs).items():
            steps = [entry[0] for entry in logs[0]]
            means = [sum(log[number][place] for log in logs) / len(logs) for number in range(len(steps))]
            rows.append([label, *(f"{mean:.2f}" for mean in means)])
        tables.append(markdown([title, *map(str, steps)], rows) if rows else "*Drift: not run.*\n")
    return "\n".join(tables)


def swap_table(chosen: Arm, world: WorldName, runs: Rows, measurements: Rows) -> str:
    """The oracle is listed and left out of the correlations: nobody has it. These have a value for each seed."""
    frame = comparison.measured(chosen, world, measurements)
    if frame.empty:
        return "*not run*\n"
    gains = comparison.gains_of(chosen, world, runs)
    swaps, knows = (
        {str(name): dict(zip(part["seed"], part[score], strict=True)) for name, part in frame.groupby("reference")}
        for score in ("swap_auc", "reference_accuracy")
    )
    rows = []
    for name in REFERENCES:
        shared = sorted(gains[name].keys() & swaps.get(name, {}).keys())
        if len(shared) > 1:
            swap, know = (sum(tested[name][seed] for seed in shared) / len(shared) for tested in (swaps, knows))
            gain = estimates.mean([gains[name][seed] for seed in shared])
            in_sample = "yes" if name in IN_SAMPLE else "no"
            rows.append([name, in_sample, str(len(shared)), f"{swap:.3f}", f"{know:.3f}", marked(gain)])
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


def _correlation(seeds: list[tuple[list[float], list[float]]]) -> str:
    usable = [value for one, other in seeds if not math.isnan(value := estimates.rank_correlation(one, other))]
    if len(usable) < 2:
        return "not run"
    mean = estimates.mean(usable)
    return marked(dataclasses.replace(mean, low=max(mean.low, -1.0), high=min(mean.high, 1.0)))


_EXTRA: dict[str, Callable[[Arm, WorldName, Rows, Rows], str]] = {
    "contrast": deltas_table,
    "precision": flips_line,
    "reference": deltas_table,
    "staleness": drift_table,
    "swap": swap_table,
}


def pairs_table(runs: Rows) -> str:
    """Paired differences of two conditions, in the better sense, where two seeds or more have both."""
    rows = []
    for title, (one, other) in PAIRS.items():
        for world in WORLDS:
            lower, higher = (
                comparison.differences(*(comparison.scores(runs, world, fields, score) for fields in order))
                for score, order in (("nll", (other, one)), ("accuracy", (one, other)))
            )
            if len(lower) > 1:
                gains = [marked(estimates.mean(list(values.values()))) for values in (lower, higher)]
                rows.append([title, world, str(len(lower)), *gains])
    return markdown(["", "world", "seeds", "nll lower by", "accuracy higher by"], rows)
