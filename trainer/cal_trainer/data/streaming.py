"""Reads annotated shards row group by row group: data that does not fit into the Arrow cache a second time.

Still a map-style dataset, whose sampler asks for rows that lie together: `set_epoch`, skipping on resume and the split
over ranks are then those of the mapped dataset, exact and without decoding an image. `datasets`' own streaming gives
whole files to ranks (unequal rows hang a run) and loses the content of its shuffle buffer on resume.

A batch i of the global epoch belongs to lane i % (world_size * num_workers), which is one worker of one rank. The
epoch's shuffled row groups are cut into one stretch per lane; a lane shuffles the rows of as many consecutive row
groups as make up `shuffle_rows`, which is what its worker holds. Of a mix it does so source by source (`lanes`).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Unpack

import numpy as np
import pyarrow as pa
from torch.utils.data import Dataset, Sampler

from cal_pipeline.encoding.encoder import Encoder
from cal_schemas.errors import STATUS_OK, ConfigError
from cal_schemas.metadata import status_of_rows
from cal_schemas.opened import AnnotatedDataset, named
from cal_schemas.storage.locations import Location
from cal_schemas.whole import open_shard, validate_numbers
from cal_trainer.config import DEFAULT_SHUFFLE_ROWS
from cal_trainer.data.alignment import EncodesRows, Example, RowEncoder, RowOptions
from cal_trainer.data.dataset import (
    COLUMNS,
    DUMMY,
    columns_of_score,
    count_skipped,
    image_folders,
    is_ok,
    open_self_contained,
    report_skipped,
)
from cal_trainer.data.lanes import MixedLanes, lane_indices, lane_sizes
from cal_trainer.data.sampling import StepShape
from cal_trainer.data.shards import annotated_shards
from cal_trainer.data.sources import sources_of_files


@dataclass(frozen=True, kw_only=True, slots=True)
class RowGroups:
    """All row groups of a dataset, in order of files; U of them."""

    shard: np.ndarray
    """[U] int64: index of the file."""
    number: np.ndarray
    """[U] int64: row group of that file."""
    starts: np.ndarray
    """[U + 1] int64: index of the group's first usable row; the last entry is their number."""


class StreamedExamples(EncodesRows, Dataset[Example]):
    """Usable rows of annotated shards, read in row groups of which the last few are held; index DUMMY is the dummy.

    Any order of access gives the same rows; only that of `StreamSampler` is fast.

    Args:
        shuffle_rows: rows that are shuffled among each other; a worker holds those and two row groups more.

    Other arguments, and errors, as in AnnotatedExamples.
    """

    def __init__(
        self,
        path: Location | Sequence[Location],
        encoder: Encoder,
        *,
        image_folder: Location | None = None,
        shuffle_rows: int = DEFAULT_SHUFFLE_ROWS,
        crossfit: bool = False,
        partial: bool = False,
        **options: Unpack[RowOptions],
    ) -> None:
        if shuffle_rows < 1:
            raise ConfigError(f"shuffle_rows must be positive, got {shuffle_rows}")
        opened = open_self_contained(path, crossfit=crossfit, partial=partial)
        self.num_planned = opened.completeness.num_planned
        self.spec, self.shards = opened.spec, {"data_path": annotated_shards(opened)}
        self.shuffle_rows = shuffle_rows
        self._encode = RowEncoder(encoder, opened.spec, where=named(path), **options)
        self._files = opened.files
        columns = (*COLUMNS, *columns_of_score(opened, options))
        self._columns = [name for name in columns if name != "num_tokens" and name in opened.schema.names]
        self._folders, sources = image_folders(opened, image_folder), sources_of_files(opened)
        self.source_names, self._source_of = sources.names, sources.index
        self.groups, self.skipped = scan_row_groups(opened)
        report_skipped(named(path), len(self), self.skipped)
        self._held: OrderedDict[int, tuple[pa.Table, np.ndarray]] = OrderedDict()
        self._held_rows = 0
        self._capacity = 0
        self.hold_for(1)
        self.num_reads = 0

    def __len__(self) -> int:
        return int(self.groups.starts[-1])

    @property
    def groups_of_sources(self) -> list[np.ndarray]:
        """For each source its row groups."""
        return [np.flatnonzero(self._source_of[self.groups.shard] == at) for at in range(len(self.source_names))]

    @property
    def rows_of_sources(self) -> list[int]:
        """For each source its usable rows."""
        sizes = np.diff(self.groups.starts)
        return [int(sizes[groups].sum()) for groups in self.groups_of_sources]

    def hold_for(self, num_shuffled: int) -> None:
        """Has a worker hold what the sampler shuffles together, of so many parts of the data at a time."""
        # Of each fewer rows than its part of shuffle_rows, at least one, the group that made it enough, and the part of
        # the first group that belongs to another lane.
        self._capacity = self.shuffle_rows + num_shuffled * (1 + 2 * int(np.diff(self.groups.starts).max()))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_held": OrderedDict(), "_held_rows": 0}

    def __getitem__(self, index: int) -> Example:
        if index == DUMMY:
            return self.blank
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        group = int(np.searchsorted(self.groups.starts, index, side="right")) - 1
        table, usable = self._read(group)
        row = int(usable[index - int(self.groups.starts[group])])
        shard = int(self.groups.shard[group])
        example = self._encode(table.slice(row, 1).to_pylist()[0], self._folders[shard])
        return replace(example, source=int(self._source_of[shard]))

    def _read(self, group: int) -> tuple[pa.Table, np.ndarray]:
        if group in self._held:
            self._held.move_to_end(group)
            return self._held[group]
        path, number = self._files[int(self.groups.shard[group])], int(self.groups.number[group])
        with open_shard(path) as file:
            table = file.read_row_group(number, columns=self._columns)
            row = sum(file.metadata.row_group(before).num_rows for before in range(number))
        for batch in table.to_batches():
            validate_numbers(batch, path, row)
            row += batch.num_rows
        self.num_reads += 1
        group_rows = table, np.flatnonzero(is_ok(table))
        self._held_rows += len(group_rows[1])
        while self._held_rows > self._capacity:
            _, (_, dropped) = self._held.popitem(last=False)
            self._held_rows -= len(dropped)
        self._held[group] = group_rows
        return group_rows


