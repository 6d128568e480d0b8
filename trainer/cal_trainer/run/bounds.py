"""Takes bounds of the clamp from the data: `--alpha q0.5` is the median of its deltas.

alpha = 1 and beta = 5 were chosen on LLaVA's logits; another family's have another scale, and its quantiles follow it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from cal_schemas.delta_counts import DeltaCounts
from cal_schemas.errors import STATUS_OK, ConfigError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.storage.locations import Location
from cal_schemas.weighting import check_weighting
from cal_trainer.config import Quantile
from cal_trainer.data.dataset import open_measured
from cal_trainer.run.resuming import quantile_name, saved_settings

_HELD, _BITS = 2**22, 22
"""Exact up to 4 million deltas (16 MB), of more to 1 part in 16384 of the value (32 MB)."""
_log = logging.getLogger("cal-train")


def quantiles_of(opened: AnnotatedDataset) -> DeltaCounts:
    """Counts all defined deltas of the rows with an image, in one pass over two columns of the shards.

    Counts are whole numbers, so every process that reads the same deltas, in whatever order, gets the same answer.

    A text-only row is one whose deltas are all 0, which they are there by definition; a sidecar holds no images to
    count. Rows that are not ok have none.
    """
    counts = DeltaCounts(held=_HELD, bits=_BITS)
    for batch in opened.batches(columns=["status", "delta_logits"]):
        counts.add(_deltas_with_image(batch))
    return counts


def _deltas_with_image(batch: pa.RecordBatch) -> np.ndarray:
    column = batch.column(batch.schema.get_field_index("delta_logits"))
    ok = np.asarray(batch.column(batch.schema.get_field_index("status")).to_pylist(), object) == STATUS_OK
    # A null element reads as NaN.
    values = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32)
    lengths = np.asarray(column.value_lengths())
    row = np.repeat(np.arange(len(lengths)), lengths)
    defined = ~np.isnan(values)
    row, values = row[defined], values[defined]
    shown = np.bincount(row, weights=values != 0, minlength=len(lengths)) > 0
    of_images: np.ndarray = values[(shown & ok)[row]]
    return of_images


def resolve_bounds(
    wanted: Mapping[str, float | Quantile],
    data_path: Sequence[Location],
    resume: Path | None,
    *,
    crossfit: bool = False,
    partial: bool = False,
) -> dict[str, float]:
    """Numbers for alpha and beta; logs those that come from the data.

    A resumed run takes those that its checkpoint recorded. Raises ConfigError when the data has no deltas to speak of,
    or the numbers make no bounds.
    """
    quantiles = {name: bound for name, bound in wanted.items() if isinstance(bound, Quantile)}
    numbers = {name: bound for name, bound in wanted.items() if not isinstance(bound, Quantile)}
    if not quantiles:
        return numbers
    recorded = {} if resume is None else _recorded(resume, quantiles)
    if recorded:
        origin = f"recorded in {resume}"
    else:
        counts = quantiles_of(open_measured(list(data_path), crossfit=crossfit, partial=partial))
        if not counts.defined:
            paths = ", ".join(map(str, data_path))
            raise ConfigError(
                f"{paths} has no defined delta of a row with an image: give --alpha and --beta as numbers"
            )
        recorded = {name: counts.quantile(bound.share) for name, bound in quantiles.items()}
        origin = f"of {counts.defined} deltas of rows with images"
    said = ", ".join(f"--{name} {quantiles[name]} is {value:.6g}" for name, value in recorded.items())
    _log.info("%s (%s)", said, origin)
    bounds = {name: recorded.get(name, numbers.get(name, float("nan"))) for name in wanted}
    try:
        check_weighting(alpha=bounds["alpha"], beta=bounds["beta"], window=1)
    except ConfigError as error:
        negative = "; weights may not be negative: take a higher quantile, or a number" if bounds["alpha"] < 0 else ""
        raise ConfigError(f"{said} {origin}: {error}{negative}") from error
    return bounds


def _recorded(checkpoint: Path, quantiles: Mapping[str, Quantile]) -> dict[str, float]:
    """Values in a checkpoint for these very quantiles; empty when it has none: the check of its state says why."""
    settings = saved_settings(checkpoint)
    if any(settings.get(quantile_name(name)) != str(bound) for name, bound in quantiles.items()):
        return {}
    return {name: float(settings[f"--{name}"]) for name in quantiles}
