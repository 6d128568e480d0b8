"""Takes bounds of the clamp, and thresholds of maps, from the data: `--alpha q0.5` is the median of its deltas.

alpha = 1 and beta = 5 were chosen on LLaVA's logits; another family's have another scale, and its quantiles follow it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cal_schemas.delta_counts import DeltaCounts
from cal_schemas.errors import STATUS_OK, ConfigError
from cal_schemas.maps import Map, Quantile
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.ragged import least_of_share, ragged_means, ragged_scores
from cal_schemas.scores import DEFAULT_SCORE, SCORES, Score
from cal_schemas.storage.locations import Location
from cal_schemas.weighting import check_weighting
from cal_trainer.data.dataset import open_measured, validate_columns
from cal_trainer.run.resuming import quantile_name, saved_settings

_HELD, _BITS = 2**22, 22
"""Exact up to 4 million deltas (16 MB), of more to 1 part in 16384 of the value (32 MB)."""
_CLAMP = Map()
_log = logging.getLogger("cal-train")


def scores_of(opened: AnnotatedDataset, score: Score = DEFAULT_SCORE) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Scores [N] float32 and numbers of tokens [R] of the rows with an image that are ok, some at a time.

    A text-only row is one whose deltas are all 0, which they are there by definition; a sidecar holds no images to
    count. Rows that are not ok have none. ConfigError where the shards do not hold what the score reads.
    """
    validate_columns(opened, score)
    names = [name for name in SCORES[score].columns if name != "delta_logits"]
    for batch in opened.batches(columns=["status", "delta_logits", *names]):
        ok = np.asarray(batch.column("status").to_pylist(), object) == STATUS_OK
        # A null element reads as NaN.
        columns = {
            name: np.asarray(batch.column(name).flatten().to_numpy(zero_copy_only=False), np.float32)
            for name in ("delta_logits", *names)
        }
        lengths = np.asarray(batch.column("delta_logits").value_lengths())
        row = np.repeat(np.arange(len(lengths)), lengths)
        moved = np.nan_to_num(columns["delta_logits"]) != 0
        wanted = ok & (np.bincount(row, weights=moved, minlength=len(lengths)) > 0)
        yield ragged_scores(score, columns, lengths)[wanted[row]], lengths[wanted]


def quantiles_of(opened: AnnotatedDataset, score: Score = DEFAULT_SCORE) -> DeltaCounts:
    """Counts all defined scores of the rows with an image, in one pass over the columns that it reads.

    Counts are whole numbers, so every process that reads the same deltas, in whatever order, gets the same answer.
    """
    counts = DeltaCounts(held=_HELD, bits=_BITS)
    for scores, _ in scores_of(opened, score):
        counts.add(scores)
    return counts


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
            origin = f"of {counts.defined} deltas of rows with images"
        said = ", ".join(f"--{name} {quantiles[name]} is {value:.6g}" for name, value in recorded.items())
        _log.info("%s (%s)", said, origin)
    if rule.needs and resumed is not None:
        rule = resumed
        _log.info("--map %s (recorded in %s)", rule, resume)
    elif isinstance(rule.parameter, Quantile) and rule.needs:
        counts = quantiles_of(opened, score)
        _validate_defined(counts, data_path, "give a number")
        rule = replace(rule, threshold=counts.quantile(rule.parameter.share))
        _log.info("--map %s (of %d scores of rows with images)", rule, counts.defined)
    elif rule.needs:
        means = np.concatenate([np.empty(0, np.float32), *(ragged_means(*some) for some in scores_of(opened, score))])
        rule = replace(rule, threshold=least_of_share(means, float(rule.parameter)))  # type: ignore[arg-type]
        _log.info("--map %s (of %d rows with images)", rule, len(means))
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
