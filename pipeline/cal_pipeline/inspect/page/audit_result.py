"""Finds what an audit of the shards said, and puts its swap control in words."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from cal_pipeline.inspect.tables.statistics import FEW_SAMPLES, FIT_AUC
from cal_schemas.counted import counted
from cal_schemas.errors import ConfigError
from cal_schemas.storage.locations import Location

AUDIT_NAME = "audit.json"
"""In the `.cal` of a directory: what `cal-inspect audit` found there last."""
_FIGURES = ("samples", "auc", "win_share", "mean_own", "mean_other")
_log = logging.getLogger(__name__)


def kept_audit(annotated: Sequence[Location]) -> Location | None:
    """Where the result of an audit of these is kept; None where they are several, or a shard alone."""
    (one, *others) = annotated
    return one / ".cal" / AUDIT_NAME if not others and one.is_dir() else None


def find_audit(annotated: Sequence[Location], fingerprint: str, given: Location | None) -> dict[str, Any] | None:
    """The figures of the file that is `given`, or else of `kept_audit`; None where no audit was run.

    Raises ConfigError for a given file that cannot be read or is of another measurement; of a kept one it is said.
    """
    file = given or kept_audit(annotated)
    if file is None or (given is None and not file.is_file()):
        return None
    try:
        figures = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(figures, dict) or "swap" not in figures:
            raise ValueError("no figures of cal-inspect audit")
        swap = figures["swap"]
        if swap is not None and not all(isinstance(swap[name], int | float) for name in _FIGURES):
            raise ValueError("its swap control is no figures of cal-inspect audit")
        if (of := figures.get("fingerprint")) != fingerprint:
            raise ValueError(f"it is of the measurement {of}, these shards are of {fingerprint}; run the audit again")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if given is None:
            _log.warning("%s is left out: %s", file, error)
            return None
        raise ConfigError(f"--audit {file}: {error}") from error
    return figures


def swap_words(figures: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`{"fit": bool, "lines"}` of the swap control, and of whether the cache agrees; None without an audit."""
    if figures is None:
        return None
    swap, lines = figures["swap"], []
    if swap is None:
        lines.append("The audit ran without the swap control (--swap 0).")
    else:
        lines.append(
            f"AUC {swap['auc']:.3f}: the chance that a random sample with its own image has a higher mean delta than a "
            "random one with another sample's image (1: always; 0.5: the reference does not look)."
        )
        lines.append(
            f"The same sample is higher with its own image in {swap['win_share']:.1%} of {swap['samples']:,}: mean "
            f"delta {swap['mean_own']:.2f} with its own, {swap['mean_other']:.2f} with another's."
        )
        if swap["samples"] < FEW_SAMPLES:
            lines.append(f"{swap['samples']} samples give a rough figure only; some hundred are better.")
        if swap["auc"] < FIT_AUC:
            lines.append(f"Under {FIT_AUC}: this reference hardly tells the right image from a wrong one on this data.")
    rows = figures.get("rows")
    agrees = "agrees with" if figures.get("passed") else "DOES NOT AGREE with"
    compared = counted(rows, "row") if isinstance(rows, int) else f"{rows} rows"
    lines.append(f"The cache {agrees} what is measured now ({compared}; cal-inspect audit has the details).")
    return {"fit": bool(figures.get("passed")) and (swap is None or swap["auc"] >= FIT_AUC), "lines": lines}
