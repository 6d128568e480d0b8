"""Orders the rows that each lane of a streamed epoch reads: row groups that lie together, rows shuffled among them.

A lane is one worker of one rank; what it reads is cut out of the epoch, so that no two lanes read the same row twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from cal_trainer.data.mixing import passes_of, spread


def lane_sizes(num_rows: int, num_lanes: int, batch_size: int) -> np.ndarray:
    """[num_lanes] int64: rows of each lane when batch i is of lane i % num_lanes and only the last one is short."""
    full, rest = divmod(num_rows, batch_size)
    sizes = np.full(num_lanes, full // num_lanes * batch_size, np.int64)
    sizes[: full % num_lanes] += batch_size
    sizes[full % num_lanes] += rest
    return sizes


def lane_indices(
    starts: np.ndarray, group_order: np.ndarray, start: int, stop: int, *, shuffle_rows: int, seed: list[int]
) -> Iterator[int]:
    """Indices of one lane: rows [start, stop) of the row groups in this order, shuffled among neighbouring groups."""
    rng = np.random.default_rng(seed)
    held: list[np.ndarray] = []
    at = 0
    for group in group_order:
        first, size = int(starts[group]), int(starts[group + 1] - starts[group])
        low, high = max(start - at, 0), min(stop - at, size)
        at += size
        if low < high:
            held.append(np.arange(first + low, first + high))
        if sum(map(len, held)) >= shuffle_rows:
            yield from rng.permutation(np.concatenate(held)).tolist()
            held = []
        if at >= stop:
            break
    if held:
        yield from rng.permutation(np.concatenate(held)).tolist()


class MixedLanes:
    """Lanes of an epoch that takes of every source a count of rows, which may be more or less than it has.

    A source is an endless run of passes over its row groups, each in an order of its own, of which every epoch takes
    the next rows, and every lane a stretch. Sources are spread evenly over the epoch, as in `mixing.draw`.

    Args:
        groups: for each source its row groups.
        counts: for each source the rows that an epoch takes.
        starts: as in RowGroups.
    """

    def __init__(self, groups: Sequence[np.ndarray], counts: Sequence[int], starts: np.ndarray) -> None:
        self._groups, self._counts, self._starts = groups, counts, starts
        self._sizes = [int(np.diff(starts)[part].sum()) for part in groups]

    def __call__(self, cuts: np.ndarray, *, shuffle_rows: int, seed: int, epoch: int) -> list[Iterator[int]]:
        """Indices of lanes that end at these rows of the epoch; each source shuffles its part of shuffle_rows."""
        of_places = np.repeat(np.arange(len(self._counts), dtype=np.int32), self._counts)
        source_at = of_places[spread(self._counts, seed=[seed, 0, epoch, 1])]
        before = np.zeros(len(self._counts), np.int64)
        lanes = []
        for lane, (start, stop) in enumerate(pairwise(cuts)):
            held = np.bincount(source_at[start:stop], minlength=len(self._counts))
            rows = [
                self._rows(
                    source, epoch * count + int(before[source]), int(held[source]), seed,
                    max(1, round(shuffle_rows * count / len(source_at))), [seed, epoch, lane, 1 + source, 3],
                )
                for source, count in enumerate(self._counts)
            ]  # fmt: skip
            lanes.append(_merged(rows, source_at[start:stop]))
            before += held
        return lanes

    def _rows(
        self, source: int, start: int, count: int, seed: int, shuffle_rows: int, own_seed: list[int]
    ) -> Iterator[int]:
        """So many rows of a source's passes from this one on."""
        size = self._sizes[source]
        passes = passes_of(size, start, count)
        orders = [np.random.default_rng([seed, 1 + source, 1 + number, 2]).permutation(self._groups[source])
                  for number in passes]  # fmt: skip
        if not orders:
            return iter(())
        first = start - passes.start * size
        return lane_indices(
            self._starts, np.concatenate(orders), first, first + count, shuffle_rows=shuffle_rows, seed=own_seed
        )


def _merged(rows: Sequence[Iterator[int]], sources: np.ndarray) -> Iterator[int]:
    for source in sources:
        yield next(rows[source])
