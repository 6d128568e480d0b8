"""Annotates one shard, from source file to published file: the table of contents of this package, in plain Python.

`sources` reads rows, `encoding` prepares them ahead in threads and gathers windows of them, `measuring` sorts a window
into batches of like length and passes each twice through the model of `models`, and `output` writes the rows in their
own order and publishes the file. While a window is measured the next one is gathered and the last one is written.
Windows and batches depend on the shard and the flags alone, never on workers or timing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import pyarrow as pa

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.prefetch import PreparedRow, one_ahead, prepare_rows, windows
from cal_pipeline.measuring.measure import measure
from cal_pipeline.output.resume import check_published, kept_rows
from cal_pipeline.output.row_writer import annotated_row, writing_behind
from cal_pipeline.output.shard_report import ShardReport
from cal_pipeline.output.store import Store
from cal_pipeline.sources.images import DEFAULT_MAX_IMAGE_PIXELS
from cal_pipeline.sources.shard import Shard
from cal_schemas.annotated import AnnotatedRow
from cal_schemas.choices import check_choice
from cal_schemas.errors import ShardError
from cal_schemas.metadata import Carry, ShardMetadata
from cal_schemas.spec import MeasurementSpec
from cal_schemas.token_columns import ExtraColumn
from cal_schemas.writer import ShardWriter


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotateOptions:
    """What shapes an annotated shard besides its measurement."""

    schema: pa.Schema
    carry: Carry
    tokens_per_batch: int
    extra_columns: tuple[ExtraColumn, ...] = ()
    source_label: bool = False
    encode_threads: int = 4
    max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS
    library_versions: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        check_choice("carry", self.carry, Carry)


def annotate_shard(
    shard: Shard,
    *,
    encoder: Encoder,
    model: Any,
    spec: MeasurementSpec,
    store: Store,
    options: AnnotateOptions,
    redo: frozenset[str] = frozenset(),
) -> ShardReport:
    """Measures every row of a shard and publishes the annotated file.

    With `redo`, rows of the existing file whose status is not among those named are taken over as they are, and the
    file is replaced in one step. Raises ShardError when the source cannot be read, ConfigError when another driver has
    published something else under the shard's name.
    """
    started = time.monotonic()
    report = ShardReport(name=shard.name, one_by_one=encoder.one_by_one)
    metadata = ShardMetadata(
        spec=spec,
        source=shard.source,
        carry=options.carry,
        tokens_per_batch=options.tokens_per_batch,
        library_versions=dict(options.library_versions),
    )
    source = shard.source.data_path if options.source_label else None
    replaces = bool(redo) and store.path(shard.name).is_file()
    if replaces:
        check_published(shard, spec=spec, schema=options.schema, carry=options.carry, store=store)
    kept = kept_rows(store.path(shard.name), redo) if replaces else repeat(None)
    prepared = prepare_rows(
        shard, encoder, spec.contrast, carry=options.carry, max_image_pixels=options.max_image_pixels,
        encode_threads=options.encode_threads, kept=kept,
    )  # fmt: skip
    with store.staging(shard.name) as partial:
        with (
            ShardWriter(partial, options.schema, metadata) as writer,
            writing_behind(writer, report) as write,
            closing(one_ahead(windows(prepared, options.tokens_per_batch))) as gathered,
        ):
            for window in gathered:
                with report.timed("forward"):
                    rows = _measure_window(window, encoder, model, spec, options, report)
                report.count(rows)
                write([replace(row, source=source) for row in rows])
        if writer.num_rows != shard.num_rows:
            raise ShardError(f"{shard.source.uri}: {shard.num_rows} rows planned, {writer.num_rows} came out")
        report.bytes = partial.stat().st_size
        with report.timed("write"):
            report.committed = store.commit(partial, shard.name, replace=replaces)
            if not report.committed:
                check_published(shard, spec=spec, schema=options.schema, carry=options.carry, store=store)
    report.seconds["total"] = time.monotonic() - started
    return report


def _measure_window(
    window: Sequence[PreparedRow],
    encoder: Encoder,
    model: Any,
    spec: MeasurementSpec,
    options: AnnotateOptions,
    report: ShardReport,
) -> list[AnnotatedRow]:
    """The rows of a window in its order: kept as they are, measured, or with the reason why not."""
    outcomes = iter(
        measure(
            [item.encoded for item in window if item.encoded is not None],
            model=model,
            encoder=encoder,
            contrast=spec.contrast,
            tokens_per_batch=options.tokens_per_batch,
            extra_columns=options.extra_columns,
        )
    )
    rows = []
    for item in window:
        report.seconds["load"] += item.load_seconds
        report.seconds["encode"] += item.encode_seconds
        if item.encoded is not None:
            report.tokens += item.encoded.num_tokens
            report.truncated += item.encoded.truncated
            rows.append(annotated_row(item.sample, item.sample_key, next(outcomes), item.encoded.num_tokens))
        elif item.failure is not None:
            rows.append(annotated_row(item.sample, item.sample_key, item.failure, item.failure.num_tokens))
        elif item.kept is not None:
            report.kept_rows += 1
            rows.append(item.kept)
    return rows
