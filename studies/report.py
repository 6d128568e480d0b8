"""Tables of docs/study.md and its plots, from the committed results; nothing is trained.

python studies/report.py
python studies/report.py --arms quick --results_dir quick --print
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import arm
import comparison
import figures
import paired
import results
from arm import Arm
from comparison import Line, Rows
from condition import REFERENCES, WORLDS
from paired import Estimate
from pairs import PAIRS

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, IMAGES = DOCS / "study.md", DOCS / "images"
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=arm.ARMS, default=[name for name in arm.ARMS if name != "quick"])
    parser.add_argument("--results_dir", type=Path, default=results.RESULTS)
    parser.add_argument("--print", action="store_true", help="print the tables, write no page and no plots")
    flags = parser.parse_args()
    tables = tables_of(flags.arms, flags.results_dir)
    if flags.print:
        for name, table in tables.items():
            print(f"{name}: {arm.load(name).question}\n\n{table}")
        return 0
    tables["pairs"] = pairs_table(flags.results_dir)
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), tables), encoding="utf-8")
    figures.write_all(flags.results_dir, IMAGES)
    return 0


def tables_of(arms: Sequence[str], results_dir: Path) -> dict[str, str]:
    """By arm, Markdown: for each world the conditions, and what else the arm asks."""
    runs = comparison.rows_by_key(results.runs(results_dir).read())
    measurements = comparison.rows_by_key(results.measurements(results_dir).read())
    found = {}
    for name in arms:
        chosen, parts = arm.load(name), []
        for world in WORLDS:
            lines = list(comparison.lines(chosen, world, runs))
            if not any(line.nll for line in lines):
                parts += [f"*World of {world}: not run.*\n"] if name != "quick" else []
                continue
            table = _swap_table(chosen, world, runs, measurements) if name == "swap" else _table(chosen, lines)
            parts.append(f"World of {world}:\n\n{table}")
            extra = {"reference": _deltas_table, "contrast": _deltas_table, "precision": _flips_table}.get(name)
            if extra:
                parts.append(extra(chosen, world, measurements))
            if name == "staleness":
                parts.append(_drift_table(chosen, world, runs))
        found[name] = "\n".join(parts)
    return found


def pairs_table(results_dir: Path) -> str:
    """Markdown: paired differences of two conditions, in the better sense, where two seeds or more have both."""
    runs = comparison.rows_by_key(results.runs(results_dir).read())
    rows = []
    for title, (one, other) in PAIRS.items():
        for world in WORLDS:
            lower, higher = (
                comparison.differences(*(comparison.scores(runs, world, fields, score) for fields in order))
                for score, order in (("nll", (other, one)), ("accuracy", (one, other)))
            )
            if len(lower) > 1:
                gains = [_marked(paired.mean(list(values.values()))) for values in (lower, higher)]
                rows.append([title, world, str(len(lower)), *gains])
    return markdown(["", "world", "seeds", "nll lower by", "accuracy higher by"], rows)


def written(page: str, tables: dict[str, str]) -> str:
    """The page with these tables between their markers."""
    return _BLOCK.sub(lambda block: block[1] + tables.get(block[2], block[0]) + block[3], page)


def _table(chosen: Arm, lines: Sequence[Line]) -> str:
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
        row += [str(line.nll.count), f"{line.nll.value:.3f}", _marked(line.gain)]
        row += [percent(line.share)] if chosen.gain_of else []
        row += [f"{line.accuracy.value:.3f}", _marked(line.accuracy_gain)]
        if chosen.with_text and line.text_nll is not None:
            change = line.text_change
            bold = "**" if change is not None and change.excludes_zero else ""
            row += [f"{line.text_nll.value:.3f}", f"{bold}{percent(change, 2)}{bold}"]
        rows.append(row)
    return markdown(header, rows)


def _deltas_table(chosen: Arm, world: str, measurements: Rows) -> str:
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
            [name, str(len(group)), *(f"{value:.2f}" for value in group[list(columns)].mean())]
            for name, group in groups.items()
        ],
    )


def _flips_table(chosen: Arm, world: str, measurements: Rows) -> str:
    frame = comparison.measured(chosen, world, measurements)
    if frame.empty:
        return "*Clamp flips: not run.*\n"
    flips = paired.mean(frame["clamp_flips"].tolist())
    return f"Clamped deltas that differ by more than 0.05: {percent(flips, 1)} of the words' tokens.\n"


def _drift_table(chosen: Arm, world: str, runs: Rows) -> str:
    rows = []
    for label, logs in figures.drift_logs(chosen, world, runs).items():
        steps = sorted({step for log in logs for step, _, _ in log})
        cells = [[{step: value for step, value, _ in log}[at] for log in logs] for at in steps]
        rows.append([label, *(f"{sum(values) / len(values):.2f}" for values in cells)])
    if not rows:
        return "*Drift: not run.*\n"
    return markdown(["rank correlation with the cache after step", *map(str, steps)], rows)


def _swap_table(chosen: Arm, world: str, runs: Rows, measurements: Rows) -> str:
    """The test beside the gain, and their rank correlation over references, a value for each seed.

    The oracle is listed, and left out of the correlation: nobody has it.
    """
    frame = comparison.measured(chosen, world, measurements)
    if frame.empty:
        return "*not run*\n"
    conditions = next(iter(chosen.groups.values()))
    uniform = comparison.scores(runs, world, conditions["uniform"], "nll")
    gains = {
        name: comparison.differences(uniform, comparison.scores(runs, world, conditions[name], "nll"))
        for name in REFERENCES
    }
    swaps = {name: dict(zip(part["seed"], part["swap_auc"], strict=True)) for name, part in frame.groupby("reference")}
    rows = [
        [
            name,
            str(len(swaps[name])),
            f"{sum(swaps[name].values()) / len(swaps[name]):.3f}",
            _marked(paired.mean(list(gains[name].values()))),
        ]
        for name in REFERENCES
        if swaps.get(name) and gains[name]
    ]
    text = markdown(["reference", "seeds", "swap control", "nll is lower by"], rows)
    names = [name for name in REFERENCES if name != "oracle"]
    knows = {
        name: dict(zip(part["seed"], part["reference_accuracy"], strict=True))
        for name, part in frame.groupby("reference")
    }
    shared = [seed for seed in uniform if all(seed in gains[name] and seed in swaps.get(name, {}) for name in names)]
    which = f"the {len(names)} references without the oracle, mean over the seeds that have them all"
    for title, tested in (("swap control", swaps), ("the reference's own accuracy on clean pictures", knows)):
        found = [
            paired.rank_correlation([tested[name][seed] for name in names], [gains[name][seed] for name in names])
            for seed in shared
        ]
        if len(usable := [value for value in found if not math.isnan(value)]) > 1:
            mean = paired.mean(usable)
            mean = dataclasses.replace(mean, low=max(mean.low, -1.0), high=min(mean.high, 1.0))
            text += f"\nRank correlation of the gain with {title}, over {which}: {_told(mean)}, {mean.count} seeds.\n"
    return text


def _marked(estimate: Estimate | None) -> str:
    """Bold where the interval excludes zero."""
    if estimate is None:
        return ""
    return f"**{_told(estimate)}**" if estimate.excludes_zero else _told(estimate)


def _told(estimate: Estimate) -> str:
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


if __name__ == "__main__":
    sys.exit(main())
