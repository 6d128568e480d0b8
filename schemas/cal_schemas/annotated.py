"""Defines the annotated shard: one Parquet file per input shard, same rows in the same order, deltas beside each row.

Schema, codec of rows, writer, metadata and version of the format live here and nowhere else; docs/data-format.md is
the same contract in prose. `delta_logits[i]` belongs to supervised token `label_ids[i]` and was predicted from
what precedes that token. A null element is a delta that is undefined; NaN and infinity never reach a file.

Over 400 lines, because a format has one module: a split would let writer and reader disagree. What a cross-fit allows
and what not is in crossfit.py.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cal_schemas.errors import STATUS_OK, ConfigError, FormatError, StoreError
from cal_schemas.sample import ImageRef, Sample, Turn
from cal_schemas.spec import MeasurementSpec
from cal_schemas.storage.locations import Location, read_footer
from cal_schemas.storage.object_path import ObjectPath

FORMAT_VERSION = 1
Carry = Literal["images", "embedded", "paths", "none"]
MAX_ROW_GROUP_IMAGE_BYTES = 64 * 2**20
MAX_ROW_GROUP_ROWS = 8192

_IMAGES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
ExtraColumn = Literal["logits", "logprobs"]
EXTRA_COLUMNS: Mapping[ExtraColumn, tuple[str, str]] = {
    "logits": ("logits_with_image", "logits_without_image"),
    "logprobs": ("logprobs_with_image", "logprobs_without_image"),
}
"""What may be kept beside the deltas, of both passes."""
REQUIRED_TOKEN_COLUMNS: Mapping[str, type[np.int32 | np.float32]] = {
    "label_ids": np.int32,
    "label_positions": np.int32,
    "delta_logits": np.float32,
}
TOKEN_COLUMNS = {
    **REQUIRED_TOKEN_COLUMNS,
    **{name: np.float32 for names in EXTRA_COLUMNS.values() for name in names},
}
"""Lists of one value for each supervised token, and what their values are."""
_FOOTER_THREADS = 16
_FOOTERS_AHEAD = 256
_log = logging.getLogger(__name__)


def annotated_schema(
    *,
    carry: Carry,
    extra_columns: Collection[ExtraColumn] = (),
    source_column: bool = False,
    pass_through: Sequence[pa.Field] = (),
) -> pa.Schema:
    """Columns of one run's shards; `pass_through` are the source's own columns, already under their output names."""
    columns = [pa.field("sample_id", pa.string(), nullable=False), pa.field("sample_key", pa.string(), nullable=False)]
    if carry != "none":
        columns += [
            pa.field("images", _IMAGES, nullable=False),
            pa.field("messages", _MESSAGES),
            pa.field("template_inputs", pa.string()),
        ]
    columns += [
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("label_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("label_positions", pa.list_(pa.int32()), nullable=False),
        pa.field("delta_logits", pa.list_(pa.float32()), nullable=False),
        pa.field("num_tokens", pa.int32()),
    ]
    for kind, names in EXTRA_COLUMNS.items():
        if kind in extra_columns:
            columns += [pa.field(name, pa.list_(pa.float32()), nullable=False) for name in names]
    if source_column:
        columns.append(pa.field("source", pa.string(), nullable=False))
    schema = pa.schema([*columns, *pass_through])
    if clashes := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise ConfigError(f"the source's columns {clashes} clash with the output's even after the source_ prefix")
    return schema


RESERVED_COLUMNS = frozenset(
    annotated_schema(carry="images", extra_columns=tuple(EXTRA_COLUMNS), source_column=True).names
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSource:
    """Where a shard's rows came from, and how to notice that the source has changed since."""

    uri: str
    data_path: str
    image_folder: str | None
    num_rows: int
    size: int
    """Bytes of the whole source file."""
    mtime_ns: int
    row_start: int
    row_stop: int
    """Rows [row_start, row_stop) of the source file; all of them unless the shard is a virtual one."""
    sample_fraction: float = 1.0
    """Below 1 in a run of a subset: the share of those rows that was drawn."""
    sample_seed: int = 0
    etag: str | None = None
    """In an object store: changes whenever the object does; mtime_ns is 0 then."""
    data_format: str = "auto"
    """Input format it was read as; `auto` where an older file does not say: the name tells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardMetadata:
    """Parquet key-value metadata of one annotated shard."""

    spec: MeasurementSpec
    source: ShardSource
    carry: Carry
    tokens_per_batch: int
    library_versions: Mapping[str, str] = field(default_factory=dict)
    filters: tuple[str, ...] = ()
    """Conditions that chose these rows out of the shard as it was measured; none: it has them all."""
    format_version: int = FORMAT_VERSION

    def to_parquet(self) -> dict[str, str]:
        """Key-value pairs as stored in the footer."""
        shard: dict[str, Any] = {
            "source": asdict(self.source),
            "carry": self.carry,
            "tokens_per_batch": self.tokens_per_batch,
        }
        shard |= {"filters": list(self.filters)} if self.filters else {}
        return {
            "cal.format_version": str(self.format_version),
            "cal.fingerprint": self.spec.fingerprint(),
            "cal.measurement_spec": self.spec.to_json(),
            "cal.shard": json.dumps({**shard, "library_versions": dict(self.library_versions)}),
        }


def _empty() -> np.ndarray:
    return np.empty(0, np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredSample:
    """Numbers of one sample's S supervised tokens, in order."""

    label_ids: np.ndarray
    """[S] int32."""
    label_positions: np.ndarray
    """[S] int32, index into the reference's encoding of this sample alone; empty where the column was not read."""
    delta_logits: np.ndarray
    """[S] float32 in logits, NaN where undefined."""
    logits_with_image: np.ndarray = field(default_factory=_empty)
    """[S] float32, NaN where the delta is undefined; this and the next three are empty where they are not kept."""
    logits_without_image: np.ndarray = field(default_factory=_empty)
    logprobs_with_image: np.ndarray = field(default_factory=_empty)
    logprobs_without_image: np.ndarray = field(default_factory=_empty)


