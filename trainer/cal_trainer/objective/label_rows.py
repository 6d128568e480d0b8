"""Sends only those hidden rows through the output head that predict a label: training wastes no logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cal_pipeline.measuring.contrast import label_products
from cal_schemas.spec import IGNORE_INDEX

_BENT, _SMALL = 4, 2**-6
"""By how many roundings of the head's format the scales of single logits may differ; logits that are a smaller share of
the largest have no scale that is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadProducts:
    """Logits of one forward's N labels: as the head gave them, and multiplied in float32."""

    rounded: Tensor
    exact: Tensor
    row: Tensor
    """[1, V] as the head gave it, [0, V] where there is no token: all logits of the first one. They tell a scale from a
    bend, which the labels' own may be too few or too much alike for."""
    rounding: float
    """The share of a number that rounding to the head's format takes at most."""

    def undo_rounding(self, logits: Tensor, row: Tensor) -> Tensor:
        """[N] float32: the labels' logits [N] of the model's output, as the label-only LM head would have given them.

        row: [1, V] of the output, the first token's; [0, V] where there is none.

        In half precision the head rounds a logit of 20 by up to 0.06, and the label-only LM head of the pass without
        the image, which multiplies in float32, does not: that would be noise in every delta. What the model does to its
        logits after the head is kept where it scales them all alike; where it bends them (a soft cap) they stay as they
        are.
        """
        logits = logits.float()
        size = min(row.shape[-1], self.row.shape[-1])
        before = torch.cat([self.rounded, self.row[:, :size].flatten()])
        small = before.abs() <= _SMALL * before.abs().amax() if len(before) else before.bool()
        scales = torch.where(small, torch.nan, torch.cat([logits, row[:, :size].flatten().float()]) / before)
        scale = scales.nanmedian()
        bent = ((scales / scale - 1).abs() > _BENT * self.rounding).any()
        return torch.where(bent | scale.isnan(), logits, self.exact * scale)


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
def head_products(model: Any, labels: Tensor) -> Iterator[list[HeadProducts]]:
    """Beside `label_rows`, of the same labels: yields the products of each forward."""
    head = model.get_output_embeddings()
    products: list[HeadProducts] = []

    @torch.no_grad()
    def multiply(module: Any, args: tuple[Tensor, ...], logits: Tensor) -> None:
        label_ids = supervised_ids(labels).to(logits.device)
        rounded = logits[0].gather(1, label_ids[:, None])[:, 0].float()
        products.append(
            HeadProducts(
                rounded=rounded,
                exact=label_products(head, args[0][0], label_ids),
                row=logits[0, :1].float().clone(),
                rounding=torch.finfo(logits.dtype).eps / 2,
            )
        )

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
