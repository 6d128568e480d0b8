"""Compares the conditions of an arm with its first one, and pairs of conditions, over the seeds that have both."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

import condition
import estimates
from arms import ARMS, NOISE_ARMS, NOISES, Arm, Fields, bounds, cached, online
from condition import MAIN_NOISE, MAX_SEEDS, REFERENCES, Measurement, Run, WorldName
from estimates import Estimate

Rows = Mapping[str, Mapping[str, Any]]
"""Of a results table, by key."""
DriftLog = list[tuple[int, float, float]]
_SMALL = bounds("0.1, 0.5")
PAIRS: dict[str, tuple[Fields, Fields]] = {
    **{f"`{name}` against online": (cached(name), online()) for name in REFERENCES if name != "oracle"},
    **{
        f"`{name}` against online, p = {noise:g}": (cached(name, noise=noise), online(noise=noise))
        for noise in NOISES
        if noise != MAIN_NOISE
        for name in ("initial", "final", "crossfit", "longer", "larger")
    },
    **{
        f"`{name}` [0.2, 1] against online [0.1, 0.5]": (cached(name), online(**_SMALL))
        for name in ("initial", "final", "crossfit", "longer", "larger")
    },
    **{
        f"`{one}` against `{other}`": (cached(one), cached(other))
        for one, other in (("crossfit", "final"), ("longer", "crossfit"), ("larger", "longer"), ("larger", "oracle"))
    },
    "`initial`: [0.1, 0.5] against [0.2, 1]": (cached("initial", **_SMALL), cached("initial")),
    "online: [0.1, 0.5] against [0.2, 1]": (online(**_SMALL), online()),
    "`initial` [0.1, 0.5] against online [0.1, 0.5]": (cached("initial", **_SMALL), online(**_SMALL)),
    **{
        f"`{name}` [0.2, 1] against `initial` [0.1, 0.5]": (cached(name), cached("initial", **_SMALL))
        for name in ("longer", "larger")
    },
    "`initial`: alpha 0 against 0.2": (cached("initial", alpha="0"), cached("initial")),
    "`initial`: beta inf against 1": (cached("initial", beta="inf"), cached("initial")),
    "`initial`: [0, inf] against [0, 1]": (cached("initial", **bounds("0, inf")), cached("initial", alpha="0")),
    **{
        f"`{name}`: [{size}] against [0.2, 1]": (cached(name, **bounds(size)), cached(name))
        for name, size in (("initial", "1, 5"), ("larger", "0.4, 2"), ("larger", "1, 5"))
    },
    "two answers: joined against span": (cached("initial", answers=2, pool="joined"), cached("initial", answers=2)),
    "`initial`, 4 x 8: micro_batch against step": (
        cached("initial", accumulation=4, normalization="micro_batch"),
        cached("initial", accumulation=4),
    ),
    "online weights in both stages against finetuning only": (online(pretraining="online"), online()),
    **{
        f"contrast {contrast} against drop": (cached("initial", contrast=contrast), cached("initial"))
        for contrast in ("patch_mask 0.5", "patch_mask 0.7", "patch_mask 0.9", "gaussian_blur 1", "gaussian_blur 10")
    },
}
"""What the text of docs/study.md compares beyond each arm's own first condition -> the one, the other."""


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


def run_rows(rows: Rows, world: WorldName, fields: Fields) -> dict[int, Mapping[str, Any]]:
    """By seed, of the runs that are in the record."""
    keys = _keys(world, tuple(sorted(fields.items())), condition.SIZES)
    return {seed: rows[key] for seed, key in enumerate(keys) if key in rows}


@functools.cache
def _keys(world: WorldName, fields: tuple[tuple[str, Any], ...], sizes: condition.Sizes) -> tuple[str, ...]:
    """Of every seed there may be; tables and plots ask for those of one condition a dozen times."""
    return tuple(Run(world=world, seed=seed, **dict(fields)).key for seed in range(MAX_SEEDS))


def scores(rows: Rows, world: WorldName, fields: Fields, score: str) -> dict[int, float]:
    """By seed, of the runs that are in the record."""
    return {seed: float(row[score]) for seed, row in run_rows(rows, world, fields).items()}


def differences(one: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """One minus other, of the seeds that both have."""
    return {seed: one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())}


def lines(arm: Arm, world: WorldName, rows: Rows) -> Iterator[Line]:
    for group, conditions in arm.groups.items():
        first, compared = next(iter(conditions)), len(conditions) - 1 if arm.corrected else 1
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
                gain=_mean(gain.values(), compared),
                share=estimates.share([gain[seed] for seed in own], [whole[seed] for seed in own]) if gained else None,
                accuracy=_mean(accuracy[label].values()),
                accuracy_gain=_mean(differences(accuracy[label], accuracy[first]).values(), compared) if gain else None,
                text_nll=_mean(text[label].values()),
                text_change=_mean(value / base for value in change.values()),
            )


def _mean(values: Iterable[float], comparisons: int = 1) -> Estimate | None:
    """None below two seeds: one is a try, not a result."""
    of_seeds = list(values)
    return estimates.mean(of_seeds, comparisons) if len(of_seeds) > 1 else None


def measured(arm: Arm, world: WorldName, rows: Rows) -> pd.DataFrame:
    """One row per measurement of the arm and seed that is in the record: its fields and scores."""
    keys = [
        Measurement(world=world, seed=seed, **fields).key for fields in arm.measurements for seed in range(MAX_SEEDS)
    ]
    return pd.DataFrame([dict(rows[key]) for key in keys if key in rows])


def noise_lines(world: WorldName, rows: Rows) -> Iterator[Line]:
    """Of `NOISE_ARMS`; conditions that several of them have come again, and are the same runs."""
    for name in NOISE_ARMS:
        yield from lines(ARMS[name], world, rows)


def gains_of(arm: Arm, world: WorldName, rows: Rows) -> dict[str, dict[int, float]]:
    """By reference and seed: how much lower the nll is than with uniform weights."""
    conditions = next(iter(arm.groups.values()))
    uniform = scores(rows, world, conditions["uniform"], "nll")
    return {name: differences(uniform, scores(rows, world, conditions[name], "nll")) for name in REFERENCES}


def drift_logs(arm: Arm, world: WorldName, rows: Rows) -> dict[str, list[DriftLog]]:
    """By reference, of every seed: (step, rank correlation, clamp flips)."""
    logs = {
        label: [json.loads(str(row["drift_log"])) for row in run_rows(rows, world, fields).values()]
        for label, fields in arm.groups["drift"].items()
    }
    return {label: of_seeds for label, of_seeds in logs.items() if of_seeds}