_NOT_MEASURED = MeasuredSample(**{name: np.empty(0, kind) for name, kind in TOKEN_COLUMNS.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotatedRow:
    """One row as a shard holds it."""

    sample: Sample
    sample_key: str
    """Of the sample as its source has it: embedding a file's bytes on the way out does not change it."""
    measured: MeasuredSample | None = None
    """Set, with at least one token, exactly when status is ok."""
    status: str = STATUS_OK
    error: str | None = None
    num_tokens: int | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        problem = _problem(self.status, self.measured or _NOT_MEASURED)
        assert problem is None, problem


def _problem(status: str, measured: MeasuredSample) -> str | None:
    """What no row may be, in a file or on its way there."""
    count = len(measured.label_ids)
    for name in TOKEN_COLUMNS:
        values = getattr(measured, name)
        if len(values) != count and (name in REQUIRED_TOKEN_COLUMNS or len(values)):
            return f"{count} label_ids and {len(values)} {name}"
        if np.isinf(values).any():
            return f"infinity in {name}"
    return None if (status == STATUS_OK) == (count > 0) else f"status {status!r} and {count} label_ids"


_SAMPLE_COLUMNS = ("sample_id", "images", "messages", "template_inputs")
_ROW_COLUMNS = ("sample_key", "status", "error", "num_tokens", "source")


def sample_columns(sample: Sample, *, embed: bool) -> dict[str, Any]:
    """A sample as Python values of its columns, which `sample_from_columns` reads; image bytes only with `embed`."""
    messages = sample.messages
    return {
        "sample_id": sample.sample_id,
        "images": [{"bytes": image.data if embed else None, "path": image.path} for image in sample.images],
        "messages": None if messages is None else [{"role": turn.role, "content": turn.content} for turn in messages],
        "template_inputs": template_inputs(sample),
    }


def template_inputs(sample: Sample) -> str | None:
    """JSON of what a chat template gets, or labels depend on, beside roles and contents; None where that is nothing.

    An object with `turns`, one object a turn (`supervised` where it is false, and the turn's `extra`), and `tools`
    where the sample has any.
    """
    turns = [{**turn.extra, **({} if turn.supervised else {"supervised": False})} for turn in sample.messages or ()]
    inputs = ({"turns": turns} if any(turns) else {}) | ({} if sample.tools is None else {"tools": sample.tools})
    return json.dumps(inputs, sort_keys=True) if inputs else None


def sample_from_columns(values: Mapping[str, Any]) -> Sample:
    """The sample of an annotated row, or of a row of the trainer's own copy of raw data.

    Takes the values of `sample_columns`; without images or messages where those were not kept.
    """
    messages, inputs = values.get("messages"), json.loads(values.get("template_inputs") or "{}")
    turns = None
    if messages is not None:
        extras = inputs.get("turns") or [{} for _ in messages]
        turns = tuple(
            Turn(role=turn["role"], content=turn["content"], supervised=extra.pop("supervised", True), extra=extra)
            for turn, extra in zip(messages, extras, strict=True)
        )
    return Sample(
        sample_id=values["sample_id"],
        images=tuple(ImageRef(data=image["bytes"], path=image["path"]) for image in values.get("images") or ()),
        messages=turns,
        tools=inputs.get("tools"),
    )


def measured_from_columns(values: Mapping[str, Any]) -> MeasuredSample | None:
    """The numbers of a row, given as Python values of its columns; None where it has none."""
    if not values.get("label_ids"):
        return None
    # A null delta is None here, which numpy turns into NaN: the same "undefined".
    return MeasuredSample(**{name: np.array(values.get(name) or (), kind) for name, kind in TOKEN_COLUMNS.items()})


def rows_from_batch(batch: pa.RecordBatch) -> Iterator[AnnotatedRow]:
    """Rows of an annotated shard, as `rows_to_table` took them; columns that may be null or empty may be missing.

    Columns of the source stay Arrow arrays of one value: Python's types would round some of them. Raises FormatError
    for what no row may be: lists of different lengths, infinity, an `ok` without labels or the contrary.
    """
    pass_through = [name for name in batch.schema.names if name not in RESERVED_COLUMNS]
    for number, values in enumerate(batch.drop_columns(pass_through).to_pylist()):
        sample, measured = sample_from_columns(values), measured_from_columns(values)
        if problem := _problem(values["status"], measured or _NOT_MEASURED):
            raise FormatError(f"row {sample.sample_id!r} has {problem}: cal-precompute --verify lists all such rows")
        yield AnnotatedRow(
            sample=replace(sample, pass_through={name: batch.column(name).slice(number, 1) for name in pass_through}),
            measured=measured,
            **{name: values[name] for name in _ROW_COLUMNS if name in values},
        )


def rows_to_table(rows: Sequence[AnnotatedRow], schema: pa.Schema, carry: Carry) -> pa.Table:
    """Rows as an Arrow table of exactly `schema`; image bytes only where `carry` is `images` or `embedded`."""
    samples = [sample_columns(row.sample, embed=carry in ("images", "embedded")) for row in rows]
    columns: dict[str, Any] = {name: [values[name] for values in samples] for name in _SAMPLE_COLUMNS}
    columns |= {name: [getattr(row, name) for row in rows] for name in _ROW_COLUMNS}
    for name, kind in TOKEN_COLUMNS.items():
        lists = [getattr(row.measured or _NOT_MEASURED, name) for row in rows]
        columns[name] = _list_array(lists, pa.from_numpy_dtype(kind))
    arrays = []
    for column in schema:
        values = columns.get(column.name)
        if values is None:
            values = _pass_through_array([row.sample.pass_through.get(column.name) for row in rows], column.type)
        arrays.append(values if isinstance(values, pa.Array) else pa.array(values, type=column.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _list_array(parts: Sequence[np.ndarray], item: pa.DataType) -> pa.Array:
    offsets = np.zeros(len(parts) + 1, np.int32)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    flat = np.concatenate(parts) if parts else np.empty(0)
    undefined = np.isnan(flat) if pa.types.is_floating(item) else None
    return pa.ListArray.from_arrays(offsets, pa.array(flat, type=item, mask=undefined))


def _pass_through_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Arrow arrays of one value, which lose nothing on the way whatever the type, Python values and None together."""
    null = pa.nulls(1, kind)

    def part(value: Any) -> pa.Array:
        if value is None or (isinstance(value, pa.Array) and value.null_count):
            return null
        # Parts of a column that have no value in one file are null there.
        array = value if isinstance(value, pa.Array) else pa.array([value], kind)
        return array if array.type == kind else array.cast(kind)

    return pa.concat_arrays([part(value) for value in values]) if values else pa.nulls(0, kind)


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Writes tables of `schema` in the encodings of the format; row groups are the caller's business."""
    encodings = {np.int32: "DELTA_BINARY_PACKED", np.float32: "BYTE_STREAM_SPLIT"}
    return pq.ParquetWriter(
        path.absolute(),  # As in locations.open_parquet.
        schema,
        compression="zstd",
        # True (all columns) clashes with the column encodings.
        use_dictionary=[name for name in ("status", "source") if name in schema.names],
        column_encoding={
            f"{name}.list.element": encodings[kind] for name, kind in TOKEN_COLUMNS.items() if name in schema.names
        },
        write_page_checksum=True,
    )


def with_filter(schema: pa.Schema, condition: str) -> pa.Schema:
    """A shard's own schema and metadata, saying that rows were chosen by one more condition."""
    metadata = dict(schema.metadata)
    shard = json.loads(metadata[b"cal.shard"])
    shard["filters"] = [*shard.get("filters", []), condition]
    return schema.with_metadata({**metadata, b"cal.shard": json.dumps(shard).encode()})


class ShardWriter:
    """Writes one annotated shard in row groups of bounded image bytes; a context manager.

    What it writes to is a staging file: publishing is the store's business.
    """

    def __init__(self, path: Path, schema: pa.Schema, metadata: ShardMetadata) -> None:
        self.num_rows = 0
        self._schema = schema.with_metadata({**(schema.metadata or {}), **metadata.to_parquet()})
        self._carry = metadata.carry
        self._pending: list[AnnotatedRow] = []
        self._pending_bytes = 0
        self._writer = parquet_writer(path, self._schema)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def write(self, row: AnnotatedRow) -> None:
        """Appends one row; a row group is written whenever enough has gathered."""
        size = row.sample.num_bytes
        if self._pending and (
            self._pending_bytes + size > MAX_ROW_GROUP_IMAGE_BYTES or len(self._pending) >= MAX_ROW_GROUP_ROWS
        ):
            self._flush()
        self._pending.append(row)
        self._pending_bytes += size

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(
                rows_to_table(self._pending, self._schema, self._carry), row_group_size=len(self._pending)
            )
        self.num_rows += len(self._pending)
        self._pending, self._pending_bytes = [], 0


def read_annotated_footer(path: Location | str) -> pq.FileMetaData:
    """Footer of a Parquet file; FormatError when it is none, StoreError when its store gives no answer."""
    try:
        return read_footer(path)
    except StoreError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise FormatError(f"{path}: not a readable Parquet file: {error}") from error


def read_annotated_footers(files: Sequence[Location]) -> Iterator[pq.FileMetaData]:
    """Footers of several files, in their order; those of an object store are asked for at the same time.

    One after the other: a footer takes 30 kB of memory, and a run may have ten thousand.
    """
    if not any(isinstance(file, ObjectPath) for file in files):
        yield from map(read_annotated_footer, files)
        return
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        for start in range(0, len(files), _FOOTERS_AHEAD):
            yield from pool.map(read_annotated_footer, files[start : start + _FOOTERS_AHEAD])


def read_shard_metadata(path: Location | str, footer: pq.FileMetaData | None = None) -> ShardMetadata:
    """Metadata of one annotated shard from its footer; FormatError when it is none or has another version."""
    metadata = (footer or read_annotated_footer(path)).metadata or {}
    pairs = {key.decode(): value.decode() for key, value in metadata.items() if key.startswith(b"cal.")}
    if "cal.format_version" not in pairs:
        raise FormatError(f"{path}: a Parquet file, but not an annotated shard (it has no cal.format_version)")
    if pairs["cal.format_version"] != str(FORMAT_VERSION):
        raise FormatError(
            f"{path}: annotated-shard format {pairs['cal.format_version']}, this version reads {FORMAT_VERSION}. "
            "Run cal-precompute again, or install the version that wrote it."
        )
    try:
        shard = json.loads(pairs["cal.shard"])
        # Later versions may say more about a file's source; what a delta depends on is in the spec, read strictly.
        known = {item.name for item in fields(ShardSource)}
        return ShardMetadata(
            spec=MeasurementSpec.from_json(pairs["cal.measurement_spec"]),
            source=ShardSource(**{name: value for name, value in shard["source"].items() if name in known}),
            carry=shard["carry"],
            tokens_per_batch=shard["tokens_per_batch"],
            library_versions=shard["library_versions"],
            filters=tuple(shard.get("filters", ())),
        )
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{path}: broken metadata of an annotated shard: {error!r}") from error
