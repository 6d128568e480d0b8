"""From the record to numbers: the conditions of an arm against its first, over the seeds that have both."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

import paired
from arm import Arm, load
from condition import MAX_SEEDS, Measurement, Run, WorldName
from paired import Estimate

Rows = Mapping[str, Mapping[str, Any]]
"""Of a results table, by key."""
DriftLog = list[tuple[int, float, float]]
NOISE_ARMS = ("noise", "noise_students", "noise_models", "reference")
"""What one table and one plot show together: every reference at every noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One condition of one group. A gain is the paired difference to the group's first condition, in the better sense.

    None: not run with two seeds or more, or the first condition itself.
    """

    group: str
    label: str
    nll: Estimate | None
    """Of words that are true of clean images."""
    gain: Estimate | None
    """How much lower it is."""
    share: Estimate | None
    """Of the gain of the arm's `gain_of`; None where that is a loss, of which nobody wants a share."""
    accuracy: Estimate | None
    accuracy_gain: Estimate | None
    text_nll: Estimate | None
    """Of the answers of samples without an image; NaN where the data has none."""
    text_change: Estimate | None
    """How much higher it is, as a share of the first condition's mean over the same seeds."""


def rows_by_key(frame: pd.DataFrame) -> Rows:
    return {str(row["key"]): row for row in frame.to_dict("records")}  # type: ignore[misc]


def scores(rows: Rows, world: WorldName, fields: Mapping[str, Any], score: str) -> dict[int, float]:
    """By seed, of the runs that are in the record."""
    found = {}
    for seed in range(MAX_SEEDS):
        row = rows.get(Run(world=world, seed=seed, **fields).key)
        if row is not None:
            found[seed] = float(row[score])
    return found


def differences(one: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """One minus other, of the seeds that both have."""
    return {seed: one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())}


def lines(arm: Arm, world: WorldName, rows: Rows) -> Iterator[Line]:
    for group, conditions in arm.groups.items():
        first = next(iter(conditions))
        nll, accuracy, text = (
            {label: scores(rows, world, fields, name) for label, fields in conditions.items()}
            for name in ("nll", "accuracy", "text_nll")
        )
        whole = differences(nll[first], nll[arm.gain_of]) if arm.gain_of in nll else {}
        for label in conditions:
            gain = differences(nll[first], nll[label]) if label != first else {}
            own = [seed for seed in gain if seed in whole and label != arm.gain_of]
            gained = sum(whole[seed] for seed in own) > 0
            change = differences(text[label], text[first]) if label != first else {}
            base = sum(text[first][seed] for seed in change) / max(len(change), 1)
            yield Line(
                group=group,
                label=label,
                nll=_mean(nll[label].values()),
                gain=_mean(gain.values()),
                share=paired.share([gain[seed] for seed in own], [whole[seed] for seed in own]) if gained else None,
                accuracy=_mean(accuracy[label].values()),
                accuracy_gain=_mean(differences(accuracy[label], accuracy[first]).values()) if gain else None,
                text_nll=_mean(text[label].values()),
                text_change=_mean(value / base for value in change.values()),
            )


def _mean(values: Iterable[float]) -> Estimate | None:
    """None below two seeds: one is a try, not a result."""
    found = list(values)
    return paired.mean(found) if len(found) > 1 else None


def measured(arm: Arm, world: WorldName, rows: Rows) -> pd.DataFrame:
    """One row per measurement of the arm and seed that is in the record: its fields and scores."""
    found = []
    for fields in arm.measurements:
        for seed in range(MAX_SEEDS):
            row = rows.get(Measurement(world=world, seed=seed, **fields).key)
            if row is not None:
                found.append(dict(row))
    return pd.DataFrame(found)


def noise_lines(world: WorldName, rows: Rows) -> Iterator[Line]:
    """Of `NOISE_ARMS`; conditions that several of them have come again, and are the same runs."""
    for name in NOISE_ARMS:
        yield from lines(load(name), world, rows)


def drift_logs(arm: Arm, world: WorldName, rows: Rows) -> dict[str, list[DriftLog]]:
    """By reference, of every seed: (step, rank correlation, clamp flips)."""
    found: dict[str, list[DriftLog]] = {}
    for label, fields in arm.groups["drift"].items():
        keys = [Run(world=world, seed=seed, **fields).key for seed in range(MAX_SEEDS)]
        logs = [json.loads(str(rows[key]["drift_log"])) for key in keys if key in rows]
        if logs:
            found[label] = logs
    return found
