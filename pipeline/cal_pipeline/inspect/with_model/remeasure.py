"""Measures samples once more, through the same `Encoder` and `measure` as `cal-precompute`."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.perturbation import encode_with_contrast
from cal_pipeline.measuring.measure import measure
from cal_schemas.annotated import MeasuredSample
from cal_schemas.errors import SampleError
from cal_schemas.sample import Sample
from cal_schemas.spec import MeasurementSpec

WINDOW_ROWS = 128
"""Rows that are encoded and held together; batches are made inside a window."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToMeasure:
    """A conversation and the images to measure it with: its own, or another sample's."""

    sample: Sample
    sample_key: str
    """As stored: what is painted over an image depends on it, where the contrast perturbs images."""
    images: list[Image.Image] | SampleError
    """In the order of the marks, or why there are none."""


def measure_again(
    samples: Sequence[ToMeasure],
    *,
    model: Any,
    encoder: Encoder,
    spec: MeasurementSpec,
    tokens_per_batch: int,
    encode_threads: int = 4,
) -> list[MeasuredSample | SampleError]:
    """Results in the order given; a SampleError in place of images, or one while encoding, is its sample's result."""

    def encode(item: ToMeasure) -> EncodedSample | SampleError:
        if isinstance(item.images, SampleError):
            return item.images
        try:
            return encode_with_contrast(encoder, spec.contrast, item.sample, item.images, item.sample_key)
        except SampleError as error:
            return error

    with ThreadPoolExecutor(encode_threads) as pool:
        encoded = list(pool.map(encode, samples))
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
