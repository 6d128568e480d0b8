"""Reads, decodes and encodes a shard's rows in threads, ahead of the model, and gathers them in windows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.perturbation import encode_with_contrast
from cal_pipeline.sources.images import decode_images, note_of, read_images
from cal_pipeline.sources.shard import Shard, read_samples
from cal_schemas.annotated import AnnotatedRow
from cal_schemas.errors import SampleError, ShardError
from cal_schemas.metadata import Carry
from cal_schemas.sample import ImageRef, Sample, sample_key
from cal_schemas.spec import ContrastSpec
from cal_schemas.storage.locations import location

_Item = TypeVar("_Item")
_WINDOW_ROWS = 1024
_WINDOW_BATCHES = 16
_WINDOW_BYTES = 2**30
_AHEAD_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedRow:
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
        """Of images and pixels."""
        pixels = (self.encoded.image_inputs, self.encoded.contrast_inputs) if self.encoded else ()
        return self.sample.num_bytes + sum(value.nbytes for inputs in pixels for value in inputs.values())


def prepare_rows(
    shard: Shard,
    encoder: Encoder,
    contrast: ContrastSpec,
    *,
    carry: Carry,
    encode_threads: int,
    max_image_pixels: int,
    kept: Iterable[AnnotatedRow | None],
) -> Generator[PreparedRow, None, None]:
    """The shard's rows in their order, some ahead of the reader.

    `kept` has for each row what a redo takes over as it is, images and other columns included, or None. Raises
    ShardError when the source cannot be read, or is not what the kept rows were measured from.
    """
    folder = None if shard.source.image_folder is None else location(shard.source.image_folder)

    def prepare(row: int, sample: Sample, read_seconds: float, kept: AnnotatedRow | None) -> PreparedRow:
        key = sample_key(sample)
        if kept is not None:
            if kept.sample_key != key:
                raise ShardError(f"{shard.source.uri}: row {row} is not the row that was measured before")
            if carry == "none":  # The report asks for them: rows without an image are counted apart.
                kept = replace(kept, sample=replace(kept.sample, images=sample.images))
            return PreparedRow(sample=kept.sample, sample_key=key, kept=kept, load_seconds=read_seconds)
        started = loaded = time.monotonic()
        encoded = failure = None
        try:
            files = read_images(sample.images, folder)
            loaded = time.monotonic()
            if carry == "images":
                images = zip(sample.images, files, strict=True)
                sample = replace(sample, images=tuple(ImageRef(data=data, path=ref.path) for ref, data in images))
            encoder.check(sample)  # Before an image is decoded: a row may have thousands.
            decoded = decode_images(files, max_image_pixels)
            notes = filter(None, (sample.note, *dict.fromkeys(map(note_of, decoded))))
            sample = replace(sample, note="; ".join(notes) or None)
            encoded = encode_with_contrast(encoder, contrast, sample, decoded, key)
        except SampleError as error:
            failure = error
        return PreparedRow(
            sample=sample, sample_key=key, encoded=encoded, failure=failure,
            load_seconds=read_seconds + loaded - started, encode_seconds=time.monotonic() - loaded,
        )  # fmt: skip

    yield from _in_threads(prepare, _timed(read_samples(shard)), kept, encode_threads)


def windows(prepared: Iterable[PreparedRow], tokens_per_batch: int) -> Generator[list[PreparedRow], None, None]:
    """Runs of consecutive rows, wide enough to sort by length, narrow enough to hold; the same whatever the timing."""
    window: list[PreparedRow] = []
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


def _timed(samples: Iterator[Sample]) -> Iterator[tuple[Sample, float]]:
    """The samples, and the seconds that it took to get each."""
    at = time.monotonic()
    for sample in samples:
        yield sample, time.monotonic() - at
        at = time.monotonic()


def _in_threads(
    prepare: Callable[[int, Sample, float, AnnotatedRow | None], PreparedRow],
    samples: Iterable[tuple[Sample, float]],
    kept: Iterable[AnnotatedRow | None],
    num_threads: int,
) -> Generator[PreparedRow, None, None]:
    """Results in the order of the samples, a few dozen ahead of the reader at most: threads run while it computes."""
    ahead: deque[tuple[int, Future[PreparedRow]]] = deque()
    size = 0
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for row, ((sample, read_seconds), old) in enumerate(zip(samples, kept, strict=False)):
                num_bytes = sample.num_bytes + (old.sample.num_bytes if old else 0)
                ahead.append((num_bytes, pool.submit(prepare, row, sample, read_seconds, old)))
                size += num_bytes
                while len(ahead) > 16 * num_threads or (size > _AHEAD_BYTES and len(ahead) > 1):
                    num_bytes, future = ahead.popleft()
                    size -= num_bytes
                    yield future.result()
            while ahead:
                yield ahead.popleft()[1].result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def one_ahead(items: Generator[_Item, None, None]) -> Generator[_Item, None, None]:
    """The same items in the same order, errors at their place; at most one is waiting.

    Leaving early waits for the one in the making and closes `items`.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        try:
            following = pool.submit(next, items, None)
            while (item := following.result()) is not None:
                following = pool.submit(next, items, None)
                yield item
        finally:
            pool.shutdown(wait=True)
            items.close()
