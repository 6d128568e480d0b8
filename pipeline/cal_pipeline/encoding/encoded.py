"""Defines `EncodedSample`, which an encoder makes of a sample and everything behind it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedSample:
    """One sample, ready to be batched; T tokens."""

    sequence_inputs: Mapping[str, Tensor]
    """Each [T]: input_ids and what else the processor gives of every token."""
    image_inputs: Mapping[str, Tensor]
    """Pixel inputs with the leading dimension the processor gave them; empty for text-only samples."""
    labels: Tensor
    """[T] int64, not shifted: labels[t] == input_ids[t] where token t is supervised, IGNORE_INDEX elsewhere."""
    image_mask: Tensor
    """[T] bool: tokens the processor inserted for images, row, column and tile markers included."""
    truncated: bool = False
    contrast_inputs: Mapping[str, Tensor] = field(default_factory=dict)
    """Pixel inputs of the perturbed images, each of the shape in `image_inputs`; empty unless a contrast has any."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.labels)


def token_aligned(inputs: Mapping[str, Any]) -> frozenset[str]:
    """Names of a batch's inputs [B, T] that are of its tokens, by their shape; numbers of images are floating."""
    shape = inputs["input_ids"].shape
    tensors = {key: value for key, value in inputs.items() if isinstance(value, Tensor)}
    return frozenset(k for k, value in tensors.items() if value.shape == shape and not value.is_floating_point())
