"""What bfloat16 does to the product's numbers: as much as to a plain computation, to no side, to no token alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from cal_pipeline.models.loading import load_reference
from families.checked_independently import independent_numbers, product_numbers
from families.family import Family
from families.hard_rows import hard_rows
from families.independent import own_copy
from families.table import ALL

KINDS = {
    "llava": "plain", "smolvlm": "tiles", "muse_glimmer": "sliding window, caps", "gemma4": "sliding window",
    "qwen2_5_vl": "positions of three axes", "qwen3_vl": "deepstack", "qwen3_vl_moe": "experts",
    "qwen3_5": "linear attention", "lfm2_vl": "convolutions", "mllama": "cross-attention",
}  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("name", KINDS)
def test_the_errors_of_bfloat16_are_those_of_an_independent_computation(name: str, tmp_path: Path) -> None:
    """Errors are those from the same weights in float32: of both passes and of their differences."""
    family = ALL[name]
    assert isinstance(family, Family)
    case = family.make(tmp_path)
    rows = hard_rows(family, case, tmp_path)
    half = dataclasses.replace(
        case, model=load_reference(tmp_path, dtype="bfloat16", attn_implementation=family.attention)
    )
    exact = independent_numbers(own_copy(half.model).float(), rows, ["drop"]).values()
    own = independent_numbers(own_copy(half.model), rows, ["drop"]).values() - exact
    by_row: dict[int, torch.Tensor] = {}
    for group in dataclasses.replace(half, samples=list(rows.values())).groups():
        by_row |= {id(row): numbers for row, numbers in zip(group, product_numbers(half, group, "drop"), strict=True)}
    measured = [by_row[id(row)] for row in rows.values()]
    product = torch.cat([numbers[:, ~numbers[1].isnan()] for numbers in measured], 1) - exact
    for error, of_own in zip((*product, product[0] - product[1]), (*own, own[0] - own[1]), strict=True):
        size, size_of_own = float(error.square().mean().sqrt()), float(of_own.square().mean().sqrt())
        assert 1e-3 < size <= 1.3 * size_of_own
        assert abs(float(error.mean())) <= 0.25 * size
        assert float(error.abs().max()) <= 2 * float(of_own.abs().max())
