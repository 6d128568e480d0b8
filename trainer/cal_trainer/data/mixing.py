"""Draws the rows of an epoch so that every source has its share of them, however many rows it has.

A source is an endless run of permutations of its rows, of which every epoch takes the next ones: no row comes a second
time before all of its source came once, from one epoch to the next too. The place in it follows from the epoch's number
alone, so nothing needs to be remembered for a resumed run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cal_schemas.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Stratum:
    """Rows of one source, those of one modality where steps are."""

    source: int
    """Its index."""
    rows: np.ndarray
    """[rows] indices; at least one."""
    count: int
    """How many of them an epoch takes; may be more than there are."""


def strata_of(
    pools: Sequence[np.ndarray], source_of: np.ndarray, names: Sequence[str], shares: Mapping[str, float]
) -> list[list[Stratum]]:
    """For each pool the strata of its sources; together an epoch of as many rows as the data has, to the nearest row.

    Args:
        pools: indices, of all rows or of each modality. A source has of each modality the part that it is of its rows.
        source_of: [N] index of the source of every row.
        names: of the sources.
        shares: by name, 1 in all.

    Raises ConfigError for a source without a row.
    """
    sizes = np.bincount(source_of, minlength=len(names)).tolist()
    if 0 in sizes:
        raise ConfigError(f"--mix {names[sizes.index(0)]}: no row of this source can be used; leave its data out")
    wanted = [shares[name] * len(source_of) / size for name, size in zip(names, sizes, strict=True)]
    strata = []
    for pool in pools:
        parts = [pool[source_of[pool] == at] for at in range(len(names))]
        strata.append(
            [
                Stratum(source=at, rows=rows, count=max(1, round(times * len(rows))))
                for at, (rows, times) in enumerate(zip(parts, wanted, strict=True))
                if len(rows)
            ]
        )
    return strata


def rows_taken(strata: Sequence[Sequence[Stratum]], names: Sequence[str]) -> str:
    """Says how many rows of each source an epoch takes, and how many there are."""
    taken, held = np.zeros(len(names), int), np.zeros(len(names), int)
    for stratum in (stratum for of_pool in strata for stratum in of_pool):
        taken[stratum.source] += stratum.count
        held[stratum.source] += len(stratum.rows)
    return ", ".join(
        f"{count:,} of {name}, which has {rows:,}" for name, count, rows in zip(names, taken, held, strict=True)
    )


def draw(strata: Sequence[Stratum], *, seed: Sequence[int], epoch: int) -> np.ndarray:
    """Indices of an epoch in order: those of each stratum, spread evenly, so that every stretch has the shares."""
    if not strata:
        return np.zeros(0, np.int64)
    # A number behind the epoch's that is never 0: seeds that differ by zeros at their end are one to numpy.
    places = np.random.default_rng([*seed, epoch, 1])
    rows = [_next_rows(stratum, seed=[*seed, 1 + at], epoch=epoch) for at, stratum in enumerate(strata)]
    at = [(np.arange(len(part)) + places.random(len(part))) / len(part) for part in rows]
    return np.concatenate(rows)[np.argsort(np.concatenate(at), kind="stable")]


def _next_rows(stratum: Stratum, *, seed: Sequence[int], epoch: int) -> np.ndarray:
    """[count]: the part of this epoch of one permutation behind the other."""
    size, start = len(stratum.rows), epoch * stratum.count
    passes = range(start // size, (start + stratum.count - 1) // size + 1)
    orders = [np.random.default_rng([*seed, 1 + number, 2]).permutation(stratum.rows) for number in passes]
    return np.concatenate(orders)[start - passes.start * size :][: stratum.count]
