"""Defines the maps of scores to weights: each an equation, written once for numpy and torch. Pure.

B samples, L places, some of which are tokens of the sample. A score is NaN where it is undefined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from array_api_compat import array_namespace

from cal_schemas.scores import Score, within_sample

Array = Any
"""Of numpy or torch."""
MapName = Literal[
    "clamp",
    "inverse",
    "linear",
    "softmax",
    "threshold",
    "top_share",
    "batch_share",
    "top_samples",
    "vig",
    "pgpo",
    "focal",
]
_MILLION: Final = 10**6


@dataclass(frozen=True, kw_only=True, slots=True)
class MapDefinition:
    """What a map does before the clamp."""

    equation: str
    compute: Callable[[Array, Array, float], Array]
    """Of scores [B, L], where they are defined, and the number: the parameter, or what the data make of it."""
    parameter: str = ""
    """Name of its number; empty where it has none."""
    valid: tuple[float, float] = (-math.inf, math.inf)
    """What the number lies between."""
    of_data: Literal["", "tokens", "samples"] = ""
    """Of what all data must be read first: the number is a quantile of scores, or the share of samples kept."""
    stretched: bool = False
    """True when its 0 to 1 becomes alpha to beta, which must be finite."""
    masks: bool = False
    """True when it gives 1 to what it chooses, and 0."""
    scores: tuple[Score, ...] = ()
    """Those that its equation is of; any where empty."""
    of_batch: bool = False
    """True when a weight depends on which samples share a micro-batch."""
    bounds: tuple[float, float] = (1.0, 5.0)
    """Alpha and beta where nobody says."""
    window: int = 3
    """Tokens averaged where nobody says."""


def sample_means(scores: Array, defined: Array) -> Array:
    """[B, 1]: mean of the defined scores [B, L] of each sample; NaN where it has none."""
    xp = array_namespace(scores)
    count = _count(scores, defined)
    total = xp.sum(xp.where(defined, scores, 0.0), axis=1, keepdims=True)
    return xp.where(count > 0, total / xp.clip(count, 1.0, None), math.nan)


def _count(scores: Array, defined: Array) -> Array:
    xp = array_namespace(scores)
    return xp.sum(xp.astype(defined, scores.dtype), axis=1, keepdims=True)


def _mask(chosen: Array, like: Array) -> Array:
    return array_namespace(like).astype(chosen, like.dtype)


def _top_share(scores: Array, defined: Array, share: float) -> Array:
    xp = array_namespace(scores)
    count = xp.sum(xp.astype(defined, xp.int64), axis=1, keepdims=True)
    # In whole numbers, since 0.1 * 30 is more than 3 in floating point.
    chosen = (count * round(share * _MILLION) + _MILLION - 1) // _MILLION
    ranked = xp.sort(xp.where(defined, scores, -math.inf), axis=1, descending=True)
    return _mask(scores >= xp.take_along_axis(ranked, xp.clip(chosen - 1, 0, None), axis=1), scores)


def _batch_share(scores: Array, defined: Array, share: float) -> Array:
    xp = array_namespace(scores)
    together = _top_share(xp.reshape(scores, (1, -1)), xp.reshape(defined, (1, -1)), share)
    return xp.reshape(together, scores.shape)


def _top_samples(scores: Array, defined: Array, least: float) -> Array:
    return _mask((sample_means(scores, defined) >= least) & defined, scores)


def _vig(scores: Array, defined: Array, least: float) -> Array:
    xp = array_namespace(scores)
    text = ~xp.any(defined & (scores != 0), axis=1, keepdims=True)
    return _mask(text | ((sample_means(scores, defined) >= least) & (scores >= least)), scores)


def _softmax(scores: Array, defined: Array, temperature: float) -> Array:
    xp = array_namespace(scores)
    largest = xp.max(xp.where(defined, scores, -math.inf), axis=1, keepdims=True)
    terms = xp.where(defined, xp.exp((scores - largest) / temperature), 0.0)
    return terms * _count(scores, defined) / xp.clip(xp.sum(terms, axis=1, keepdims=True), 1e-30, None)


def _pgpo(scores: Array, defined: Array, threshold: float) -> Array:
    xp = array_namespace(scores)
    within = within_sample(xp.log1p(scores), defined)
    gate = xp.where(within < threshold, within / threshold, 1.0 + _PGPO_GAIN * (within - threshold) / (1.0 - threshold))
    total = xp.sum(xp.where(defined, gate, 0.0), axis=1, keepdims=True)
    # Where all are equal, all are 0. What is no number stays none.
    return xp.where(total == 0, 1.0, gate * _count(scores, defined) / xp.where(total == 0, 1.0, total))


def _focal(scores: Array, _: Array, gamma: float) -> Array:
    xp = array_namespace(scores)
    wrong = -xp.expm1(-scores)
    # Where wrong is 0 so is the loss, and a power below 0 is infinite.
    rest = xp.where(wrong > 0, wrong, 1.0) ** (gamma - 1.0)
    return wrong**gamma + gamma * (1.0 - wrong) * scores * rest


_PGPO_GAIN: Final = 2.0
_SHARE: Final = (0.0, 1.0)
_OPEN: Final = (0.0, math.inf)
MAPS: Final[Mapping[MapName, MapDefinition]] = {
    "clamp": MapDefinition(equation="s", compute=lambda scores, _, __: scores),
    "inverse": MapDefinition(equation="-s", compute=lambda scores, _, __: -scores),
    "linear": MapDefinition(
        equation="s^, stretched from alpha to beta", compute=lambda scores, defined, _: within_sample(scores, defined),
        stretched=True,
    ),
    "softmax": MapDefinition(
        equation="n exp(s / T) / sum exp(s / T), n the sample's tokens", compute=_softmax, parameter="T",
        valid=_OPEN, bounds=_OPEN, window=1,
    ),
    "threshold": MapDefinition(
        equation="1 where s >= x", compute=lambda scores, _, least: _mask(scores >= least, scores), parameter="x",
        of_data="tokens", masks=True, bounds=_SHARE, window=1,
    ),
    "top_share": MapDefinition(
        equation="1 for the ceil(q n) largest s of the sample", compute=_top_share, parameter="q", valid=_SHARE,
        masks=True, bounds=_SHARE, window=1,
    ),
    "batch_share": MapDefinition(
        equation="1 for the ceil(q n) largest s of the micro-batch", compute=_batch_share, parameter="q", valid=_SHARE,
        masks=True, of_batch=True, bounds=_SHARE, window=1,
    ),
    "top_samples": MapDefinition(
        equation="1 where the sample's mean s is among the share q that is largest", compute=_top_samples,
        parameter="q", valid=_SHARE, of_data="samples", masks=True, bounds=_SHARE, window=1,
    ),
    "vig": MapDefinition(
        equation="1 where the sample's mean s and s itself are at least x, which the share q of the means is; 1 "
        "without an image",
        compute=_vig, parameter="q", valid=_SHARE, of_data="samples", masks=True, bounds=_SHARE, window=1,
        scores=("delta_logprob", "delta_logit"),
    ),
    "pgpo": MapDefinition(
        equation="n w / sum w, w = I / t where I < t, else 1 + 2 (I - t) / (1 - t); I = ln(1 + s)^; 1 where all s are "
        "equal",
        compute=_pgpo, parameter="t", valid=_SHARE, bounds=_OPEN, window=1, scores=("kl", "kl_reverse", "js"),
    ),
    "focal": MapDefinition(
        equation="(1 - p)^g + g p s (1 - p)^(g - 1), p = exp(-s): the derivative of (1 - p)^g s", compute=_focal,
        parameter="g", valid=_OPEN, bounds=_OPEN, window=1, scores=("nll",),
    ),
}  # fmt: skip
"""Each before the clamp, else 0. x^ = (x - min x) / (max x - min x); sums, means and extremes are over the sample."""
