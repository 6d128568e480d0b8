"""Checks what turns deltas into weights, a choice of whoever trains or looks."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Literal

from cal_schemas.choices import check_choice
from cal_schemas.errors import ConfigError

Pool = Literal["span", "joined", "released"]
"""Which tokens are neighbours, see `cal_trainer.objective.weights.token_weights`."""


def check_weighting(*, alpha: float, beta: float, window: int, pool: Pool = "span") -> None:
    """ConfigError unless 0 <= alpha <= beta (which may be infinite), window is odd and positive, and pool is a Pool."""
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
