"""Input formats to shards, and shards to streams of samples.

A shard is one Parquet file, or `rows_per_shard` rows of a JSON or JSONL file or a WebDataset archive (a virtual shard).
Planning reads footers, one pass of the text files and the headers of the archives; it opens no image.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import PurePosixPath

import pyarrow as pa

from cal_pipeline.sources import json as json_source
from cal_pipeline.sources import parquet as parquet_source
from cal_pipeline.sources import webdataset
from cal_pipeline.sources.data_paths import find_files
from cal_pipeline.sources.rows import UNCLAIMED
from cal_pipeline.sources.shard import Shard, drawn_rows
from cal_schemas.annotated import DataFormat, ShardSource
from cal_schemas.errors import ConfigError, ShardError, StoreError
from cal_schemas.sample import Sample
from cal_schemas.storage.locations import Location, location, read_footer
from cal_schemas.storage.protocol import ObjectInfo

_SUFFIXES: dict[str, DataFormat] = {
    ".json": "json",
    ".json.zst": "json",
    ".jsonl": "jsonl",
    ".json.gz": "json",
    ".jsonl.zst": "jsonl",
    ".jsonl.gz": "jsonl",
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".tar.gz": "webdataset",
    ".tgz": "webdataset",
    ".tar.zst": "webdataset",
}
_MAX_NAME_BYTES = 255
_ALL_ROWS = 2**62
_PROBED_ROWS = 32
_log = logging.getLogger(__name__)


def find_sources(data_path: str, data_format: DataFormat) -> list[tuple[Location, str, DataFormat]]:
    """Expands one `--data_path` (file, directory, glob or braces) to (file, relative name, format)."""
    base, files = find_files(data_path)
    found = []
    for file in files:
        suffix = _suffix(file)
        kind = _SUFFIXES.get(suffix or "") if data_format == "auto" else data_format
        if kind is None or (suffix is None and base == location(data_path)):
            continue
        relative = file.relative_to(base).as_posix()  # type: ignore[arg-type]
        found.append((file, relative.removesuffix(suffix or file.suffix), kind))
    if not found:
        raise ConfigError(
            f"--data_path {data_path}: none of its {len(files)} files ends in {', '.join(_SUFFIXES)}; "
            "for other names give the files or a glob, and --data_format"
        )
    return found


def _suffix(file: Location) -> str | None:
    return max((end for end in _SUFFIXES if file.name.endswith(end)), key=len, default=None)


def plan_shards(
    data_paths: Sequence[str],
    image_folders: Sequence[str] = (),
    *,
    data_format: DataFormat = "auto",
    rows_per_shard: int = 4096,
    list_broken: bool = False,
) -> list[Shard]:
    """All shards of the input, in the order of the data paths and of the file names.

    Raises ConfigError for a file that cannot be read, two files that would share an output name, or images without a
    folder. With `list_broken` a corrupt file is a shard with a `problem`, unless all files are corrupt.
    """
    folders: list[str | None] = [*image_folders] or [None]
    if len(folders) == 1:
        folders *= len(data_paths)
    if len(folders) != len(data_paths):
        raise ConfigError(
            f"{len(image_folders)} --image_folder for {len(data_paths)} --data_path: "
            "give none, one for all, or one for each"
        )
    if absent := [folder for folder in image_folders if not location(folder).is_dir()]:
        raise ConfigError(f"--image_folder {absent[0]}: no such directory")
    shards: list[Shard] = []
    owners: dict[str, Location] = {}
    for data_path, folder in zip(data_paths, folders, strict=True):
        for file, stem, kind in find_sources(data_path, data_format):
            _check_name(file, stem)
            try:
                of_file = _file_shards(file, stem, kind, data_path, folder, rows_per_shard)
            except StoreError:
                raise
            except (ShardError, FileNotFoundError) as error:
                problem = str(error) if isinstance(error, ShardError) else f"{file}: {error.strerror}"
                if not list_broken:
                    raise ConfigError(problem) from error
                gone = _source(file, None, kind, data_path, folder, 0, 0)
                of_file = [Shard(name=stem, source=gone, problem=problem)]
            except OSError as error:
                raise ConfigError(f"cannot read {file}: {error}") from error
            for name in dict.fromkeys((stem, *(shard.name for shard in of_file))):
                if name in owners:
                    raise ConfigError(
                        f"{owners[name]} and {file} would both be written to {name}*.parquet; "
                        "give each file once, or rename one of them"
                    )
                owners[name] = file
            shards += of_file
    if shards and all(shard.problem for shard in shards):
        raise ConfigError(f"no file can be read; the first: {shards[0].problem}")
    if not shards:
        raise ConfigError(f"no rows in {', '.join(data_paths)}")
    return shards


def _check_name(file: Location, stem: str) -> None:
    """ConfigError for names whose output would be invisible to readers, or cannot be written."""
    parts = PurePosixPath(stem).parts
    if hidden := next((part for part in parts if part.startswith((".", "_"))), None):
        raise ConfigError(
            f"{file}: its output would lie under {hidden!r}, and pandas and pyarrow ignore names that begin with "
            "'.' or '_'; rename it"
        )
    try:
        too_long = len(f"{parts[-1]}-r000000000-000000000-first000000000.parquet".encode()) > _MAX_NAME_BYTES
    except UnicodeEncodeError as error:
        raise ConfigError(f"{str(file)!r}: a file name that is not UTF-8; rename it") from error
    if too_long:
        raise ConfigError(f"{file}: its name leaves no room for the row range of its output; use a shorter one")


def _source(
    file: Location,
    stat: os.stat_result | ObjectInfo | None,
    kind: DataFormat,
    data_path: str,
    folder: str | None,
    start: int,
    stop: int,
) -> ShardSource:
    return ShardSource(
        uri=str(file.resolve()),
        data_path=data_path,
        image_folder=None if folder is None else str(location(folder).absolute()),
        num_rows=stop - start,
        size=stat.st_size if stat else 0,
        mtime_ns=stat.st_mtime_ns if isinstance(stat, os.stat_result) else 0,
        row_start=start,
        row_stop=stop,
        etag=stat.etag if isinstance(stat, ObjectInfo) else None,
        data_format=kind,
    )


def _file_shards(
    file: Location, stem: str, kind: DataFormat, data_path: str, folder: str | None, rows_per_shard: int
) -> list[Shard]:
    stat = file.stat()

    def source(start: int, stop: int) -> ShardSource:
        return _source(file, stat, kind, data_path, folder, start, stop)

    if kind == "parquet":
        try:
            footer = read_footer(file)
            schema, rows = footer.schema.to_arrow_schema(), footer.num_rows
        except pa.ArrowException as error:
            raise ShardError(f"{file}: not a readable Parquet file: {error}") from error
        parquet_source.find_columns(schema, file)
        in_text = 0
        if folder is None and rows and (in_text := parquet_source.named_image_bytes(file)):
            probed = islice(parquet_source.read_rows(file, stem, 0, rows), _PROBED_ROWS)
            refs = [ref for sample in probed for ref in sample.images]
            if not refs or any(ref.data is None for ref in refs):  # Not all are data: URLs.
                raise ConfigError(f"{file} names image files: say with --image_folder where they are")
        if not parquet_source.holds_images(file):
            _refuse_unclaimed(file, parquet_source.read_rows(file, stem, 0, rows))
        return [Shard(name=stem, source=source(0, rows), embedded_bytes=in_text)]
    ranges: Sequence[json_source.RowRange | webdataset.TarRange]
    if kind == "webdataset":
        ranges = webdataset.split_rows(file, rows_per_shard)
    else:
        ranges = json_source.split_rows(file, kind, rows_per_shard)
    if folder is None and any(getattr(item, "mentions_images", False) for item in ranges):
        raise ConfigError(f"{file} names image files: say with --image_folder where they are")
    if kind != "webdataset" and ranges and not any(getattr(item, "mentions_images", False) for item in ranges):
        first = ranges[0]
        _refuse_unclaimed(file, json_source.read_rows(file, kind, first.byte_start, first.byte_stop, stem, 0))
    if not ranges:
        _log.warning("%s holds no rows", file)
    return [
        Shard(
            name=f"{stem}-r{item.row_start:09d}-{item.row_stop:09d}",
            source=source(item.row_start, item.row_stop),
            byte_start=item.byte_start,
            byte_stop=item.byte_stop,
            embedded_bytes=getattr(item, "image_bytes", 0),
        )
        for item in ranges
    ]


def _refuse_unclaimed(file: Location, samples: Iterator[Sample]) -> None:
    """ConfigError where none of the first rows has an image, and one has something that looks like it elsewhere."""
    try:
        first = list(islice(samples, _PROBED_ROWS))
    except ShardError:  # Broken pages are the run's to say: it fails by that name, and the rest is done.
        return
    unclaimed = [sample.problem for sample in first if (sample.problem or "").startswith(UNCLAIMED)]
    if unclaimed and not any(sample.images for sample in first):
        raise ConfigError(f"{file}: {unclaimed[0]}")


def count_rows(source: ShardSource) -> int:
    """Rows that a source file holds today; ConfigError or ShardError when it cannot be read."""
    file = location(source.uri)
    kind = source.data_format
    if kind == "auto" and (kind := _SUFFIXES.get(_suffix(file) or "", "auto")) == "auto":
        raise ConfigError(f"{file}: its name does not say its format")
    found = _file_shards(file, file.name, kind, source.data_path, source.image_folder or "", _ALL_ROWS)
    return sum(shard.source.num_rows for shard in found)


def read_samples(shard: Shard) -> Iterator[Sample]:
    """The shard's samples in row order; exactly `shard.num_rows` of them.

    Raises ShardError when the source is corrupt, gone, or no longer what planning saw.
    """
    if shard.problem is not None:
        raise ShardError(shard.problem)
    source = shard.source
    path = location(source.uri)
    try:
        stat = path.stat()
    except StoreError:
        raise
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; it was there at planning") from error
    mark = stat.etag != source.etag if isinstance(stat, ObjectInfo) else stat.st_mtime_ns != source.mtime_ns
    if stat.st_size != source.size or mark:
        raise ShardError(f"{path}: changed since planning; start cal-precompute again")
    if source.data_format == "parquet":
        rows = parquet_source.read_rows(path, shard.name, source.row_start, source.row_stop)
    elif source.data_format == "webdataset":
        rows = webdataset.read_rows(path, shard.byte_start, shard.byte_stop)
    else:
        rows = json_source.read_rows(
            path, source.data_format, shard.byte_start, shard.byte_stop, shard.name, source.row_start
        )
    found = 0
    for sample, wanted in zip(rows, drawn_rows(source), strict=False):
        found += 1
        if wanted:
            yield sample
    if found != source.num_rows:
        raise ShardError(f"{path}: {found} rows in the range, {source.num_rows} planned")
