"""Writes annotated shards as others get them: without paths of this machine, and with or without image files."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cal_pipeline.inspect.tables.filtered_shards import final_names
from cal_pipeline.inspect.tables.private_text import PrivateText, holds_bytes, without_images
from cal_pipeline.output.verify_shard import check_shard
from cal_pipeline.sources.images import read_image_file
from cal_schemas.errors import STATUS_OK, ConfigError, FormatError, ImageError
from cal_schemas.features import HUGGINGFACE, feature_text, features_of, with_features
from cal_schemas.metadata import Carry, ShardMetadata, read_shard_metadata
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.sample import ImageRef
from cal_schemas.storage.locations import Location, location
from cal_schemas.whole import open_shard
from cal_schemas.writer import MAX_ROW_GROUP_IMAGE_BYTES, MAX_ROW_GROUP_ROWS, parquet_writer

Images = Literal["embed", "leave_out"]
_FORMAT = 2
"""Of what is made of a shard; raise on any change: what is half published is then not continued."""
_BATCH_ROWS = 64
_log = logging.getLogger(__name__)
_AS_THEY_ARE = ("messages", "template_inputs", "status", "sample_key", "images")
"""Words belong to their label ids, and images are looked at on their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedShards:
    """Annotated shards on their way out."""

    opened: AnnotatedDataset
    names: Mapping[Location, Path]
    """Of every shard, also of those that are missing."""
    images: Images | None
    """None: they hold no images."""
    image_folder: Location | None
    private: PrivateText

    @classmethod
    def of(
        cls, opened: AnnotatedDataset, roots: list[Location], *, images: Images | None, image_folder: Location | None
    ) -> PublishedShards:
        """ConfigError where their images would be published and nobody said so, or two have one name."""
        carried = {item.carry for item in opened.metadata}
        if carried == {"none"}:
            if images == "embed":
                raise ConfigError("--images embed: this is a sidecar (--carry none), which has no column of images")
        elif images is None and carried & {"images", "embedded"}:
            raise ConfigError(
                "these shards hold the image files themselves, which may not be yours to publish: --images embed "
                "publishes them, --images leave_out publishes everything else"
            )
        held = [field.name for field in opened.schema if field.name != "images" and holds_bytes(field.type)]
        if held and images != "embed":
            _log.warning("the columns %s hold bytes: those of image files are left out", held)
        private = PrivateText(opened.metadata, opened.files, image_folder)
        names = final_names(roots, opened.completeness.missing)
        images = None if carried == {"none"} else images or "leave_out"
        return cls(opened=opened, names=names, images=images, image_folder=image_folder, private=private)

    @property
    def carry(self) -> Carry:
        """Of what is published."""
        return "none" if self.images is None else "images" if self.images == "embed" else "paths"

    def plan(self) -> list[dict[str, object]]:
        """As a run's plan, without its sources; `published` names the state of each shard that is there."""
        there = dict(zip(self.opened.files, self.opened.rows, strict=True))
        rows = {**there, **self.opened.completeness.missing}
        return [
            {
                "name": self.names[file].as_posix().removesuffix(".parquet"),
                "source": {"num_rows": count},
                **({"published": self._state(file)} if file in there else {}),
            }
            for file, count in sorted(rows.items(), key=lambda item: self.names[item[0]].as_posix())
        ]

    def _state(self, file: Location) -> str:
        """Digest of a file's footer, which has size and statistics of every page, and of what is made of it."""
        with file.open("rb") if isinstance(file, Path) else file.open_random() as opened:
            opened.seek(-8, 2)
            size = int.from_bytes(opened.read(4), "little")
            opened.seek(-8 - size, 2)
            footer = opened.read(size)
        return hashlib.sha256(footer + f"{_FORMAT} {self.images}".encode()).hexdigest()[:32]

    def validate(self, file: Location) -> None:
        """Reads a shard to its end; FormatError for whatever is wrong with it."""
        check = check_shard(file, str(file))
        # That rows are missing is said, and allowed, before.
        short = self.opened.completeness.short.get(file)
        if problems := [item for item in check.problems if not (short and item.startswith(f"{short[0]} rows, "))]:
            raise FormatError(f"{file}: {'; '.join(problems)}. cal-precompute --verify lists all that is wrong")

    def write(self, file: Location, target: Path) -> None:
        """Writes what is published of a shard; the same shard gives the same bytes. OSError where there is no space."""
        metadata = read_shard_metadata(file)
        folder = self.image_folder or (
            location(metadata.source.image_folder) if metadata.source.image_folder is not None else None
        )
        with open_shard(file) as shard:
            had = shard.schema_arrow
            # What has no image any more is none to `datasets`, which would look for its file here.
            carried = {
                name: feature for name, feature in features_of(had).items()
                if name != "images" and (self.images == "embed" or '"Image"' not in json.dumps(feature))
            }  # fmt: skip
            schema = with_features(had.with_metadata({HUGGINGFACE: feature_text(carried)}), self.carry)
            schema = schema.with_metadata({**schema.metadata, **self._metadata(metadata).to_parquet()})
            target.parent.mkdir(parents=True, exist_ok=True)
            with parquet_writer(target, schema) as writer:
                for tables in _groups(self._cleaned(batch, schema, file, folder) for batch in
                                      shard.iter_batches(batch_size=_BATCH_ROWS)):  # fmt: skip
                    table = pa.concat_tables(tables)
                    writer.write_table(table, row_group_size=max(1, table.num_rows))

    def _metadata(self, metadata: ShardMetadata) -> ShardMetadata:
        source = metadata.source
        return replace(
            metadata,
            carry=self.carry,
            filters=tuple(self.private.sentence(item) for item in metadata.filters),
            source=replace(
                source,
                uri=self.private.uri(source.uri),
                data_path=self.private.data_path(source.data_path),
                image_folder=None,
            ),
        )

    def _cleaned(self, batch: pa.RecordBatch, schema: pa.Schema, file: Location, folder: Location | None) -> pa.Table:
        columns = []
        for field in schema:
            column = batch.column(field.name)
            if field.name == "images":
                column = self._images(batch, file, folder)
            elif field.name == "source":
                column = self.private.column(column, self.private.data_path)
            elif field.name == "error":
                column = self.private.column(column, self.private.sentence)
            elif field.name not in _AS_THEY_ARE:
                column = self.private.column(column)
                column = column if self.images == "embed" else without_images(column)
            columns.append(column)
        return pa.Table.from_arrays(columns, schema=schema)

    def _images(self, batch: pa.RecordBatch, file: Location, folder: Location | None) -> pa.Array:
        """The column `images`: paths without this machine's folders; bytes none, or of every image of an ok row."""
        column = batch.column("images")
        structs, lengths = column.flatten(), np.asarray(pc.fill_null(pc.list_value_length(column), 0))
        paths = pc.struct_field(structs, "path").to_pylist()
        data = pc.struct_field(structs, "bytes")
        if self.images == "leave_out":
            data = pa.nulls(len(structs), pa.binary())
        elif data.null_count:
            rows = np.repeat(np.arange(batch.num_rows), lengths).tolist()
            ok = pc.equal(batch.column("status"), STATUS_OK).to_pylist()
            given = data.to_pylist()
            ids = batch.column("sample_id")
            for at in np.flatnonzero(np.asarray(data.is_null())).tolist():
                try:
                    given[at] = read_image_file(ImageRef(path=paths[at]), folder)
                except ImageError as error:
                    if ok[rows[at]]:
                        raise ConfigError(
                            f"{file}: {ids[rows[at]]}: {error}. Restore it (--image_folder), or publish without "
                            "images: --images leave_out"
                        ) from error
            data = pa.array(given, pa.binary())
        names = pa.array([path and _without_root(self.private.text(path)) for path in paths], pa.string())
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        parts = pa.StructArray.from_arrays([data, names], fields=[*column.type.value_type])
        return pa.ListArray.from_arrays(offsets, parts).cast(column.type)


def _without_root(path: str) -> str:
    """A path that begins at the root of this machine, by its last part."""
    return Path(path).name if path.startswith("/") else path


def _groups(tables: Iterator[pa.Table]) -> Iterator[list[pa.Table]]:
    """Consecutive tables that make a row group."""
    pending: list[pa.Table] = []
    size = rows = 0
    for table in tables:
        if pending and (size + table.nbytes > MAX_ROW_GROUP_IMAGE_BYTES or rows + table.num_rows > MAX_ROW_GROUP_ROWS):
            yield pending
            pending, size, rows = [], 0, 0
        pending.append(table)
        size, rows = size + table.nbytes, rows + table.num_rows
    if pending:
        yield pending


def plan_text(plan: list[dict[str, object]]) -> str:
    """As it is stored."""
    return json.dumps(plan, indent=1) + "\n"
