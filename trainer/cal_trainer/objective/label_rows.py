"""Sends only those hidden rows through the output head that predict a label: training wastes no logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cal_pipeline.measuring.contrast import label_products
from cal_schemas.spec import IGNORE_INDEX


@contextmanager
def label_rows(model: Any, labels: Tensor) -> Iterator[None]:
    """Within it the model's `logits` are [1, N, V]: one row for each of the N supervised tokens, by row then position.

    Takes unshifted labels [B, T]; the row of token t is the hidden state at t - 1. A hook on the head, so tied, sharded
    and soft-capped heads work as they are, and gradients are those of the full logits.
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


@contextmanager
def head_products(model: Any, labels: Tensor) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Beside `label_rows`, of the same labels: of each forward their logits [N] as the head gives them, and exact ones.

    Exact are those multiplied in float32, as in the label-only LM head of the pass without the image: in half precision
    the head itself rounds a logit of 20 by up to 0.06, which would be noise in every delta.
    """
    head = model.get_output_embeddings()
    products: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def multiply(module: Any, args: tuple[Tensor, ...], logits: Tensor) -> None:
        label_ids = supervised_ids(labels).to(logits.device)
        raw = logits[0].gather(1, label_ids[:, None])[:, 0]
        products.append((raw, label_products(head, args[0][0], label_ids)))

    # Before hooks that free a sharded head's weights.
    handle = head.register_forward_hook(multiply, prepend=True)
    try:
        yield products
    finally:
        handle.remove()


def supervised_ids(labels: Tensor) -> Tensor:
    """[N] int64: the label of each row that `label_rows` yields, in its order."""
    shifted = labels[:, 1:]
    return shifted[shifted != IGNORE_INDEX]


def at_rows(values: Tensor, labels: Tensor) -> Tensor:
    """[..., N]: of values [..., B, T] those at the supervised tokens (t > 0)."""
    return values[..., 1:][..., labels[:, 1:] != IGNORE_INDEX]


def at_tokens(values: Tensor, labels: Tensor) -> Tensor:
    """[B, T] float32 with the [N] values at the supervised tokens (t > 0), NaN elsewhere."""
    placed = torch.full(labels.shape, torch.nan, dtype=torch.float32, device=values.device)
    placed[:, 1:][labels[:, 1:].to(values.device) != IGNORE_INDEX] = values.float()
    return placed
