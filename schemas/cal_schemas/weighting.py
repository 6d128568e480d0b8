"""Checks what turns scores into weights, a choice of whoever trains or looks."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Literal

from cal_schemas.choices import check_choice
from cal_schemas.errors import ConfigError
from cal_schemas.maps import Map

Pool = Literal["span", "joined", "released"]
"""Which tokens are neighbours, see `cal_trainer.objective.weights.token_weights`."""
Normalization = Literal["step", "sample", "micro_batch", "count"]
"""What a weighted sum is divided by, see `cal_trainer.objective.weighting.Weighting`."""


_CLAMP = Map()


def check_weighting(*, alpha: float, beta: float, window: int, pool: Pool = "span", rule: Map = _CLAMP) -> None:
    """ConfigError unless 0 <= alpha <= beta (which may be infinite), window is odd and positive, and pool is a Pool.

    And for a map that these bounds make the same weight of every score.
    """
    check_choice("pool", pool, Pool)
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not isinstance(value, Real):
            raise ConfigError(f"{name} must be a number, got {value!r} (a quantile such as q0.5 is for cal-train)")
    if not isinstance(window, Integral):
        raise ConfigError(f"window must be a whole number of tokens, got {window!r}")
    if not 0.0 <= alpha <= beta or alpha == float("inf"):
        raise ConfigError(f"alpha and beta must satisfy 0 <= alpha <= beta, alpha finite; got {alpha} and {beta}")
    if window < 1 or window % 2 == 0:
        raise ConfigError(f"window must be odd and positive, so that it has a middle; got {window}")
    if pool == "released" and rule.name != "clamp":
        raise ConfigError(f"pool 'released' is the authors' code, whose map is clamp; got map {rule}")
    if rule.definition.stretched and beta == float("inf"):
        raise ConfigError(f"map {rule} rises from alpha to beta, which must be finite")
    if rule.definition.masks and not alpha < 1.0 <= beta:
        raise ConfigError(
            f"map {rule} gives 1 to what it chooses and 0 to the rest, clamped to [alpha, beta]: alpha must be below "
            f"1 and beta 1 or more; got {alpha} and {beta}"
        )
