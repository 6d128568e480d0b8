"""Defines the annotated shard: one Parquet file per input shard, same rows in the same order, deltas beside each row.

Schema and codec of rows live here and nowhere else, names of the token columns in token_columns.py, what `datasets`
makes of them all in features.py, footer and version of the format in metadata.py, encodings and row groups in
writer.py; docs/data-format.md is the same contract in prose.
`delta_logits[i]` belongs to supervised token `label_ids[i]` and was predicted from what precedes that token. A null
element is a delta that is undefined; NaN and infinity never reach a file.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from cal_schemas.errors import STATUS_OK, ConfigError, FormatError
from cal_schemas.features import with_features
from cal_schemas.metadata import Carry
from cal_schemas.sample import ImageRef, Sample, Turn
from cal_schemas.token_columns import EXTRA_COLUMNS, REQUIRED_TOKEN_COLUMNS, TOKEN_COLUMNS, ExtraColumn

_IMAGES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def annotated_schema(
    *,
    carry: Carry,
    extra_columns: Collection[ExtraColumn] = (),
    source_column: bool = False,
    pass_through: Sequence[pa.Field] = (),
) -> pa.Schema:
    """Columns of one run's shards; `pass_through` are the source's own columns, already under their output names.

    Its metadata say which columns are more to `datasets` than their Arrow type: see `with_features`.
    """
    columns = [pa.field("sample_id", pa.string(), nullable=False), pa.field("sample_key", pa.string(), nullable=False)]
    if carry != "none":
        columns += [
            pa.field("images", _IMAGES),  # Never null; but of a field that may not be `datasets` reads no features.
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
    return with_features(schema, carry)


RESERVED_COLUMNS = frozenset(
    annotated_schema(carry="images", extra_columns=tuple(EXTRA_COLUMNS), source_column=True).names
)


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
    """[S] float32, NaN where the delta is undefined; this and all that follow are empty where they are not kept."""
    logits_without_image: np.ndarray = field(default_factory=_empty)
    logprobs_with_image: np.ndarray = field(default_factory=_empty)
    logprobs_without_image: np.ndarray = field(default_factory=_empty)
    kl_with_without: np.ndarray = field(default_factory=_empty)
    """Nats, as the divergences and entropies below."""
    kl_without_with: np.ndarray = field(default_factory=_empty)
    js_with_without: np.ndarray = field(default_factory=_empty)
    entropy_with_image: np.ndarray = field(default_factory=_empty)
    entropy_without_image: np.ndarray = field(default_factory=_empty)
    rank_with_image: np.ndarray = field(default_factory=_empty)
    """Whole numbers from 1; float32 all the same, for the NaN."""
    rank_without_image: np.ndarray = field(default_factory=_empty)


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


_LISTED = "cal-precompute --verify lists all such rows"
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
    """The numbers of a row, given as Python values of its columns; None where it has none.

    Raises FormatError for NaN, which no measurement writes: an undefined value is None.
    """
    if not values.get("label_ids"):
        return None
    columns = {}
    for name, kind in TOKEN_COLUMNS.items():
        given = values.get(name) or ()
        # A null delta is None here, which numpy turns into NaN: the same "undefined".
        columns[name] = np.array(given, kind)
        if np.isnan(columns[name]).sum() > given.count(None):
            raise FormatError(f"row {values.get('sample_id')!r} holds NaN in {name}: {_LISTED}")
    return MeasuredSample(**columns)


def rows_from_batch(batch: pa.RecordBatch) -> Iterator[AnnotatedRow]:
    """Rows of an annotated shard, as `rows_to_table` took them; columns that may be null or empty may be missing.

    Columns of the source stay Arrow arrays of one value: Python's types would round some of them. Raises FormatError
    for what no row may be: lists of different lengths, infinity, an `ok` without labels or the contrary.
    """
    pass_through = [name for name in batch.schema.names if name not in RESERVED_COLUMNS]
    for number, values in enumerate(batch.drop_columns(pass_through).to_pylist()):
        sample, measured = sample_from_columns(values), measured_from_columns(values)
        if problem := _problem(values["status"], measured or _NOT_MEASURED):
            raise FormatError(f"row {sample.sample_id!r} has {problem}: {_LISTED}")
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
