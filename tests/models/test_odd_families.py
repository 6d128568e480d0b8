"""Families that need more than the general rules: measured as their rows are alone, or refused with the reason."""

from __future__ import annotations

import torch
from torch import Tensor

from cal_pipeline.encode import EncodedSample
from cal_pipeline.reference import contrast_logits
from cal_schemas.spec import Condition, ContrastSpec
from families import odd
from families.case import Case


def passes(case: Case, samples: list[EncodedSample], condition: Condition = "drop") -> Tensor:
    """[2, B, T]: logits with and without the image."""
    batch = case.batch(samples)
    contrast = ContrastSpec(condition=condition)
    return torch.stack(contrast_logits(case.model, batch.inputs, batch.labels, batch.image_mask, contrast))


def largest(one: Tensor, other: Tensor) -> float:
    difference = (one - other).abs()
    return float(difference[~difference.isnan()].max())


def test_a_kept_token_goes_to_the_experts_it_went_to_beside_the_image() -> None:
    case = odd.ernie4_5_vl_moe()
    for sample in case.samples:
        if not sample.image_inputs:
            continue
        dropped, masked = passes(case, [sample])[1, 0], passes(case, [sample], "mask")[1, 0]
        dropped[1:][sample.image_mask[:-1]] = torch.nan  # The two differ by definition directly after an image.
        assert largest(dropped, masked) < 1e-4