def scan_row_groups(opened: AnnotatedDataset) -> tuple[RowGroups, Counter[str]]:
    """Row groups with their usable rows, and the others by status.

    Reads footers, and the status column of those row groups whose statistics do not say that all are ok.
    """
    shards, numbers, sizes, skipped = [], [], [0], Counter[str]()
    for shard, path in enumerate(opened.files):
        with open_shard(path) as file:
            for number in range(file.metadata.num_row_groups):
                group = file.metadata.row_group(number)
                usable = group.num_rows
                if status_of_rows(group) != STATUS_OK:
                    statuses = file.read_row_group(number, columns=["status"])
                    usable = int(is_ok(statuses).sum())
                    skipped += count_skipped(statuses)
                shards.append(shard)
                numbers.append(number)
                sizes.append(usable)
    return RowGroups(
        shard=np.array(shards, np.int64), number=np.array(numbers, np.int64), starts=np.cumsum(sizes, dtype=np.int64)
    ), skipped


class StreamSampler(Sampler[int]):
    """Indices of the global epoch, DUMMY included, such that each worker of each rank reads row groups of its own.

    Every row once an epoch, or every source by its count, whatever the numbers; the order is one of seed, epoch and all
    numbers here, so a resumed run must keep them.

    Args:
        examples: what is sampled.
        shape: of a step, and of the workers that read it.
        seed: of the run; the same on all ranks.
        counts: rows that an epoch takes of each source; None takes every row once.
    """

    def __init__(
        self, examples: StreamedExamples, shape: StepShape, *, seed: int, counts: Sequence[int] | None = None
    ) -> None:
        self._starts, self._shuffle_rows = examples.groups.starts, examples.shuffle_rows
        self._mixed = None if counts is None else MixedLanes(examples.groups_of_sources, counts, self._starts)
        self._num_rows = len(examples) if counts is None else sum(counts)
        self._batch_size, self._seed = shape.batch_size, seed
        self._num_lanes = shape.world_size * max(1, shape.num_workers)
        self.steps_per_epoch = -(-self._num_rows // shape.size)
        self._num_indices = self.steps_per_epoch * shape.size
        self.epoch = 0

    def __len__(self) -> int:
        return self._num_indices

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        seed = [self._seed, self.epoch]
        cuts = np.append(0, np.cumsum(lane_sizes(self._num_rows, self._num_lanes, self._batch_size)))
        if self._mixed is None:
            order = np.random.default_rng(seed).permutation(len(self._starts) - 1)
            lanes = [
                lane_indices(
                    self._starts, order, int(cuts[lane]), int(cuts[lane + 1]),
                    shuffle_rows=self._shuffle_rows, seed=[*seed, lane],
                )
                for lane in range(self._num_lanes)
            ]  # fmt: skip
        else:
            lanes = self._mixed(cuts, shuffle_rows=self._shuffle_rows, seed=self._seed, epoch=self.epoch)
        for batch in range(self._num_indices // self._batch_size):
            indices = list(islice(lanes[batch % self._num_lanes], self._batch_size))
            yield from indices + [DUMMY] * (self._batch_size - len(indices))
