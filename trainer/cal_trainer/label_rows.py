"""Training without wasted logits: only hidden rows that predict a label go through the output head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cal_pipeline.encode import IGNORE_INDEX


@contextmanager
def label_rows(model: Any, labels: Tensor) -> Iterator[None]:
    """Within it the model's `logits` are [1, N, V]: one row for each of the N supervised tokens, by row then position.

    Takes unshifted labels [B, T]; the row of token t is the hidden state at t - 1. A hook in front of the head, so
    tied, sharded and soft-capped heads work as they are, and gradients are those of the full logits.
    """
    supervised = labels[:, 1:] != IGNORE_INDEX

    def gather(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = args
        return hidden[:, :-1][supervised.to(hidden.device)][None], *rest

    handle = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def supervised_ids(labels: Tensor) -> Tensor:
    """[N] int64: the label of each row that `label_rows` yields, in its order."""
    shifted = labels[:, 1:]
    return shifted[shifted != IGNORE_INDEX]


def at_tokens(values: Tensor, labels: Tensor) -> Tensor:
    """[B, T] float32 with the [N] values at the supervised tokens (t > 0), NaN elsewhere."""
    placed = torch.full(labels.shape, torch.nan, dtype=torch.float32, device=values.device)
    placed[:, 1:][labels[:, 1:].to(values.device) != IGNORE_INDEX] = values.float()
    return placed
