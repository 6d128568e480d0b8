"""Reports what an audit found, to people and to programs."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from typing import Any

from cal_pipeline.inspect.flags import say
from cal_pipeline.inspect.tables.statistics import FEW_SAMPLES, FIT_AUC
from cal_pipeline.inspect.with_model.audit import AuditReport, SwapReport
from cal_pipeline.models.precision import EXACT_TOLERANCE
from cal_schemas.counted import are, counted

_SHOWN = 10


def print_audit(report: AuditReport) -> None:
    """Differences of the specs, figures over all tokens, the worst rows, the verdict."""
    found = figures(report, None)
    for name, stored, now in report.spec_differences:
        say(f"DIFFERS  {name}: the cache was made with {stored!r}, here it is {now!r}")
    if found["tokens"]:
        precision = report.precision
        tolerance = (
            f"{EXACT_TOLERANCE:g} on the max of a row"
            if precision.exact
            else f"{precision.share():.1%} of a row's logits on the rms of the row"
        )
        say(
            f"{counted(found['tokens'], 'delta')} of "
            f"{counted(sum(item.num_tokens > 0 for item in report.comparisons), 'row')} compared: "
            f"largest difference {found['max_difference']:.2g}, rms {found['rms_difference']:.2g} logits "
            f"(tolerance: {tolerance}, for {precision.name})"
        )
    bad = sorted(
        (item for item in report.comparisons if item.verdict != "agrees"),
        key=lambda item: (item.verdict, -item.max_difference),
    )
    for item in bad[:_SHOWN]:
        say(f"DIFFERS  row {item.number} ({item.sample_id}): {item.verdict}: {item.reason}")
    if len(bad) > _SHOWN:
        kinds = Counter(item.verdict for item in bad)
        say(f"         and so on: {', '.join(f'{count} {verdict}' for verdict, count in kinds.most_common())}")
    rows = len(report.comparisons)
    if report.passed:
        say(f"The cache agrees: {rows:,} of {counted(rows, 'row')} {are(rows)} what is measured now.")
    elif bad:
        say(f"THE CACHE DOES NOT AGREE: {len(bad)} of {rows} rows differ.")
    else:
        say(f"THE CACHE DOES NOT AGREE: it was made with something else, though {rows} rows come out the same.")


def print_swap(report: SwapReport) -> None:
    """Means, AUC and wins, with the warnings that belong to them."""
    count = len(report.own)
    if not count:
        say(f"Swap control: none of {counted(report.skipped, 'sample')} could be measured with another's image")
        return
    say(
        f"  mean delta {report.own.mean():.3f} logits with the own image, {report.other.mean():.3f} with another's"
        + (f" ({counted(report.skipped, 'sample')} skipped: not measurable with both)" if report.skipped else "")
    )
    say(f"  AUC  {report.auc:.3f}  a random sample with its own image is above a random one with another's")
    say(f"  wins {report.win_share:.3f}  the same sample is higher with its own image than with another's")
    if report.auc < FIT_AUC:
        say(
            f"WARNING: a swap control under {FIT_AUC} says that this reference hardly tells the right image from a "
            "wrong one on this data: its deltas are mostly noise here. Is it trained for such images and texts, and "
            "are --template and --image_aspect_ratio those it was trained with?"
        )
    if count < FEW_SAMPLES:
        say(f"WARNING: {counted(count, 'sample')} can give a rough figure only; some hundred are better")


def figures(report: AuditReport, swap: SwapReport | None) -> dict[str, Any]:
    """Plain values for JSON; null where there is nothing to say."""
    tokens = sum(item.num_tokens for item in report.comparisons)
    return {
        "passed": report.passed,
        "dtype": report.dtype,
        "precision": report.precision.name,
        "spec_differences": [
            {"field": name, "stored": stored, "now": now} for name, stored, now in report.spec_differences
        ],
        "rows": len(report.comparisons),
        "tokens": tokens,
        "max_difference": max(item.max_difference for item in report.comparisons) if tokens else None,
        "rms_difference": math.sqrt(sum(item.squared for item in report.comparisons) / tokens) if tokens else None,
        "verdicts": dict(Counter(item.verdict for item in report.comparisons)),
        "differing": [asdict(item) for item in report.comparisons if item.verdict != "agrees"],
        "swap": None
        if swap is None or not len(swap.own)
        else {
            "samples": len(swap.own),
            "skipped": swap.skipped,
            "auc": swap.auc,
            "win_share": swap.win_share,
            "mean_own": float(swap.own.mean()),
            "mean_other": float(swap.other.mean()),
        },
    }
