"""Reads rows of an annotated directory by their number, with the samples that they were measured from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import pyarrow as pa

from cal_pipeline.sources.images import read_images
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import read_samples
from cal_schemas.annotated import AnnotatedRow, rows_from_batch
from cal_schemas.errors import ConfigError, FormatError
from cal_schemas.metadata import ShardMetadata, ShardSource, drawn_rows, read_annotated_footer
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.sample import ImageRef, Sample, sample_key
from cal_schemas.storage.locations import Location, location
from cal_schemas.whole import open_shard

ROW_COLUMNS = (
    "sample_id", "sample_key", "images", "messages", "template_inputs", "status", "error", "label_ids",
    "label_positions", "delta_logits", "source",
)  # fmt: skip
"""What `rows_from_batch` makes a row of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NumberedRow:
    """A row of an annotated directory, with its sample also where its file does not hold it."""

    number: int
    """Of the whole directory, from 0: files in their order, rows in theirs."""
    annotated: AnnotatedRow
    image_folder: Location | None
    """Where the paths of its images start."""

    @property
    def sample(self) -> Sample:
        """As it was measured."""
        return self.annotated.sample

    @property
    def key_matches(self) -> bool:
        """Whether images and messages are still those that `sample_key` was made from."""
        # Bytes that were embedded on the way out are not what the key was made from; the path then was.
        return self.annotated.sample_key in (sample_key(self.sample), sample_key(by_path(self.sample)))

    def image_files(self) -> list[bytes]:
        """Its images as they are encoded, in order; ImageError where one cannot be read."""
        return read_images(self.sample.images, self.image_folder)


def by_path(sample: Sample) -> Sample:
    """The sample with its images by their paths alone."""
    return replace(sample, images=tuple(ImageRef(path=image.path) for image in sample.images))


def numbered_rows(
    dataset: AnnotatedDataset,
    numbers: Sequence[int] | np.ndarray,
    image_folder: Location | None = None,
    extra: Sequence[str] = (),
) -> Iterator[NumberedRow]:
    """The rows of these numbers, each once and ascending, of ROW_COLUMNS and `extra`; holds one row group at a time.

    Samples that a file does not hold (`carry` none, or paths into embedded images) are read from its source.
    `image_folder` replaces the one the file names. Raises ConfigError when such a source is gone or has changed since
    it was measured, FormatError naming a file that cannot be read.
    """
    wanted = np.unique(np.asarray(numbers, np.int64))
    columns = [name for name in dict.fromkeys([*ROW_COLUMNS, *extra]) if name in dataset.schema.names]
    first = 0
    for path, metadata in zip(dataset.files, dataset.metadata, strict=True):
        folder = image_folder or (location(metadata.source.image_folder) if metadata.source.image_folder else None)
        with open_shard(path) as file:
            mine = wanted[(wanted >= first) & (wanted < first + file.metadata.num_rows)] - first
            outside = metadata.carry == "none" or (metadata.carry == "paths" and folder is None)
            samples = _samples(path, metadata, mine) if len(mine) and outside else {}
            group_first = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                inside = mine[(mine >= group_first) & (mine < group_first + rows)]
                if len(inside):
                    chosen = file.read_row_group(group, columns=columns).take(pa.array(inside - group_first))
                    annotated = chain.from_iterable(map(rows_from_batch, chosen.to_batches()))
                    for number, row in zip(inside.tolist(), annotated, strict=True):
                        if number in samples:
                            row = replace(row, sample=samples[number])
                        yield NumberedRow(number=first + number, annotated=row, image_folder=folder)
                group_first += rows
            first += file.metadata.num_rows


def _samples(path: Location, metadata: ShardMetadata, rows: np.ndarray) -> dict[int, Sample]:
    wanted = set(rows.tolist())
    return {row: sample for row, sample in enumerate(source_samples(path, metadata)) if row in wanted}


def source_samples(path: Location, metadata: ShardMetadata) -> Iterator[Sample]:
    """The samples that a shard was measured from, one for each of its rows, read from its source.

    Raises ConfigError when the source is gone or is no longer the file that was measured, FormatError for a shard that
    lost rows and does not say which.
    """
    samples = _measured_samples(metadata)
    if metadata.filters:
        return _left_by_filter(path, samples)
    rows, given = read_annotated_footer(path).num_rows, int(drawn_rows(metadata.source).sum())
    if rows != given:
        raise FormatError(
            f"{path} has {rows} rows, its source gave {given}, and it does not say which are left: the samples of its "
            "rows are not known. Measure this shard again"
        )
    return samples


def _left_by_filter(path: Location, samples: Iterator[Sample]) -> Iterator[Sample]:
    """Of all samples those whose rows a filter left: they are known by their keys and keep their order."""
    with open_shard(path) as file:
        keys = iter(file.read(columns=["sample_key"]).column(0).to_pylist())
    key = next(keys, None)
    for sample in samples:
        if key is not None and sample_key(sample) == key:
            yield sample
            key = next(keys, None)
    if key is not None:
        raise ConfigError(f"{path}: its source holds no sample with the key {key}, in the order of the rows")


def _measured_samples(metadata: ShardMetadata) -> Iterator[Sample]:
    source = metadata.source
    if not location(source.uri).is_file():
        raise ConfigError(
            f"{source.uri} is gone, and the samples of this shard (carry {metadata.carry!r}) are in there: put it "
            "back, or measure with --carry images"
        )
    drawn = drawn_rows(source)
    last = 0
    folders = [source.image_folder] if source.image_folder else []
    for shard in plan_shards([source.uri], folders, data_format=source.data_format):
        now = shard.source
        if shard.problem:
            raise FormatError(shard.problem)
        if (now.size, now.mtime_ns, now.etag) != (source.size, source.mtime_ns, source.etag):
            raise ConfigError(
                f"{source.uri} has {now.size} bytes, {_state(now)}; when it was measured it had {source.size}, "
                f"{_state(source)}: the deltas are of an older source"
            )
        last = now.row_stop
        if now.row_stop <= source.row_start or now.row_start >= source.row_stop:
            continue
        for number, sample in enumerate(read_samples(shard), now.row_start):
            if source.row_start <= number < source.row_stop and drawn[number - source.row_start]:
                yield sample
    if last < source.row_stop:
        raise ConfigError(f"{source.uri} has {last} rows; {source.row_stop} were there when it was measured")


def _state(source: ShardSource) -> str:
    return f"etag {source.etag}" if source.etag else f"modified at {source.mtime_ns} ns"
