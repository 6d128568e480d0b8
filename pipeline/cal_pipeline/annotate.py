"""One shard, from source file to annotated file: plain Python, no Ray.

Samples are decoded and encoded in threads, gathered in windows of consecutive rows, batched by length inside a
window, measured in two passes and written in their own order. While a window is measured the next one is gathered and
the last one is written. Windows and batches depend on the shard and the flags alone, never on workers or timing.

Over 250 lines: the stages hand each other one private type, and are read as one passage.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from cal_pipeline.encode import EncodedSample, Encoder
from cal_pipeline.images import DEFAULT_MAX_IMAGE_PIXELS, decode_images, read_images
from cal_pipeline.measure import MeasuredSample, measure
from cal_pipeline.overlap import one_ahead
from cal_pipeline.perturbation import encode_with_contrast
from cal_pipeline.redo import read_rows_to_keep
from cal_pipeline.shards import Shard, read_samples
from cal_pipeline.store import Store
from cal_schemas.annotated import EXTRA_COLUMNS, AnnotatedRow, Carry, ExtraColumn, ShardMetadata, ShardWriter
from cal_schemas.errors import STATUS_OK, ImageError, SampleError, ShardError
from cal_schemas.locations import location
from cal_schemas.sample import ImageRef, Sample, sample_key
from cal_schemas.spec import MeasurementSpec

_WINDOW_ROWS = 1024
_WINDOW_BATCHES = 16
_WINDOW_BYTES = 2**30
_AHEAD_BYTES = 256 * 2**20
_NUM_QUOTED_ERRORS = 10
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


@dataclass(kw_only=True, slots=True)
class ShardReport:
    """Counts of one finished shard; travels to the driver and into the run report."""

    name: str
    rows: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    """Encoded tokens of the measured rows, padding not counted."""
    label_tokens: int = 0
    image_label_tokens: int = 0
    """Supervised tokens with a defined delta in rows with an image; the next two count among them."""
    at_most_alpha: int = 0
    below_beta: int = 0
    truncated: int = 0
    replaced_characters: int = 0
    kept_rows: int = 0
    """Rows taken over from the earlier file by a redo."""
    errors: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("load", "encode", "forward", "write", "total"), 0.0)
    )
    """`load` (reading rows and pictures) and `encode` add up their threads, `write` is of its own; the others are of
    the main thread."""
    bytes: int = 0
    worker: str = ""
    device: str = ""
    """Who measured it and on what, in words; set by the driver."""
    committed: bool = False
    """False when another writer had published the shard first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prepared:
    """A row on its way: exactly one of encoded, failure and kept is set."""

    sample: Sample
    sample_key: str
    encoded: EncodedSample | None = None
    failure: SampleError | None = None
    kept: AnnotatedRow | None = None
    load_seconds: float = 0.0
    encode_seconds: float = 0.0

    @property
    def num_bytes(self) -> int:
        pixels = (self.encoded.image_inputs, self.encoded.contrast_inputs) if self.encoded else ()
        return self.sample.num_bytes + sum(value.nbytes for inputs in pixels for value in inputs.values())


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
    file is replaced in one step. Raises ShardError when the source cannot be read.
    """
    started = time.monotonic()
    report = ShardReport(name=shard.name)
    metadata = ShardMetadata(
        spec=spec,
        source=shard.source,
        carry=options.carry,
        tokens_per_batch=options.tokens_per_batch,
        library_versions=dict(options.library_versions),
    )
    replaces = bool(redo) and store.path(shard.name).is_file()
    kept = read_rows_to_keep(store.path(shard.name), redo) if replaces else {}
    source = shard.source.data_path if options.source_label else None
    with store.staging(shard.name) as partial:
        prepared = _windows(_prepare_all(shard, encoder, spec, options, kept), options.tokens_per_batch)
        with ShardWriter(partial, options.schema, metadata) as writer, ThreadPoolExecutor(1) as behind:

            def write(rows: Sequence[AnnotatedRow]) -> None:
                at = time.monotonic()
                for row in rows:
                    writer.write(replace(row, source=source))
                report.seconds["write"] += time.monotonic() - at

            written = behind.submit(write, [])
            with closing(one_ahead(prepared)) as windows:
                for window in windows:
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
        report.seconds["write"] += time.monotonic() - at
    report.seconds["total"] = time.monotonic() - started
    return report


def _prepare_all(
    shard: Shard,
    encoder: Encoder,
    spec: MeasurementSpec,
    options: AnnotateOptions,
    kept: dict[int, AnnotatedRow],
) -> Generator[_Prepared, None, None]:
    folder = None if shard.source.image_folder is None else location(shard.source.image_folder)

    def prepare(row: int, sample: Sample, read_seconds: float) -> _Prepared:
        key = sample_key(sample)
        started = loaded = time.monotonic()
        if row in kept and kept[row].sample_key != key:
            raise ShardError(f"{shard.source.uri}: row {row} is not the row that was measured before")
        encoded = failure = None
        try:
            # A kept row needs its pictures only to carry them along, as it did unless they could not be read.
            carried = options.carry == "images" and row in kept and kept[row].status != ImageError.status
            needed = row not in kept or carried
            files = read_images(sample.images, folder) if needed else []
            loaded = time.monotonic()
            if options.carry == "images" and needed:
                images = zip(sample.images, files, strict=True)
                sample = replace(sample, images=tuple(ImageRef(data=data, path=ref.path) for ref, data in images))
            if row not in kept:
                encoder.check(sample)  # Before a picture is decoded: a row may have thousands.
                pictures = decode_images(files, options.max_image_pixels)
                encoded = encode_with_contrast(encoder, spec.contrast, sample, pictures, key)
        except SampleError as error:
            if row in kept:
                raise ShardError(
                    f"{shard.source.uri}: row {row} is to be kept, but {error}; nothing is changed"
                ) from error
            failure = error
        kept_row = replace(kept[row], sample=sample) if row in kept else None
        return _Prepared(
            sample=sample, sample_key=key, encoded=encoded, failure=failure, kept=kept_row,
            load_seconds=read_seconds + loaded - started, encode_seconds=time.monotonic() - loaded,
        )  # fmt: skip

    yield from _in_threads(prepare, _timed(read_samples(shard)), options.encode_threads)


def _timed(samples: Iterator[Sample]) -> Iterator[tuple[Sample, float]]:
    """The samples, and the seconds that it took to get each."""
    at = time.monotonic()
    for sample in samples:
        yield sample, time.monotonic() - at
        at = time.monotonic()


def _in_threads(
    prepare: Callable[[int, Sample, float], _Prepared], samples: Iterable[tuple[Sample, float]], num_threads: int
) -> Generator[_Prepared, None, None]:
    """Results in the order of the samples, a few dozen ahead of the reader at most: threads run while it computes."""
    ahead: deque[tuple[int, Future[_Prepared]]] = deque()
    size = 0
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for row, (sample, read_seconds) in enumerate(samples):
                ahead.append((sample.num_bytes, pool.submit(prepare, row, sample, read_seconds)))
                size += sample.num_bytes
                while len(ahead) > 16 * num_threads or (size > _AHEAD_BYTES and len(ahead) > 1):
                    num_bytes, future = ahead.popleft()
                    size -= num_bytes
                    yield future.result()
            while ahead:
                yield ahead.popleft()[1].result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _windows(prepared: Iterable[_Prepared], tokens_per_batch: int) -> Generator[list[_Prepared], None, None]:
    """Runs of consecutive rows, wide enough to sort by length, narrow enough to hold."""
    window: list[_Prepared] = []
    tokens = size = 0
    for item in prepared:
        window.append(item)
        tokens += item.encoded.num_tokens if item.encoded else 0
        size += item.num_bytes
        if len(window) >= _WINDOW_ROWS or tokens >= _WINDOW_BATCHES * tokens_per_batch or size >= _WINDOW_BYTES:
            yield window
            window, tokens, size = [], 0, 0
    if window:
        yield window


def _measure_window(
    window: Sequence[_Prepared],
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


def _row(item: _Prepared, outcome: MeasuredSample | SampleError | None) -> AnnotatedRow:
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
    report.replaced_characters += row.sample.note is not None
    if row.status != STATUS_OK:
        if len(report.errors) < _NUM_QUOTED_ERRORS:
            report.errors.append(f"{row.sample.sample_id}: {row.status}: {row.error}")
    elif row.sample.images:
        # Comparisons with NaN are false: undefined deltas count nowhere.
        report.image_label_tokens += int((row.delta_logits == row.delta_logits).sum())
        report.at_most_alpha += int((row.delta_logits <= 1.0).sum())
        report.below_beta += int((row.delta_logits < 5.0).sum())
