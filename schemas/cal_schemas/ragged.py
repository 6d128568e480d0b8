"""Computes scores and weights of many samples whose tokens stand one after the other, by the same maps as training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from cal_schemas.choices import check_choice
from cal_schemas.errors import ConfigError
from cal_schemas.map_definitions import sample_means
from cal_schemas.maps import Map, check_score, weigh
from cal_schemas.scores import DEFAULT_SCORE, SCORES, Score
from cal_schemas.weighting import Pool, check_weighting

_PLACES = 2**20
"""Of a block of samples, padded to the longest of them."""


def ragged_weighting(
    *,
    score: Score = DEFAULT_SCORE,
    map: Map | str = "clamp",  # noqa: A002 - as the flag
    alpha: float | None = None,
    beta: float | None = None,
    window: int | None = None,
    pool: Pool = "span",
) -> dict[str, Any]:
    """The same arguments, the map parsed and what is left out its defaults, of whatever weighs cached scores.

    Raises ConfigError for those that make no sense, and for what only training knows.
    """
    check_choice("score", score, Score)
    _check_cached(score)
    rule = Map.parse(map) if isinstance(map, str) else map
    _check_known(rule)
    check_score(score, rule)
    settings = rule.settings(alpha=alpha, beta=beta, window=window)
    check_weighting(**settings, pool=pool, rule=rule)
    if pool == "released":
        raise ConfigError("pool 'released' reads deltas of unsupervised tokens too, which no cache holds")
    return {"score": score, "map": rule, **settings, "pool": pool}


def _check_cached(score: Score) -> None:
    definition = SCORES[score]
    if definition.of_training:
        raise ConfigError(f"score {score} = {definition.equation} needs the model in training: no column holds it")


def _check_known(rule: Map) -> None:
    if rule.definition.of_batch:
        raise ConfigError(f"map {rule} is of the samples of a micro-batch, which are known in training only")


def ragged_scores(score: Score, columns: Mapping[str, np.ndarray], lengths: np.ndarray) -> np.ndarray:
    """[N] float32: a score of cached columns [N] float32, of R samples with `lengths` [R] tokens.

    Raises ConfigError for one in which the model in training has a part.
    """
    _check_cached(score)
    definition = SCORES[score]
    given = [columns[name] for name in definition.columns]

    def of_block(_: np.ndarray, *padded: np.ndarray) -> np.ndarray:
        return np.asarray(definition.compute(dict(zip(definition.columns, padded, strict=True))))

    return _by_block(of_block, lengths, *given)


def ragged_weights(
    scores: np.ndarray, lengths: np.ndarray, run: np.ndarray, rule: Map, *, alpha: float, beta: float, window: int
) -> np.ndarray:
    """[N] float32: weights of scores [N]; tokens of a sample with the same `run` [N] are neighbours (`maps.weigh`).

    Raises ConfigError for a map that depends on which samples share a micro-batch, or on all data, unread.
    """
    _check_known(rule)
    _ = rule.number

    def of_block(filled: np.ndarray, padded: np.ndarray, runs: np.ndarray) -> np.ndarray:
        return np.asarray(weigh(padded, filled, runs, rule, alpha=alpha, beta=beta, window=window))

    return _by_block(of_block, lengths, scores, run.astype(np.float64))


def ragged_means(scores: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[R] float32: the mean score of each sample, NaN where none is defined: what `top_samples` and `vig` compare."""
    means = [sample_means(padded, ~np.isnan(padded))[:, 0] for _, _, (padded,) in _blocks(lengths, scores)]
    return np.concatenate([np.empty(0, np.float32), *means])


def least_of_share(means: np.ndarray, share: float) -> float:
    """What max(1, floor(share R)) of the means [R] are at least: midway between the last of them and the next.

    Midway, or a little below the last of them where the next is as large, so that rounding puts none on the other side.
    Raises ConfigError where none is defined.
    """
    ranked = np.sort(means[~np.isnan(means)].astype(np.float64))[::-1]
    if not len(ranked):
        raise ConfigError("no sample with an image has a defined score")
    kept = max(1, int(share * len(ranked) + 1e-9))
    following = ranked[kept] if kept < len(ranked) else ranked[-1] - 1.0
    last = ranked[kept - 1]
    return float(min((last + following) / 2, last - 1e-6 * max(1.0, abs(last))))


def _by_block(of_block: Callable[..., np.ndarray], lengths: np.ndarray, *flat: np.ndarray) -> np.ndarray:
    found = np.empty(len(flat[0]), np.float32)
    for tokens, filled, padded in _blocks(lengths, *flat):
        found[tokens] = of_block(filled, *padded)[filled]
    return found


def _blocks(lengths: np.ndarray, *flat: np.ndarray) -> Iterator[tuple[slice, np.ndarray, list[np.ndarray]]]:
    """Of some samples at a time: which tokens they have, which places those fill [r, L], and each array there."""
    starts = np.append(0, np.cumsum(lengths))
    first = 0
    while first < len(lengths):
        longest = np.maximum.accumulate(lengths[first:])
        places = longest * np.arange(1, len(longest) + 1)
        last = first + max(1, int(np.searchsorted(places, _PLACES, side="right")))
        own = lengths[first:last]
        filled = np.arange(max(1, int(own.max()))) < own[:, None]
        tokens = slice(int(starts[first]), int(starts[last]))
        padded = []
        for values in flat:
            array = np.full(filled.shape, np.nan, values.dtype)
            array[filled] = values[tokens]
            padded.append(array)
        yield tokens, filled, padded
        first = last
