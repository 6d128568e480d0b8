"""Opens annotated shards as one data set: of one measurement, or of several references that share the samples."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cal_schemas.crossfit import REFERENCE_FIELDS, crossfit_spec, validate_measured_once
from cal_schemas.errors import ConfigError, FormatError, IncompleteError, SeveralReferencesError
from cal_schemas.features import comparable, differing_columns
from cal_schemas.metadata import ShardMetadata, read_annotated_footer, read_annotated_footers, read_shard_metadata
from cal_schemas.spec import MeasurementSpec
from cal_schemas.storage.locations import Location, files_below
from cal_schemas.storage.object_path import ObjectPath
from cal_schemas.whole import Completeness, completeness, open_shard, validate_numbers

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Consecutive rows of one shard."""

    file: Location
    row: int
    """Number of the first row inside its file."""
    data: pa.RecordBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotatedDataset:
    """Annotated shards of one measurement, opened by `open_annotated`."""

    files: tuple[Location, ...]
    metadata: tuple[ShardMetadata, ...]
    """One per file, all with the same spec; of a cross-fit they differ in the reference."""
    schema: pa.Schema
    rows: tuple[int, ...]
    """One number per file."""
    roots: tuple[Location, ...]
    """One per file: the path under which it was found."""
    completeness: Completeness

    @property
    def num_rows(self) -> int:
        """Of all files."""
        return sum(self.rows)

    @property
    def spec(self) -> MeasurementSpec:
        """The measurement all shards share; of a cross-fit it names all references."""
        return crossfit_spec([item.spec for item in self.metadata])

    def batches(self, columns: Sequence[str] | None = None, batch_size: int = 1024) -> Iterator[pa.RecordBatch]:
        """As `numbered_batches`, without their numbers."""
        return (batch.data for batch in self.numbered_batches(columns, batch_size))

    def numbered_batches(self, columns: Sequence[str] | None = None, batch_size: int = 1024) -> Iterator[Batch]:
        """Rows in file order then row order, never more than one row group in memory.

        Raises FormatError naming a file whose pages are damaged, or that holds NaN or infinity.
        """
        for path in self.files:
            row = 0
            with open_shard(path) as file:
                for data in file.iter_batches(batch_size=batch_size, columns=columns):
                    validate_numbers(data, path, row)
                    yield Batch(file=path, row=row, data=data)
                    row += data.num_rows


def annotated_files(path: Location) -> list[Location]:
    """Final shards under a directory, sorted; names that start with a dot (staging, reports) are none."""
    return [path] if path.is_file() else files_below(path, lambda file: file.suffix == ".parquet")


def named(path: Location | Sequence[Location]) -> str:
    """One or more directories, for messages."""
    return str(path) if isinstance(path, Path | ObjectPath) else ", ".join(map(str, path))


def holds_annotated(path: Location) -> bool:
    """True where the first Parquet file there is an annotated shard; FormatError where that file cannot be read."""
    files = annotated_files(path)
    if not files or files[0].suffix != ".parquet":
        return False
    return b"cal.format_version" in (read_annotated_footer(files[0]).metadata or {})


def required_files(path: Location) -> list[Location]:
    """Returns `annotated_files`; FormatError where there are none."""
    if not (files := annotated_files(path)):
        raise FormatError(f"{path}: no annotated shards (*.parquet) here")
    return files


def _validate_named_once(files: Sequence[Location]) -> None:
    seen: dict[Location, Location] = {}
    for file in files:
        place = file.resolve()
        if place in seen:
            same = "" if str(seen[place]) == str(file) else f" ({seen[place]} is the same file)"
            raise ConfigError(
                f"{file} is named twice{same}: its rows would be counted and trained twice. Name it once; rows that "
                "are to come more often are copies of the file, under another name"
            )
        seen[place] = file


def open_annotated(
    path: Location | Sequence[Location], *, crossfit: bool = False, partial: bool = True
) -> AnnotatedDataset:
    """Opens a shard, a directory of shards, or several of them as one, checking every footer.

    Args:
        path: one or more.
        crossfit: shards may be of different references, each of other samples; all else must agree.
        partial: what is not whole (see `Completeness`) is logged; IncompleteError without.

    Raises FormatError when nothing is there, a file is no annotated shard, two shards disagree about the measurement
    (the message names the fields and both values; SeveralReferencesError where only the reference differs), or two
    references of a cross-fit measured the same sample; ConfigError for a file that is named twice. Differing library
    versions are logged.
    """
    files: list[Location] = []
    root_of: list[Location] = []
    roots = [path] if isinstance(path, Path | ObjectPath) else list(path)
    for one in roots:
        files += required_files(one)
        root_of += [one] * (len(files) - len(root_of))
    _validate_named_once(files)
    footers = list(read_annotated_footers(files))
    metadata = tuple(read_shard_metadata(file, footer) for file, footer in zip(files, footers, strict=True))
    for file, other in zip(files[1:], metadata[1:], strict=True):
        allowed = REFERENCE_FIELDS if crossfit else ()
        if differing := [item for item in metadata[0].spec.differences(other.spec) if item[0] not in allowed]:
            listed = "; ".join(f"{name} is {a!r} in {files[0]} and {b!r} in {file}" for name, a, b in differing)
            only_the_reference = all(name in REFERENCE_FIELDS for name, _, _ in differing)
            kind = SeveralReferencesError if only_the_reference else FormatError
            raise kind(f"{named(path)} mixes shards of different measurements: {listed}")
        if other.library_versions != metadata[0].library_versions:
            _log.warning("%s was written with %s, %s with %s", files[0], dict(metadata[0].library_versions), file,
                         dict(other.library_versions))  # fmt: skip
    schema = footers[0].schema.to_arrow_schema()
    for file, footer in zip(files[1:], footers[1:], strict=True):
        if not comparable(other_schema := footer.schema.to_arrow_schema()).equals(comparable(schema)):
            raise FormatError(
                f"{file} has other columns than {files[0]}: {differing_columns(other_schema, schema)}; look at "
                "them one by one, or measure them in one run"
            )
    if crossfit:
        validate_measured_once(files, metadata)
    rows = tuple(footer.num_rows for footer in footers)
    complete = completeness(dict(zip(files, zip(metadata, rows, strict=True), strict=True)), roots)
    if complete.problem:
        said = f"{named(path)} is not whole: {complete.problem}"
        if not partial:
            raise IncompleteError(said)
        _log.warning("%s", said)
    return AnnotatedDataset(
        files=tuple(files), metadata=metadata, schema=schema, rows=rows, roots=tuple(root_of), completeness=complete
    )
