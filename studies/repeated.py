"""Compares a repeated study with the record: every row that both have, and the mean gain of its weights.

python studies/repeated.py study-again/results

Exit code: 0 near enough, 1 too far or nothing in common, 2 refused: rows that another version of the code made.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import results
from comparison import Rows, rows_by_key
from condition import WORLDS, Measurement, Run, WorldName, describe
from results import RecordError, Table

TOLERANCE = 0.1
"""Of a run's nll, in nats, of about 1.2, and of a measurement's accuracy and swap control. One processor repeats a run
to the last digit; another rounds otherwise, which some hundred steps amplify: with AVX2 or SSE4 in AVX-512's place ten
runs moved by 0.02, root mean square, and by 0.046 at most."""
GAIN_TOLERANCE = 0.05
"""Of the mean gain of all weighted runs of a world, in nats: a single run may move by more than weights bring, the mean
of four moved by 0.013 at most. In the arm `reference` it is about 0.1; weights that are lost gain nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Of one row: repeated minus recorded, by score."""

    item: Run | Measurement
    scores: dict[str, float]

    @property
    def largest(self) -> float:
        """Of those that `TOLERANCE` bounds; NaN where one is."""
        return max((abs(value) for value in self.scores.values()), key=lambda value: (value != value, value))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results_dir", type=Path, help="of the repeated study")
    parser.add_argument("--record", type=Path, default=results.RESULTS, help="default: the committed results")
    flags = parser.parse_args()
    try:
        return compare(flags.results_dir, flags.record)
    except RecordError as error:
        print(error, file=sys.stderr)
        return 2


def compare(repeated: Path, record: Path) -> int:
    """Prints what differs; returns the exit code."""
    runs = results.runs(repeated).read()
    if others := {made_by for made_by in runs["versions"] if made_by != results.versions()}:
        print(
            f"{repeated} was made by {', '.join(sorted(others))}; this is {results.versions()}: "
            "remove it, and repeat the arm",
            file=sys.stderr,
        )
        return 2
    compared = [
        *differences(results.runs(repeated), results.runs(record), ("nll", "accuracy")),
        *differences(results.measurements(repeated), results.measurements(record), ("swap_auc", "reference_accuracy")),
    ]
    total = len(runs) + len(results.measurements(repeated).read())
    if not compared:
        print(f"{repeated} and {record} have no row in common", file=sys.stderr)
        return 1
    for one in compared:
        values = ", ".join(f"{name} {value:+.5f}" for name, value in one.scores.items())
        print(f"{values}: {describe(one.item)}")
    far = [one for one in compared if not one.largest <= TOLERANCE]
    print(f"{len(compared)} rows, {total - len(compared)} more that the record lacks; largest difference "
          f"{max(one.largest for one in compared):.5f}, {len(far)} beyond {TOLERANCE:g}")  # fmt: skip
    lost = False
    for world in WORLDS:
        gains = mean_gains(world, rows_by_key(runs), rows_by_key(results.runs(record).read()))
        if gains is not None:
            print(f"mean gain of weighted runs, {world}: {gains[0]:+.3f} nats, recorded {gains[1]:+.3f}")
            lost |= not abs(gains[0] - gains[1]) <= GAIN_TOLERANCE
    return 1 if far or lost else 0


def differences(
    repeated: Table[Run] | Table[Measurement], record: Table[Run] | Table[Measurement], scores: Sequence[str]
) -> list[Difference]:
    """Of the rows that both have, in the order of the repeated ones."""
    recorded = rows_by_key(record.read())
    return [
        Difference(item=repeated.item(row), scores={name: row[name] - recorded[key][name] for name in scores})
        for key, row in rows_by_key(repeated.read()).items()
        if key in recorded
    ]


def mean_gains(world: WorldName, *tables: Rows) -> tuple[float, ...] | None:
    """Of each table, over the weighted runs of this world that all have, each beside its uniform run, in nats."""
    pairs = []
    for key, row in tables[0].items():
        if row["world"] != world or row["weights"] == "uniform":
            continue
        fields = {name: row[name] for name in ("seed", "noise", "text_share", "answers", "group_by")}
        uniform = Run(world=world, weights="uniform", **fields).key
        if all(key in table and uniform in table for table in tables):
            pairs.append((key, uniform))
    if not pairs:
        return None
    return tuple(
        sum(table[uniform]["nll"] - table[key]["nll"] for key, uniform in pairs) / len(pairs) for table in tables
    )


if __name__ == "__main__":
    sys.exit(main())
