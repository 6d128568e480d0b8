"""Compares stored deltas with deltas measured again, and deltas of own images with those of other samples' images.

The first says whether a cache is what its reference would measure today; the second, which needs no truth, whether the
reference is fit for the data: the same words are measured beside another sample's image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from cal_pipeline.inspect.tables.statistics import auc
from cal_pipeline.models.precision import FLOAT32, Precision
from cal_pipeline.output.row_reader import NumberedRow
from cal_schemas.annotated import MeasuredSample
from cal_schemas.errors import SampleError

Verdict = Literal["agrees", "deltas", "labels", "sample", "unmeasurable"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One row, stored against measured again."""

    number: int
    sample_id: str
    verdict: Verdict
    reason: str = ""
    num_tokens: int = 0
    """With a defined delta on both sides."""
    max_difference: float = 0.0
    """In logits."""
    squared: float = 0.0
    """Sum of squared differences."""


@dataclass(kw_only=True, slots=True)
class AuditReport:
    """Everything the comparison found."""

    dtype: str
    spec_differences: list[tuple[str, object, object]]
    """(dotted field, stored, today's): other weights, another tokenizer, template or image processor."""
    precision: Precision = FLOAT32
    """In which the rows were measured again."""
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the cache is what would be measured today."""
        return not self.spec_differences and all(item.verdict == "agrees" for item in self.comparisons)


@dataclass(frozen=True, kw_only=True, slots=True)
class SwapReport:
    """Mean delta of N samples with their own image against another sample's."""

    own: np.ndarray
    """[N] float64 in logits: mean delta of the sample's supervised tokens, its own image(s)."""
    other: np.ndarray
    """[N] float64: the same words, the image(s) of another sample."""
    skipped: int
    """Drawn, but not measurable with the other image (too long, say)."""

    @property
    def auc(self) -> float:
        """Chance that a random sample with its own image is above a random one with another's; ties count half."""
        return auc(self.own, self.other)

    @property
    def win_share(self) -> float:
        """Share of samples whose mean delta is higher with their own image; ties count half."""
        return float(np.mean((self.own > self.other) + 0.5 * (self.own == self.other)))


def compare(row: NumberedRow, again: MeasuredSample | SampleError, precision: Precision) -> Comparison:
    """A stored row against what was measured now, with this precision."""

    def outcome(verdict: Verdict, reason: str = "", **sizes: Any) -> Comparison:
        return Comparison(number=row.number, sample_id=row.sample.sample_id, verdict=verdict, reason=reason, **sizes)

    measured = row.annotated.measured
    assert measured is not None
    if not row.key_matches:
        return outcome("sample", "images or messages are not those of its sample_key")
    if isinstance(again, SampleError):
        return outcome("unmeasurable", f"{again.status}: {again}")
    if not np.array_equal(measured.label_ids, again.label_ids):
        sizes = len(measured.label_ids), len(again.label_ids)
        pairs = enumerate(zip(measured.label_ids, again.label_ids, strict=False))
        at = next((at for at, (one, other) in pairs if one != other), min(sizes))
        return outcome("labels", f"{sizes[0]} label ids stored, {sizes[1]} now, the first other one at {at}")
    stored, now = measured.delta_logits.astype(np.float64), again.delta_logits.astype(np.float64)
    if (undefined := np.isnan(stored) != np.isnan(now)).any():
        return outcome("deltas", f"{int(undefined.sum())} deltas are undefined on one side")
    defined = ~np.isnan(stored)
    difference = np.abs(stored - now)[defined]
    # Of the difference of two logits: of what is subtracted, the size of the larger decides.
    logits = np.maximum(np.abs(again.logits_with_image), np.abs(again.logits_without_image))[defined]
    size = precision.size(torch.from_numpy(difference))
    tolerance = precision.tolerance(torch.from_numpy(logits))
    verdict: Verdict = "agrees" if size <= tolerance else "deltas"
    kind = "max" if precision.exact else "rms"
    reason = "" if verdict == "agrees" else f"{kind} difference {size:.3g} logits, tolerance {tolerance:.3g}"
    return outcome(
        verdict, reason, num_tokens=len(difference), max_difference=float(difference.max(initial=0.0)),
        squared=float(np.square(difference).sum()),
    )  # fmt: skip


def swap_partners(digests: Sequence[str], rng: np.random.Generator) -> list[tuple[int, int]]:
    """Pairs (sample, the sample that lends its images) without a fixed point, in words and in images.

    Takes a digest of the images of every sample [N]. Each sample lends at most once and nobody gets an image
    equal to its own: samples are put in a random order of images, equal ones side by side, and shifted by the most
    frequent image's count. Of an image that more than half the samples share, the surplus is left out. Ascending
    by sample.
    """
    rank = {digest: place for place, digest in enumerate(rng.permutation(sorted(set(digests))).tolist())}
    order = sorted(range(len(digests)), key=lambda at: (rank[digests[at]], at))
    counts = np.bincount(np.array([rank[digest] for digest in digests], np.int64), minlength=1)
    most = int(counts.argmax())
    surplus = int(2 * counts[most] - counts.sum())
    if surplus > 0:
        shared = [at for at in order if rank[digests[at]] == most]
        left_out = set(rng.permutation(shared)[:surplus].tolist())
        order = [at for at in order if at not in left_out]
        counts[most] -= surplus
    shift = int(counts.max(initial=0))
    return sorted((own, order[(place + shift) % len(order)]) for place, own in enumerate(order))


def mean_delta(deltas: np.ndarray) -> float:
    """Mean over the defined deltas [S] of a sample, NaN where none is."""
    defined = deltas[~np.isnan(deltas)]
    return float(defined.mean(dtype=np.float64)) if len(defined) else float("nan")


def swap_report(
    own: Sequence[MeasuredSample | SampleError], other: Sequence[MeasuredSample | SampleError]
) -> SwapReport:
    """Of the same samples measured with their own and with another's images, side by side."""
    pairs = []
    for mine, theirs in zip(own, other, strict=True):
        if isinstance(mine, SampleError) or isinstance(theirs, SampleError):
            continue
        # An image of more tokens may have cut the words' end (truncation tail): the common ones are compared.
        length = min(len(mine.label_ids), len(theirs.label_ids))
        if not np.array_equal(mine.label_ids[:length], theirs.label_ids[:length]):
            continue
        pair = mean_delta(mine.delta_logits[:length]), mean_delta(theirs.delta_logits[:length])
        if not np.isnan(pair).any():
            pairs.append(pair)
    values = np.array(pairs, np.float64).reshape(-1, 2)
    return SwapReport(own=values[:, 0], other=values[:, 1], skipped=len(own) - len(pairs))


def draw(candidates: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the row numbers [R], or all of them, at random and ascending."""
    if count >= len(candidates):
        return candidates
    return np.sort(rng.choice(candidates, count, replace=False))
