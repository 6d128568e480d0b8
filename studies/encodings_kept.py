"""Keeps what the encoder made of a sample: dozens of runs read the same rows, and encoding takes half of a tiny run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_schemas.sample import Sample


@contextmanager
def kept_encodings() -> Iterator[None]:
    """Within it an Encoder encodes the same words and pixels once.

    For commands that run in this process, one world at a time: all its models share tokenizer and processor. Numbers
    stay what they are (tests/test_studies.py compares).
    """
    encode = Encoder.__call__
    kept: dict[Any, EncodedSample] = {}

    def once(self: Encoder, sample: Sample, images: Sequence[Image.Image]) -> EncodedSample:
        pixels = tuple((image.size, image.tobytes()) for image in images)
        words = repr((sample.messages, sample.tools))
        key = (words, pixels, self.template, self.image_aspect_ratio, self.max_length, self.truncation)
        if key not in kept:
            kept[key] = encode(self, sample, images)
        return kept[key]

    Encoder.__call__ = once  # type: ignore[method-assign]
    try:
        yield
    finally:
        Encoder.__call__ = encode  # type: ignore[method-assign]
