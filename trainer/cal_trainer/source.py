"""A source in any input format, memory-mapped: for training without a measurement, and for joining one to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Dataset

from cal_pipeline.encode import Encoder
from cal_pipeline.images import DEFAULT_MAX_IMAGE_PIXELS
from cal_pipeline.shards import Shard, plan_shards, read_samples
from cal_schemas.annotated import annotated_schema
from cal_schemas.locations import location
from cal_schemas.sample import sample_key
from cal_trainer.alignment import EncodesRows, Example, RowEncoder
from cal_trainer.dataset import BLANK, FolderOfRow, has_image, making_cache, report_skipped
from cal_trainer.resuming import source_shards

_COLUMNS = ("sample_id", "sample_key", "images", "messages")
_ROWS_PER_WRITE = 64


class SourceExamples(EncodesRows, Dataset[Example]):
    """Rows of a source that nobody measured, for weights that need no cache; index BLANK is the blank example.

    Arguments as in SidecarExamples. A row that cannot be encoded trains nothing, with a warning when it is read.
    """

    def __init__(
        self,
        source_paths: Sequence[str],
        encoder: Encoder,
        *,
        image_folders: Sequence[str] = (),
        max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
        cache_dir: Path | None = None,
    ) -> None:
        self._encode = RowEncoder(encoder, None, use_deltas=False, max_image_pixels=max_image_pixels)
        shards = plan_shards(source_paths, image_folders)
        self.shards = {"source_path": source_shards(shards)}
        self._folders = folders_of(shards)
        self._source = map_source(shards, cache_dir)
        readable = np.asarray(pc.is_valid(self._source.data.table.column("messages")))
        self._usable = np.flatnonzero(readable)
        self.skipped = Counter({"encode_error": int((~readable).sum())}) if not readable.all() else Counter()
        report_skipped(", ".join(source_paths), len(self._usable), self.skipped)

    def __len__(self) -> int:
        return len(self._usable)

    def lengths(self) -> np.ndarray:
        """[len] int64: bytes of the conversation, which order rows of one modality about as tokens would."""
        return text_bytes(self._source.data.table)[self._usable]

    def has_image(self) -> np.ndarray:
        """[len] bool."""
        return has_image(self._source.data.table)[self._usable]

    def __getitem__(self, index: int) -> Example:
        if index == BLANK:
            return self.blank
        row = int(self._usable[index])
        return self._encode(self._source[row].to_pylist()[0], self._folders(row))


def folders_of(shards: Sequence[Shard]) -> FolderOfRow:
    """Image folder of every row of the planned shards."""
    folders = [shard.source.image_folder for shard in shards]
    return FolderOfRow(
        [shard.num_rows for shard in shards], [None if folder is None else location(folder) for folder in folders]
    )


def map_source(shards: Sequence[Shard], cache_dir: Path | None) -> Any:
    """A memory-mapped copy of a source, in plan order, made once: its name covers size and time of every file."""
    schema = annotated_schema(carry="images")
    schema = pa.schema([schema.field(name).with_nullable(True) for name in _COLUMNS])
    with making_cache():
        rows: Any = datasets.Dataset.from_generator(
            _source_rows,
            gen_kwargs={"shards": list(shards)},
            features=datasets.Features.from_arrow_schema(schema),
            cache_dir=None if cache_dir is None else str(cache_dir),
            writer_batch_size=_ROWS_PER_WRITE,
        )
    return rows.with_format("arrow")


def _source_rows(shards: list[Shard]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        for sample in read_samples(shard):
            messages = sample.messages
            yield {
                "sample_id": sample.sample_id,
                "sample_key": sample_key(sample),
                "images": [{"bytes": image.data, "path": image.path} for image in sample.images],
                "messages": None
                if messages is None
                else [{"role": turn.role, "content": turn.content} for turn in messages],
            }


def text_bytes(table: pa.Table) -> np.ndarray:
    """[rows] int64: bytes of all turns of a conversation."""
    found: list[np.ndarray] = [np.empty(0, np.int64)]
    for chunk in table.column("messages").chunks:
        sizes = np.asarray(pc.fill_null(pc.binary_length(chunk.flatten().field("content")), 0), np.int64)
        counts = np.asarray(pc.fill_null(pc.list_value_length(chunk), 0), np.int64)
        stops = np.cumsum(counts)
        total = np.append(0, np.cumsum(sizes))
        found.append(total[stops] - total[stops - counts])
    return np.concatenate(found)
