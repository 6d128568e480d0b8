"""From the record to numbers: the conditions of an arm against its first, over the seeds that have both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

import paired
from arm import Arm
from condition import Measurement, Run
from paired import Estimate

Rows = Mapping[str, Mapping[str, Any]]
"""Of a results table, by key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One condition of one group."""

    group: str
    label: str
    score: Estimate | None
    """None: not run."""
    gain: Estimate | None
    """Paired difference to the group's first condition; None for that one itself."""
    nll_gain: Estimate | None
    """How much lower the nll of the true words is, likewise."""
    share: Estimate | None
    """Of the gain of the arm's `gain_of`."""


def rows_by_key(frame: pd.DataFrame) -> Rows:
    return {str(row["key"]): row for row in frame.to_dict("records")}  # type: ignore[misc]


def scores(rows: Rows, world: str, fields: Mapping[str, Any], score: str, seeds: int = 64) -> dict[int, float]:
    """By seed, of the runs that are in the record."""
    found = {}
    for seed in range(seeds):
        row = rows.get(Run(world=world, seed=seed, **fields).key)  # type: ignore[arg-type]
        if row is not None:
            found[seed] = float(row[score])
    return found


def differences(one: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """One minus other, of the seeds that both have."""
    return {seed: one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())}


def lines(arm: Arm, world: str, rows: Rows) -> Iterator[Line]:
    for group, conditions in arm.groups.items():
        first = next(iter(conditions))
        found = {label: scores(rows, world, fields, arm.score) for label, fields in conditions.items()}
        nll = {label: scores(rows, world, fields, "nll") for label, fields in conditions.items()}
        whole = differences(found[arm.gain_of], found[first]) if arm.gain_of in found else {}
        for label in conditions:
            gain = differences(found[label], found[first])
            own = [seed for seed in gain if seed in whole]
            compared = label != first and bool(gain)
            yield Line(
                group=group,
                label=label,
                score=paired.mean(list(found[label].values())) if found[label] else None,
                gain=paired.mean(list(gain.values())) if compared else None,
                nll_gain=paired.mean([-d for d in differences(nll[label], nll[first]).values()]) if compared else None,
                share=paired.share([gain[seed] for seed in own], [whole[seed] for seed in own])
                if compared and own and label != arm.gain_of
                else None,
            )


def measured(arm: Arm, world: str, rows: Rows, seeds: int = 64) -> pd.DataFrame:
    """One row per measurement of the arm and seed that is in the record: its fields and scores."""
    found = []
    for fields in arm.measurements:
        for seed in range(seeds):
            row = rows.get(Measurement(world=world, seed=seed, **fields).key)  # type: ignore[arg-type]
            if row is not None:
                found.append(dict(row))
    return pd.DataFrame(found)
