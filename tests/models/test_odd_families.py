"""Families that need more than the general rules: measured as their rows are alone, or refused with the reason."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.measuring.contrast import captured_position_ids, contrast_logits
from cal_pipeline.measuring.load_check import check_samples
from cal_pipeline.measuring.measure import measure
from cal_schemas.annotated import MeasuredSample
from cal_schemas.errors import ConfigError
from cal_schemas.spec import Condition, ContrastSpec
from families import mrope, odd, tiles
from families.case import Case


def passes(case: Case, samples: list[EncodedSample], condition: Condition = "drop") -> Tensor:
    """[2, B, T]: logits with and without the image."""
    batch = case.batch(samples)
    contrast = ContrastSpec(condition=condition)
    return torch.stack(contrast_logits(case.model, batch.inputs, batch.labels, batch.image_mask, contrast))


def largest(first: Tensor, second: Tensor) -> float:
    difference = (first - second).abs()
    return float(difference[~difference.isnan()].max())


def test_a_kept_token_goes_to_the_experts_it_went_to_beside_the_image() -> None:
    case = odd.ernie4_5_vl_moe()
    for sample in case.samples:
        if not sample.image_inputs:
            continue
        dropped, masked = passes(case, [sample])[1, 0], passes(case, [sample], "mask")[1, 0]
        dropped[1:][sample.image_mask[:-1]] = torch.nan  # The two differ by definition directly after an image.
        assert largest(dropped, masked) < 1e-4


def check(case: Case, samples: list[EncodedSample] | None = None) -> str | None:
    """What a worker proves at load, on the family's samples with one image."""
    return check_samples(case.model, samples or list(case.samples[:2]), case.batch, ContrastSpec(), "tiny")


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (odd.molmo2, "a row's logits differ by .* with another row beside it"),
        (odd.hunyuan_vl, "a row's logits differ by .* with another row beside it"),
        (odd.minicpmv4_6, "its forward fails on two rows: RuntimeError: The size of tensor"),
    ],
)
def test_rows_that_see_their_neighbours_are_found_and_measured_one_by_one(build: Any, reason: str) -> None:
    case = build()
    checked = check(case)
    assert checked is not None
    assert re.match(reason, checked)
    case = dataclasses.replace(case, one_by_one=checked)
    measured = measure(
        case.samples, model=case.model, encoder=case, contrast=ContrastSpec(), tokens_per_batch=4096, extra_columns=[]
    )
    for sample, row in zip(case.samples, measured, strict=True):
        assert isinstance(row, MeasuredSample)
        alone = passes(case, [sample])
        expected = (alone[0] - alone[1])[0][sample.labels >= 0]
        torch.testing.assert_close(torch.from_numpy(row.delta_logits), expected, atol=1e-5, rtol=0, equal_nan=True)


def test_layers_that_take_positions_for_places_of_keys_are_refused_with_the_way_out() -> None:
    case = odd.minimax_m3_vl()
    out = "take position ids for places of keys, .*; use --contrast patch_mask or gaussian_blur"
    with pytest.raises(ConfigError, match=f"tiny: layers of MiniMaxM3SparseForConditionalGeneration {out}"):
        check(case)


def test_a_decoder_that_pays_no_heed_to_positions_is_refused_with_the_way_out() -> None:
    message = "pays no heed to position ids: .*; use --contrast patch_mask or gaussian_blur"
    with pytest.raises(ConfigError, match=f"tiny: InklingForConditionalGeneration {message}"):
        check(odd.inkling())


def test_rows_longer_than_a_window_are_measured_beside_layers_of_another_kind() -> None:
    """Against windows that every row fits into, over the tokens that a narrow one still shows."""
    case = odd.dots3_note()
    assert check(case) is None
    long = max(case.samples, key=lambda sample: sample.num_tokens)
    assert long.num_tokens > 8
    batch = case.batch([long])
    with captured_position_ids(case.model) as seen:
        without = passes(case, [long])[1, 0]
    kept = torch.nonzero(~long.image_mask)[:, 0]
    distance = kept[:, None] - kept[None]
    hidden = {"sliding_attention": (distance < 0) | (distance >= 8), "indexed_attention": distance < 0}
    masks = {key: torch.zeros(value.shape).masked_fill(value, -1e30)[None, None] for key, value in hidden.items()}
    ids = batch.inputs["input_ids"][:, kept]
    with torch.no_grad():
        rows = case.model(input_ids=ids, position_ids=kept[None], attention_mask=masks, use_cache=False).logits[0]
    wanted = torch.nonzero(~without.isnan())[:, 0]
    before = [int(torch.nonzero(kept < t)[-1]) for t in wanted]
    expected = rows[before, long.labels[wanted]]
    assert seen
    torch.testing.assert_close(without[wanted], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("build", [mrope.qwen2_5_vl, mrope.qwen3_5, tiles.lfm2_vl, tiles.gemma4, odd.ernie4_5_vl_moe])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_that_are_right_are_not_refused(build: Any, dtype: torch.dtype) -> None:
    case = build()
    before = {name: value.clone() for name, value in case.model.to(dtype).state_dict().items()}
    assert check(case) is None
    after = case.model.state_dict()
    assert {name: value.dtype for name, value in after.items()} == {name: value.dtype for name, value in before.items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("build", [odd.hunyuan_vl, odd.molmo2])
def test_half_precision_does_not_hide_a_neighbour(build: Any) -> None:
    case = build()
    case.model.to(torch.bfloat16)
    assert check(case) is not None
