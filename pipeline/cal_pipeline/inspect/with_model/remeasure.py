"""Measures samples once more, through the same `Encoder` and `measure` as `cal-precompute`."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.perturbation import encode_with_contrast
from cal_pipeline.measuring.measure import measure
from cal_pipeline.output.row_reader import NumberedRow
from cal_pipeline.sources.images import DEFAULT_MAX_IMAGE_PIXELS, decode_images
from cal_schemas.annotated import MeasuredSample
from cal_schemas.errors import SampleError
from cal_schemas.spec import MeasurementSpec

WINDOW_ROWS = 128
"""Rows that are encoded and held together; batches are made inside a window."""


def measure_again(
    pairs: Sequence[tuple[NumberedRow, NumberedRow]],
    *,
    model: Any,
    encoder: Encoder,
    spec: MeasurementSpec,
    tokens_per_batch: int,
    encode_threads: int,
) -> list[MeasuredSample | SampleError]:
    """Measures each row's words with the images of the row beside it: its own, or another sample's.

    Results in the order given; a SampleError while decoding or encoding is its sample's result.
    """

    def encode(pair: tuple[NumberedRow, NumberedRow]) -> EncodedSample | SampleError:
        row, lender = pair
        try:
            images = decode_images(lender.image_files(), DEFAULT_MAX_IMAGE_PIXELS)
            # The key as stored: what is painted over an image depends on it, where the contrast perturbs images.
            return encode_with_contrast(encoder, spec.contrast, row.sample, images, row.annotated.sample_key)
        except SampleError as error:
            return error

    with ThreadPoolExecutor(encode_threads) as pool:
        encoded = list(pool.map(encode, pairs))
    measured = iter(
        measure(
            [item for item in encoded if isinstance(item, EncodedSample)],
            model=model,
            encoder=encoder,
            contrast=spec.contrast,
            tokens_per_batch=tokens_per_batch,
        )
    )
    return [next(measured) if isinstance(item, EncodedSample) else item for item in encoded]
