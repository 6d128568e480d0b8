"""Takes bounds of the clamp, and thresholds of maps, from the data: `--alpha q0.5` is the median of its deltas.

alpha = 1 and beta = 5 were chosen on LLaVA's logits; another family's have another scale, and its quantiles follow it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cal_schemas.cached_scores import quantiles_of, resolve_map
from cal_schemas.delta_counts import DeltaCounts
from cal_schemas.errors import ConfigError
from cal_schemas.maps import Map, Quantile
from cal_schemas.scores import DEFAULT_SCORE, Score
from cal_schemas.storage.locations import Location
from cal_schemas.weighting import check_weighting
from cal_trainer.data.dataset import open_measured
from cal_trainer.run.resuming import quantile_name, saved_settings

_CLAMP = Map()
_log = logging.getLogger("cal-train")


def resolve_bounds(
    wanted: Mapping[str, float | Quantile],
    data_path: Sequence[Location],
    resume: Path | None,
    *,
    rule: Map = _CLAMP,
    score: Score = DEFAULT_SCORE,
    crossfit: bool = False,
    partial: bool = False,
) -> tuple[dict[str, float], Map]:
    """Numbers for alpha, beta and the map; logs those that come from the data.

    A resumed run takes those that its checkpoint recorded. Raises ConfigError when the data has no scores to speak of,
    or the numbers make no bounds.
    """
    quantiles = {name: bound for name, bound in wanted.items() if isinstance(bound, Quantile)}
    numbers = {name: bound for name, bound in wanted.items() if not isinstance(bound, Quantile)}
    recorded = {} if resume is None or not quantiles else _recorded(resume, quantiles)
    resumed = None if resume is None else _recorded_map(resume, rule)
    if (quantiles and not recorded) or (rule.needs and resumed is None):
        opened = open_measured(list(data_path), crossfit=crossfit, partial=partial)
    if quantiles:
        if recorded:
            origin = f"recorded in {resume}"
        else:
            counts = quantiles_of(opened, score)
            _validate_defined(counts, data_path, "give --alpha and --beta as numbers")
            recorded = {name: counts.quantile(bound.share) for name, bound in quantiles.items()}
            what = "deltas" if score == DEFAULT_SCORE else f"scores ({score})"
            origin = f"of {counts.defined} {what} of rows with images"
        said = ", ".join(f"--{name} {quantiles[name]} is {value:.6g}" for name, value in recorded.items())
        _log.info("%s (%s)", said, origin)
    if rule.needs and resumed is not None:
        rule = resumed
        _log.info("--map %s (recorded in %s)", rule, resume)
    elif rule.needs:
        rule, origin = resolve_map(rule, opened, score)
        _log.info("--map %s (%s)", rule, origin)
    bounds = {name: recorded.get(name, numbers.get(name, float("nan"))) for name in wanted}
    if not quantiles:
        return numbers, rule
    try:
        check_weighting(alpha=bounds["alpha"], beta=bounds["beta"], window=1)
    except ConfigError as error:
        negative = "; weights may not be negative: take a higher quantile, or a number" if bounds["alpha"] < 0 else ""
        raise ConfigError(f"{said} {origin}: {error}{negative}") from error
    return bounds, rule


def _validate_defined(counts: DeltaCounts, data_path: Sequence[Location], way_out: str) -> None:
    if not counts.defined:
        raise ConfigError(f"{', '.join(map(str, data_path))} has no defined delta of a row with an image: {way_out}")


def _recorded_map(checkpoint: Path, rule: Map) -> Map | None:
    """The same map with what the data made of it; None where the checkpoint has another, or none."""
    recorded = saved_settings(checkpoint).get("--map")
    if recorded is None or replace(found := Map.parse(recorded), threshold=None) != rule:
        return None
    return found


def _recorded(checkpoint: Path, quantiles: Mapping[str, Quantile]) -> dict[str, float]:
    """Values in a checkpoint for these very quantiles; empty when it has none: the check of its state says why."""
    settings = saved_settings(checkpoint)
    if any(settings.get(quantile_name(name)) != str(bound) for name, bound in quantiles.items()):
        return {}
    return {name: float(settings[f"--{name}"]) for name in quantiles}
