"""Copies shards or a source into the Arrow cache of `datasets`, once, and memory-maps the copy."""

from __future__ import annotations

import glob
import logging
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import datasets
import pyarrow as pa
from pyarrow.dataset import ParquetFragmentScanOptions

from cal_pipeline.sources.parquet import embedded_image_bytes
from cal_pipeline.sources.shard import Shard, read_samples
from cal_schemas.annotated import annotated_schema, sample_columns
from cal_schemas.errors import CalError, ConfigError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.sample import sample_key
from cal_schemas.spec import MESSAGE_NORMALIZATION
from cal_schemas.storage.locations import Location
from cal_schemas.storage.object_path import ObjectPath
from cal_schemas.whole import open_shard, validate_numbers

_SOURCE_COLUMNS: Final = ("sample_id", "sample_key", "images", "messages", "template_inputs")
_WORTH_SAYING: Final = 10e9
_ROWS_PER_WRITE: Final = 64
_NUMBERED: Final = ("sample_id", "delta_logits")
_ROWS_PER_CHECK: Final = 16384
_CHAIN: Final = "::"
"""Between two file systems of one URL, as fsspec has it: `datasets` splits any path at it, and knows no escape."""
_log = logging.getLogger(__name__)


def map_parquet(opened: AnnotatedDataset, columns: Sequence[str], cache_dir: Path | None) -> Any:
    """A `datasets.Dataset` over these columns, in the order of files and rows, that gives Arrow tables.

    Raises FormatError naming a file whose pages are damaged, or that holds NaN or infinity.
    """
    size = sum(map(embedded_image_bytes, opened.files)) if "images" in columns else 0
    if size > _WORTH_SAYING:
        _log.info("%.0f GB of images are copied into the cache of datasets, once; --streaming copies none", size / 1e9)
    rows: Any
    with _making_cache(cache_dir) as cache:
        if any(isinstance(file, ObjectPath) or _CHAIN in str(file.absolute()) for file in opened.files):
            schema = pa.schema([opened.schema.field(name).with_nullable(True) for name in columns])
            # Etags, and the times of local files, are in the key of the cache: another content is another copy.
            arguments = {"files": [_pinned(file) for file in opened.files], "columns": tuple(columns)}
            rows = _copy(_rows_of, arguments, schema, cache)
        else:
            names = [glob.escape(str(file.absolute())) for file in opened.files]
            checked = ParquetFragmentScanOptions(page_checksum_verification=True)
            try:
                rows = datasets.Dataset.from_parquet(
                    names, columns=list(columns), cache_dir=cache, fragment_scan_options=checked
                )
            except datasets.exceptions.DatasetGenerationError:
                _name_damaged(opened, columns)
                raise
            if len(rows) != opened.num_rows:  # It takes a file of which a part cannot be read for one that is shorter.
                _name_damaged(opened, columns)
    assert len(rows) == opened.num_rows, (len(rows), opened.num_rows)
    _validate_numbers(rows.data.table.select([name for name in _NUMBERED if name in columns]), opened)
    return rows.with_format("arrow")


def _name_damaged(opened: AnnotatedDataset, columns: Sequence[str]) -> None:
    """`datasets` does not say which file is damaged: reading them one by one does."""
    deque(_rows_of([_pinned(file) for file in opened.files], columns), maxlen=0)


def _validate_numbers(rows: pa.Table, opened: AnnotatedDataset) -> None:
    """Before training, which may come to such a row after days."""
    start = 0
    for file, count in zip(opened.files, opened.rows, strict=True):
        row = 0
        for batch in rows.slice(start, count).to_batches(max_chunksize=_ROWS_PER_CHECK):
            validate_numbers(batch, file, row)
            row += batch.num_rows
        start += count


def _pinned(file: Location) -> tuple[Location, int]:
    """The file and what tells its content from another under the same name: an object holds its etag itself."""
    if isinstance(file, ObjectPath):
        return replace(file, known=file.stat()), 0
    return file, file.stat().st_mtime_ns


def _rows_of(files: list[tuple[Location, int]], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    for path, _ in files:
        with open_shard(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS_PER_WRITE, columns=list(columns)):
                yield from batch.to_pylist()


@contextmanager
def _making_cache(cache_dir: Path | None) -> Iterator[str]:
    """The directory of the copy, which can be written to.

    ConfigError naming --cache_dir otherwise. Errors of ours that `datasets` wraps into its own come out as they are.
    """
    where = Path(datasets.config.HF_DATASETS_CACHE) if cache_dir is None else cache_dir.expanduser()
    choose = "name another directory with --cache_dir"
    if _CHAIN in str(where.absolute()):
        raise ConfigError(f"the Arrow copy cannot be kept in {where}: `datasets` splits paths at {_CHAIN}; {choose}")
    try:
        where.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=where):
            pass
    except OSError as error:
        raise ConfigError(f"the Arrow copy cannot be kept in {where}: {error.strerror or error}; {choose}") from error
    try:
        yield str(where)
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, CalError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, OSError):
            error.__cause__.filename = error.__cause__.filename or str(where)
        raise


def map_source(shards: Sequence[Shard], cache_dir: Path | None) -> Any:
    """A memory-mapped copy of a source, in plan order, made once for each state of its files and rules of reading."""
    schema = annotated_schema(carry="images")
    schema = pa.schema([schema.field(name).with_nullable(True) for name in _SOURCE_COLUMNS])
    with _making_cache(cache_dir) as cache:
        arguments = {"shards": list(shards), "rules": MESSAGE_NORMALIZATION}
        return _copy(_source_rows, arguments, schema, cache).with_format("arrow")


def _copy(
    rows: Callable[..., Iterator[dict[str, Any]]], arguments: dict[str, Any], schema: pa.Schema, cache: str
) -> Any:
    """What `rows` gives, as a `datasets.Dataset`; the arguments name the copy."""
    return datasets.Dataset.from_generator(
        rows,
        gen_kwargs=arguments,
        features=datasets.Features.from_arrow_schema(schema),
        cache_dir=cache,
        writer_batch_size=_ROWS_PER_WRITE,
    )


def _source_rows(shards: list[Shard], rules: int) -> Iterator[dict[str, Any]]:
    # Size and time of every file, and the rules, name the copy: those of an older version would be taken for today's.
    del rules
    for shard in shards:
        for sample in read_samples(shard):
            yield {"sample_key": sample_key(sample), **sample_columns(sample, embed=True)}
