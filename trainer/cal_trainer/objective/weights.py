"""Makes deltas into token weights: clamps, then averages over neighbouring supervised tokens. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cal_schemas.errors import ConfigError
from cal_schemas.spec import IGNORE_INDEX
from cal_schemas.weighting import Pool, check_weighting

__all__ = ["Pool", "check_weighting", "token_weights"]


def token_weights(
    deltas: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 5.0,
    window: int = 3,
    pool: Pool = "span",
) -> Tensor:
    """Weight of every token: w_j = mean over the window of clamp(delta, alpha, beta) (CAL, Eq. 4).

    Args:
        deltas: [B, T] float32 in logits, entry t belongs to token t; NaN where undefined or unsupervised.
        labels: [B, T] unshifted, IGNORE_INDEX where unsupervised.
        alpha: lower bound, and the weight of a token whose delta is undefined.
        beta: upper bound, may be infinite.
        window: odd number of tokens averaged, stride 1; at an edge the mean counts the neighbours that exist.
        pool: which tokens are neighbours. `span`: inside a contiguous run of supervised tokens. `joined`: the
            sample's supervised tokens in order, as if nothing stood between them. `released`: the authors' code,
            which averages over the flattened [B * (T - 1)] array, unsupervised tokens and sample borders included;
            there `deltas` must be defined at every t > 0 that something precedes (for unsupervised tokens: the delta
            of token id 0).

    Returns [B, T] float32, 0 where unsupervised. An undefined delta weighs exactly alpha and is left out of its
    neighbours' mean. Raises ConfigError for bounds, a window or a pool that make no sense, or undefined deltas in
    `released`.
    """
    check_weighting(alpha=alpha, beta=beta, window=window, pool=pool)
    supervised = labels != IGNORE_INDEX
    clamped = deltas.float().clamp(alpha, beta)
    if pool == "released":
        return torch.where(deltas.isnan(), alpha, _released(deltas, clamped, window)).where(supervised, 0.0)
    order = None
    if pool == "joined":
        # Supervised tokens to the front, in their order; `order` takes them back.
        order = torch.sort(supervised.int(), dim=1, descending=True, stable=True).indices
        clamped, run = clamped.gather(1, order), supervised.gather(1, order)
    else:
        run = supervised
    pooled = _mean_within_runs(clamped, run, window)
    if order is not None:
        pooled = torch.zeros_like(pooled).scatter(1, order, pooled)
    return torch.where(deltas.isnan(), alpha, pooled).where(supervised, 0.0)


def _mean_within_runs(values: Tensor, member: Tensor, window: int) -> Tensor:
    """[B, T]: mean of the defined values within the window and the same contiguous run of members; any for others."""
    starts = member & ~F.pad(member, (1, 0))[:, :-1]
    run = starts.cumsum(1)
    defined = member & ~values.isnan()
    values = values.where(defined, 0.0)
    total, count = torch.zeros_like(values), torch.zeros_like(values)
    length = values.shape[1]
    half = window // 2
    for shift in range(-min(half, length - 1), min(half, length - 1) + 1):
        neighbour = torch.arange(length, device=values.device) + shift
        inside = (neighbour >= 0) & (neighbour < length)
        neighbour = neighbour.clamp(0, length - 1)
        counted = (inside & defined[:, neighbour] & (run[:, neighbour] == run)).to(values.dtype)
        total += values[:, neighbour] * counted
        count += counted
    return total / count.clamp(min=1.0)


def _released(deltas: Tensor, clamped: Tensor, window: int) -> Tensor:
    """Like the authors' average over the flattened array; what has no delta stays out of it."""
    shifted, undefined = clamped[:, 1:], deltas[:, 1:].isnan()
    # Nothing precedes a row's first tokens: an image without a BOS, and what follows it. A hole later on is a cache's.
    if bool((undefined[:, 1:] & ~undefined[:, :-1]).any()):
        raise ConfigError("pool 'released' averages over unsupervised tokens too and needs a delta for each of them")

    def mean(values: Tensor) -> Tensor:
        flat = values.reshape(1, 1, -1)
        return F.avg_pool1d(flat, window, stride=1, padding=window // 2, count_include_pad=False).view_as(values)

    total, share = mean(shifted.where(~undefined, 0.0)), mean((~undefined).to(shifted.dtype))
    return F.pad(total / share.where(share > 0, 1.0), (1, 0))
