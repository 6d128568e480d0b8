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
    wanted = times_of(np.bincount(source_of, minlength=len(names)).tolist(), names, shares)
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


def times_of(sizes: Sequence[int], names: Sequence[str], shares: Mapping[str, float]) -> list[float]:
    """How often an epoch takes the rows of each source, which has so many; ConfigError where one has none."""
    if 0 in sizes:
        raise ConfigError(f"--mix {names[sizes.index(0)]}: no row of this source can be used; leave its data out")
    return [shares[name] * sum(sizes) / size for name, size in zip(names, sizes, strict=True)]


def rows_taken(names: Sequence[str], counts: Sequence[int], sizes: Sequence[int]) -> str:
    """Says how many rows of each source an epoch takes, and how many there are."""
    told = zip(names, counts, sizes, strict=True)
    return ", ".join(f"{count:,} of {name}, which has {size:,}" for name, count, size in told)


def draw(strata: Sequence[Stratum], *, seed: Sequence[int], epoch: int) -> np.ndarray:
    """Indices of an epoch in order: those of each stratum, spread evenly, so that every stretch has the shares."""
    if not strata:
        return np.zeros(0, np.int64)
    # A last number that is never 0: seeds that differ by zeros at their end are one to numpy.
    places = spread([stratum.count for stratum in strata], seed=[*seed, epoch, 1])
    rows = [_next_rows(stratum, seed=[*seed, 1 + at], epoch=epoch) for at, stratum in enumerate(strata)]
    order: np.ndarray = np.concatenate(rows)[places]
    return order


def spread(counts: Sequence[int], *, seed: Sequence[int]) -> np.ndarray:
    """An order of the items of several runs, one run behind the other: each stays in order, and all end together."""
    rng = np.random.default_rng(seed)
    return np.argsort(
        np.concatenate([(np.arange(count) + rng.random(count)) / count for count in counts]), kind="stable"
    )


def passes_of(size: int, start: int, count: int) -> range:
    """Numbers of the passes over so many rows in which count rows from this one on lie."""
    return range(start // size, (start + count - 1) // size + 1) if count else range(0)


def _next_rows(stratum: Stratum, *, seed: Sequence[int], epoch: int) -> np.ndarray:
    """[count]: the part of this epoch of one permutation behind the other."""
    size, start = len(stratum.rows), epoch * stratum.count
    passes = passes_of(size, start, stratum.count)
    orders = [np.random.default_rng([*seed, 1 + number, 2]).permutation(stratum.rows) for number in passes]
    return np.concatenate(orders)[start - passes.start * size :][: stratum.count]
