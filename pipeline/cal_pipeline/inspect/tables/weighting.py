"""Reads the flags of the weights, and from the data what a map needs of all of them."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from cal_pipeline.inspect.progress import shown_progress
from cal_schemas.cached_scores import resolve_map
from cal_schemas.errors import ConfigError
from cal_schemas.maps import Map
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.presets import PRESETS
from cal_schemas.ragged import ragged_weighting
from cal_schemas.scores import DEFAULT_SCORE, Score, validate_columns

_OF_WEIGHTS = ("score", "map", "alpha", "beta", "window", "pool")
_log = logging.getLogger(__name__)


def score_of(arguments: argparse.Namespace, opened: AnnotatedDataset) -> Score:
    """The score; ConfigError for one that these shards do not hold, or no shards can."""
    score: Score = ragged_weighting(score=arguments.score or DEFAULT_SCORE)["score"]
    validate_columns(opened.schema.names, score, str(opened.files[0].parent))
    return score


def given_weighting(arguments: argparse.Namespace) -> dict[str, Any]:
    """Score, map, alpha, beta, window and pool, as far as flags tell.

    Raises ConfigError for what makes no sense, contradicts the preset, or is known in training only.
    """
    values = {name: getattr(arguments, name, None) for name in _OF_WEIGHTS}
    of_preset = {} if arguments.preset is None else PRESETS[arguments.preset].flags
    for name, wanted in ((name, of_preset[name]) for name in _OF_WEIGHTS if name in of_preset):
        given = values[name]
        same = Map.parse(given).name == Map.parse(wanted).name if given and name == "map" else given == wanted
        if given is not None and not same:
            raise ConfigError(f"--preset {arguments.preset} means --{name} {wanted}, got --{name} {given}")
        values[name] = wanted if given is None else given
    return ragged_weighting(**{name: value for name, value in values.items() if value is not None})


def weighting_of(arguments: argparse.Namespace, opened: AnnotatedDataset) -> dict[str, Any]:
    """The same, complete: keyword arguments of every function that makes weights.

    Reads the scores of all rows where the map needs them, and says what they make of its number.
    """
    weighting = given_weighting(arguments)
    validate_columns(opened.schema.names, weighting["score"], str(opened.files[0].parent))
    if weighting["map"].needs:
        with shown_progress("rows read for --map", opened.num_rows) as advance:
            weighting["map"], origin = resolve_map(weighting["map"], opened, weighting["score"], advance)
        _log.info("--map %s (%s)", weighting["map"], origin)
    return weighting
