"""Plans the shards of an input: its files, the rows of each, and what would go wrong later.

A shard is one whole file, or `rows_per_shard` rows of one (a virtual shard). Planning reads footers, one pass of the
text files and the headers of the archives; it opens no image.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import PurePosixPath

from cal_pipeline.sources.data_paths import existing_directory, find_files
from cal_pipeline.sources.formats import FilePlan, InputFormat, format_of, known_names, known_suffix
from cal_pipeline.sources.hub import find_hub_files, hub_name
from cal_pipeline.sources.reading import reading
from cal_pipeline.sources.rows import UNCLAIMED
from cal_pipeline.sources.saved_datasets import data_files
from cal_pipeline.sources.shard import Shard, state_of
from cal_pipeline.sources.unread import way_out
from cal_schemas.errors import ConfigError, ShardError
from cal_schemas.metadata import ShardSource
from cal_schemas.storage.locations import Location, location
from cal_schemas.storage.object_path import ObjectPath

Source = tuple[Location, str, InputFormat]
"""(file, relative name, format)."""
_MAX_NAME_BYTES = 255
_PROBED_ROWS = 32
_ALL_ROWS = 2**62
_TO_PARQUET = (
    "pandas.read_csv(FILE).to_parquet('data.parquet') makes one that is read (sep='\\t' for TSV, read_excel for sheets)"
)
_log = logging.getLogger(__name__)


def find_sources(data_path: str, data_format: str) -> list[Source]:
    """Expands one `--data_path` (file, directory, glob, braces, or the name of a data set of the Hub)."""
    name = hub_name(data_path)
    base, files = find_hub_files(name) if name else find_files(data_path)
    # Of what is searched only files that look like data count, of what is named one by one all.
    searched = name is not None or _is_place(base, location(data_path))
    sources = []
    for file in data_files(files) if searched else files:
        suffix = known_suffix(file)
        if suffix is None and (data_format == "auto" or searched):
            continue
        relative = file.relative_to(base).as_posix()  # type: ignore[arg-type]
        sources.append((file, relative.removesuffix(suffix or file.suffix), format_of(file, data_format)))
    if not sources:
        way = way_out((file.name for file in files), unpack="unpack it and give the folder", to_parquet=_TO_PARQUET)
        none = "its only file ends in none of" if len(files) == 1 else f"none of its {len(files):,} files ends in"
        raise ConfigError(
            f"--data_path {data_path}: {none} {known_names()}; "
            + (way or "for other names give the files or a glob, and --data_format")
        )
    return sources


def plan_shards(
    data_paths: Sequence[str],
    image_folders: Sequence[str] = (),
    *,
    data_format: str = "auto",
    rows_per_shard: int = 4096,
    list_broken: bool = False,
    sources: Sequence[Sequence[Source]] | None = None,
) -> list[Shard]:
    """All shards of the input, in the order of the data paths and of the file names.

    `sources` are what `find_sources` returned for each data path, where that and the folders are checked already.

    Raises ConfigError for a file that cannot be read, two files that would share an output name, or images without a
    folder. With `list_broken` a corrupt file is a shard with a `problem`, unless all files are corrupt.
    """
    shards: list[Shard] = []
    owners: dict[str, Location] = {}
    folders = _folder_of_each(data_paths, image_folders)
    if sources is None:
        for folder in image_folders:
            existing_directory("--image_folder", folder)
        sources = [find_sources(data_path, data_format) for data_path in data_paths]
    of_paths = [None if folder is None else _kept(location(folder)) for folder in folders]
    for data_path, of_path, files in zip(data_paths, of_paths, sources, strict=True):
        for file, stem, input_format in files:
            _validate_name(file, stem)
            source = ShardSource(
                uri=str(file.resolve()), data_path=data_path, data_format=input_format.name,
                image_folder=of_path or (_kept(file.parent) if input_format.own_folder else None),
                num_rows=0, row_start=0, row_stop=0, size=0, mtime_ns=0,
            )  # fmt: skip
            try:
                of_file = _file_shards(file, stem, input_format, source, rows_per_shard)
            except ShardError as error:
                if not list_broken:
                    raise ConfigError(str(error)) from error
                of_file = [Shard(name=stem, source=source, problem=str(error))]
            for name in dict.fromkeys((stem, *(shard.name for shard in of_file))):
                if name in owners:
                    raise ConfigError(
                        f"{owners[name]} and {file} would both be written to {name}*.parquet; "
                        "give each file once, measure them into directories of their own, or rename one of them"
                    )
                owners[name] = file
            shards += of_file
    if shards and all(shard.problem for shard in shards):
        raise ConfigError(f"no file can be read; the first: {shards[0].problem}")
    if not shards:
        raise ConfigError(f"no rows in {', '.join(data_paths)}")
    return shards


def _kept(folder: Location) -> str:
    """An image folder as it is stored with the rows: independent of where the run was started, and of later commits."""
    return str(folder.pinned() if isinstance(folder, ObjectPath) else folder.absolute())


def _is_place(base: Location, place: Location) -> bool:
    """Whether a base is the place itself; it may be pinned to a commit of it."""
    pinned = (
        replace(place, bucket=base.bucket) if isinstance(base, ObjectPath) and isinstance(place, ObjectPath) else place
    )
    return base == pinned


def count_rows(uri: str, data_format: str) -> int:
    """Rows that a source file holds today; ConfigError or ShardError when it cannot be read."""
    file = location(uri)
    ranges = format_of(file, data_format).plan(file, _ALL_ROWS).ranges
    return sum(rows.row_stop - rows.row_start for rows in ranges)


def _folder_of_each(data_paths: Sequence[str], image_folders: Sequence[str]) -> list[str | None]:
    folders: list[str | None] = [*image_folders] or [None]
    if len(folders) == 1:
        folders *= len(data_paths)
    if len(folders) != len(data_paths):
        raise ConfigError(
            f"{len(image_folders)} --image_folder for {len(data_paths)} --data_path: "
            "give none, one for all, or one for each"
        )
    return folders


def _validate_name(file: Location, stem: str) -> None:
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


def _file_shards(
    file: Location, stem: str, input_format: InputFormat, source: ShardSource, rows_per_shard: int
) -> list[Shard]:
    has_folder = source.image_folder is not None
    with reading(file, ""):
        source = replace(source, **state_of(file))
    plan = input_format.plan(file, rows_per_shard)
    _validate_images(file, input_format, plan, has_folder=has_folder)
    if not plan.ranges:
        _log.warning("%s holds no rows", file)
    return [
        Shard(
            name=f"{stem}-r{rows.row_start:09d}-{rows.row_stop:09d}" if input_format.splits else stem,
            source=replace(
                source,
                num_rows=rows.row_stop - rows.row_start,
                row_start=rows.row_start,
                row_stop=rows.row_stop,
            ),
            byte_start=rows.byte_start,
            byte_stop=rows.byte_stop,
            # Text is taken for paths where there is a folder that they start from.
            embedded_bytes=0 if plan.images == "text" and has_folder else rows.image_bytes,
        )
        for rows in plan.ranges
    ]


def _validate_images(file: Location, input_format: InputFormat, plan: FilePlan, *, has_folder: bool) -> None:
    """ConfigError where images are named and there is no folder, or stand under a key that nobody reads."""
    if plan.images == "inside" or (has_folder and plan.images != "unknown"):
        return
    samples = []
    if plan.images != "named" and plan.ranges:
        try:
            samples = [*islice(input_format.read(file, plan.ranges[0], ""), _PROBED_ROWS)]
        except ShardError:
            if plan.images == "text":
                raise
            return  # Broken pages are the run's to say: it fails by that name, and the rest is done.
    images = [image for sample in samples for image in sample.images]
    named = any(image.data is None for image in images) or (not images and plan.images != "unknown")
    if named and not has_folder:
        beside = f" (beside it: {file.parent})" if isinstance(file, ObjectPath) else ""
        raise ConfigError(f"{file} names image files: say with --image_folder where they are{beside}")
    unclaimed = [sample.problem for sample in samples if (sample.problem or "").startswith(UNCLAIMED)]
    if unclaimed and not images:
        raise ConfigError(f"{file}: {unclaimed[0]}")
