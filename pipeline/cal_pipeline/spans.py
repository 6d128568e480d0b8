"""From characters to tokens: which tokens cover a span of the rendered text once images are expanded in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cal_schemas.errors import ConfigError, SampleError


def image_replacements(output: Any, images: Sequence[Image.Image], name: str) -> list[dict[str, Any]]:
    """The processor's own account of the text it inserted for each image: `span` before, `new_span` after.

    Raises ConfigError when the processor gives none, SampleError when it expanded another number of images.
    """
    found = output.get("text_replacement_offsets")
    if not images:
        return []
    if found is None:
        raise ConfigError(f"{name} does not report which text it inserts for an image (text_replacement_offsets)")
    if len(found[0]) != len(images):
        raise SampleError(f"{name} expanded {len(found[0])} placeholders for {len(images)} images")
    return list(found[0])


def expanded_offset(position: int, replacements: Sequence[Mapping[str, Any]]) -> int:
    """Where a character of the rendered text lies once the placeholders before it have been expanded."""
    shift = 0
    for item in replacements:
        if item["span"][1] <= position:
            shift = item["new_span"][1] - item["span"][1]
    return position + shift


def overlapping_tokens(starts: Tensor, stops: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """[T] bool: tokens that cover at least one character of a span; tokens without text (BOS) cover none."""
    inside = torch.zeros_like(starts, dtype=torch.bool)
    for start, stop in spans:
        inside |= (starts < stop) & (stops > start) & (stops > starts)
    return inside
