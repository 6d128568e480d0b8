"""One shard, from source file to annotated file: plain Python, no Ray.

Rows are prepared in windows, batched by length inside a window, measured in two passes and written in their own order.
While a window is measured the next one is gathered and the last one is written. Windows and batches depend on the shard
and the flags alone, never on workers or timing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import pyarrow as pa

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.prefetch import PreparedRow, one_ahead, prepare_rows, windows
from cal_pipeline.measuring.measure import MeasuredSample, measure
from cal_pipeline.output.redo import stored_rows
from cal_pipeline.output.resume import check_published
from cal_pipeline.output.shard_report import ShardReport
from cal_pipeline.output.store import Store
from cal_pipeline.sources.images import DEFAULT_MAX_IMAGE_PIXELS
from cal_pipeline.sources.shard import Shard
from cal_schemas.annotated import EXTRA_COLUMNS, AnnotatedRow, Carry, ExtraColumn, ShardMetadata, ShardWriter
from cal_schemas.errors import STATUS_OK, SampleError, ShardError
from cal_schemas.spec import MeasurementSpec

_NUM_QUOTED_ERRORS = 10
_MAX_UNREAD = 100
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


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

    def check_theirs() -> None:
        check_published(shard, spec=spec, schema=options.schema, carry=options.carry, store=store)

    replaces = bool(redo) and store.path(shard.name).is_file()
    if replaces:
        check_theirs()
    kept = stored_rows(store.path(shard.name), redo) if replaces else repeat(None)
    source = shard.source.data_path if options.source_label else None
    with store.staging(shard.name) as partial:
        prepared = windows(
            prepare_rows(
                shard, encoder, spec.contrast, carry=options.carry, max_image_pixels=options.max_image_pixels,
                encode_threads=options.encode_threads, kept=kept,
            ),
            options.tokens_per_batch,
        )  # fmt: skip
        with ShardWriter(partial, options.schema, metadata) as writer, ThreadPoolExecutor(1) as behind:

            def write(rows: Sequence[AnnotatedRow]) -> None:
                at = time.monotonic()
                for row in rows:
                    writer.write(replace(row, source=source))
                report.seconds["write"] += time.monotonic() - at

            written = behind.submit(write, [])
            with closing(one_ahead(prepared)) as gathered:
                for window in gathered:
                    at = time.monotonic()
                    rows = _measure_window(window, encoder, model, spec, options, report)
                    report.seconds["forward"] += time.monotonic() - at
                    for row in rows:
                        _count(report, row)
                    written.result()
                    written = behind.submit(write, rows)
            written.result()
        if writer.num_rows != shard.num_rows:
            raise ShardError(f"{shard.source.uri}: {shard.num_rows} rows planned, {writer.num_rows} came out")
        report.bytes = partial.stat().st_size
        at = time.monotonic()
        report.committed = store.commit(partial, shard.name, replace=replaces)
        if not report.committed:
            check_theirs()
        report.seconds["write"] += time.monotonic() - at
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
    encoded = [item.encoded for item in window if item.encoded is not None]
    outcomes = iter(
        measure(
            encoded,
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
        if item.kept is not None:
            report.kept_rows += 1
            rows.append(item.kept)
            continue
        outcome = item.failure if item.encoded is None else next(outcomes)
        if item.encoded is not None:
            report.tokens += item.encoded.num_tokens
            report.truncated += item.encoded.truncated
        rows.append(_row(item, outcome))
    return rows


def _row(item: PreparedRow, outcome: MeasuredSample | SampleError | None) -> AnnotatedRow:
    num_tokens = item.encoded.num_tokens if item.encoded else getattr(outcome, "num_tokens", None)
    if isinstance(outcome, MeasuredSample):
        names = EXTRA_COLUMNS["logprobs"] if outcome.logprobs_with_image is not None else ()
        logprobs: dict[str, Any] = {name: getattr(outcome, name) for name in names}
        return AnnotatedRow(
            sample=item.sample,
            sample_key=item.sample_key,
            error=item.sample.note,
            num_tokens=num_tokens,
            label_ids=outcome.label_ids,
            label_positions=outcome.label_positions,
            delta_logits=outcome.delta_logits,
            logits_with_image=outcome.logits_with_image,
            logits_without_image=outcome.logits_without_image,
            **logprobs,
        )
    assert outcome is not None
    # Addresses in third-party messages differ from run to run; columns must not.
    message = _ADDRESS.sub("", " ".join(str(outcome).split()))[:1000]
    if item.sample.note:
        message = f"{message} ({item.sample.note})"
    return AnnotatedRow(
        sample=item.sample, sample_key=item.sample_key, status=outcome.status, error=message, num_tokens=num_tokens
    )


def _count(report: ShardReport, row: AnnotatedRow) -> None:
    report.rows += 1
    report.statuses[row.status] = report.statuses.get(row.status, 0) + 1
    report.label_tokens += len(row.label_ids)
    if row.sample.note is not None:
        report.noted += 1
        if len(report.notes) < _NUM_QUOTED_ERRORS:
            report.notes.append(f"{row.sample.sample_id}: {row.sample.note}")
    for key in row.sample.unread:
        if key in report.unread or len(report.unread) < _MAX_UNREAD:
            report.unread[key] = report.unread.get(key, 0) + 1
    if row.status != STATUS_OK:
        if len(report.errors) < _NUM_QUOTED_ERRORS:
            report.errors.append(f"{row.sample.sample_id}: {row.status}: {row.error}")
    elif row.sample.images:
        # Comparisons with NaN are false: undefined deltas count nowhere.
        report.image_label_tokens += int((row.delta_logits == row.delta_logits).sum())
        report.at_most_alpha += int((row.delta_logits <= 1.0).sum())
        report.below_beta += int((row.delta_logits < 5.0).sum())
