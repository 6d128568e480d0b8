"""Makes scores, by default deltas, into weights of tokens. Pure functions; the maps are in `cal_schemas.maps`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cal_schemas.errors import ConfigError
from cal_schemas.maps import Map, weigh
from cal_schemas.spec import IGNORE_INDEX
from cal_schemas.weighting import Pool, check_weighting

__all__ = ["Pool", "check_weighting", "token_weights"]


def token_weights(
    deltas: Tensor,
    labels: Tensor,
    *,
    alpha: float | None = None,
    beta: float | None = None,
    window: int | None = None,
    pool: Pool = "span",
    map: str = "clamp",  # noqa: A002 - as the flag
) -> Tensor:
    """Weight of every token: w_j = mean over the window of clamp(map(s_j), alpha, beta) (CAL, Eq. 4: s the delta).

    Args:
        deltas: [B, T] float32, the scores; entry t belongs to token t; NaN where undefined or unsupervised.
        labels: [B, T] unshifted, IGNORE_INDEX where unsupervised.
        alpha: lower bound, and the weight of a token whose score is undefined; None is the map's default (`clamp`: 1).
        beta: upper bound, may be infinite; None is the map's default (`clamp`: 5).
        window: odd number of tokens averaged, stride 1; at an edge the mean counts the neighbours that exist. None is
            the map's default (`clamp`: 3).
        pool: which tokens are neighbours. `span`: inside a contiguous run of supervised tokens. `joined`: the
            sample's supervised tokens in order, as if nothing stood between them. `released`: the authors' code,
            which averages over the flattened [B * (T - 1)] array, unsupervised tokens and sample borders included;
            there `deltas` must be defined at every t > 0 that something precedes (for unsupervised tokens: the delta
            of token id 0).
        map: as `cal_schemas.maps.Map.parse` reads it: `clamp`, `inverse`, `top_share=0.4`, ….

    Returns [B, T] float32, 0 where unsupervised. A token whose score is undefined weighs exactly alpha and is left out
    of its neighbours' mean. Raises ConfigError for bounds, a window, a pool or a map that make no sense, or undefined
    deltas in `released`.
    """
    rule = Map.parse(map)
    settings = rule.settings(alpha=alpha, beta=beta, window=window)
    check_weighting(**settings, pool=pool, rule=rule)
    supervised = labels != IGNORE_INDEX
    deltas = deltas.float()
    if pool == "released":
        pooled = _released(deltas, deltas.clamp(settings["alpha"], settings["beta"]), settings["window"])
        return torch.where(deltas.isnan(), settings["alpha"], pooled).where(supervised, 0.0)
    if pool == "joined":
        # Supervised tokens to the front, in their order; `order` takes them back.
        order = torch.sort(supervised.int(), dim=1, descending=True, stable=True).indices
        member, scores = supervised.gather(1, order), deltas.gather(1, order)
        run = torch.zeros_like(order)
    else:
        member, scores = supervised, deltas
        run = (member & ~F.pad(member, (1, 0))[:, :-1]).cumsum(1)
    weights: Tensor = weigh(scores, member, run, rule, **settings)
    if pool == "joined":
        weights = torch.zeros_like(weights).scatter(1, order, weights)
    return weights.where(supervised, 0.0)


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
