"""Makes the dummy sample, which trains nothing and stands in for images and rows that are not there."""

from __future__ import annotations

from dataclasses import replace

import torch
from PIL import Image

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_schemas.errors import ConfigError, SampleError
from cal_schemas.sample import Sample, Turn
from cal_schemas.spec import IGNORE_INDEX, ContrastSpec

_DUMMY_SIZES = ((32, 32), (8, 256), (256, 8))
"""(width, height). A thinner strip would leave no row of tiles at all, and LLaVA-NeXT's newline without a gradient."""


def dummy_sample(encoder: Encoder, contrast: ContrastSpec | None = None) -> EncodedSample:
    """A black image with a word, nothing supervised: keeps vision tower and projector in the graph of every rank.

    Of a few small images it takes the one with the fewest tokens: processors that cut images into tiles enlarge a
    square to several of them, and a strip to fewer (LLaVA-NeXT 1190 and 614 tokens, Idefics3 2926 and 871).

    Under a contrast that perturbs its perturbed image is the image itself: nobody reads its deltas.

    Raises ConfigError when not even that fits into the encoder's max length.
    """
    turns = (Turn(role="user", content="<image>\n?"), Turn(role="assistant", content="."))
    candidates: list[EncodedSample] = []
    for size in _DUMMY_SIZES:
        try:
            candidates.append(encoder(Sample(sample_id="dummy", images=(), messages=turns), [Image.new("RGB", size)]))
        except SampleError as error:
            problem = error
    if not candidates:
        raise ConfigError(f"one small image and a word cannot be encoded for this model: {problem}") from problem
    encoded = min(candidates, key=lambda item: item.num_tokens)
    return replace(
        encoded,
        labels=torch.full_like(encoded.labels, IGNORE_INDEX),
        contrast_inputs=encoded.image_inputs if contrast is not None and contrast.perturbs else {},
    )
