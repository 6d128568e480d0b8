"""Rotary frequencies that scale with the longest row: every row has those that it has alone."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.measuring.contrast import contrast_logits, innermost_decoder
from cal_pipeline.measuring.measure import measure
from cal_pipeline.measuring.rotary import rows_alone, varying_rotary
from cal_schemas.annotated import MeasuredSample
from cal_schemas.spec import ContrastSpec
from families.case import VOCABULARY, Case, Image, pixels, token_samples
from tiny_models import HIDDEN, build

_LAYERS = {"hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 6}
_TEXT: dict[str, Any] = {**_LAYERS, **_IDS, "num_key_value_heads": 1, "head_dim": 16}
_LIMIT = 16
"""Tokens after which the frequencies change: some of the samples are shorter, some longer."""
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, "short_factor": [1.0] * 8,
    "long_factor": [1.0 + number for number in range(8)], "original_max_position_embeddings": _LIMIT,
}  # fmt: skip


def _image(seed: int) -> Image:
    return Image(ids=[3] * 4, inputs={"pixel_values": pixels(seed, 1, 3, 16, 16)})


def _llava(rope: dict[str, Any]) -> Any:
    limit = 256 if rope["rope_type"] == "longrope" else _LIMIT
    return build(
        hf.LlavaForConditionalGeneration,
        hf.LlavaConfig(
            vision_config=hf.CLIPVisionConfig(**_LAYERS, image_size=16, patch_size=8, projection_dim=HIDDEN),
            text_config=hf.LlamaConfig(**_TEXT, max_position_embeddings=limit, rope_parameters=rope),
            image_token_index=3,
            image_seq_length=4,
        ),
    )


def _gemma3() -> Any:
    """Each type of layers has a rope of its own."""
    rope = {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}, "full_attention": _DYNAMIC}
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64}
    text = {**_TEXT, "max_position_embeddings": _LIMIT, "rope_parameters": rope, "query_pre_attn_scalar": 16}
    vision = hf.SiglipVisionConfig(**_LAYERS, image_size=28, patch_size=7, vision_use_head=False)
    ids = {"boi_token_index": 1, "eoi_token_index": 2, "image_token_index": 3}
    text_config = hf.Gemma3TextConfig(**text, **layers)
    config = hf.Gemma3Config(vision_config=vision, text_config=text_config, mm_tokens_per_image=4, **ids)
    return build(hf.Gemma3ForConditionalGeneration, config)


def _windowed() -> Any:
    """With a window shorter than the rows: `drop` then gives each type of layers a mask of its own."""
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8, "use_sliding_window": True}
    text = hf.Qwen2Config(**_TEXT, max_position_embeddings=_LIMIT, rope_parameters=_DYNAMIC, **layers)
    vision = hf.CLIPVisionConfig(**_LAYERS, image_size=16, patch_size=8, projection_dim=HIDDEN)
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=3, image_seq_length=4)
    return build(hf.LlavaForConditionalGeneration, config)


def _gemma_image(seed: int) -> Image:
    return Image(ids=[1, 3, 3, 3, 3, 2], inputs={"pixel_values": pixels(seed, 1, 3, 28, 28)})


KINDS = ("dynamic", "longrope", "dynamic in one type of layers")


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == KINDS[2]:
        return Case(model=_gemma3(), samples=token_samples(_gemma_image, type_ids="token_type_ids"))
    return Case(model=_llava(_DYNAMIC if request.param == "dynamic" else _LONGROPE), samples=token_samples(_image))


@torch.no_grad()
def by_hand(model: Any, sample: EncodedSample) -> tuple[Tensor, Tensor]:
    """Logits of the labels with and without the image: plain calls of a model that has seen no other row."""
    ids, labels = sample.sequence_inputs["input_ids"], sample.labels
    kept = torch.nonzero(~sample.image_mask)[:, 0]
    shown = {key: value[None] for key, value in sample.sequence_inputs.items()}
    with_image = copy.deepcopy(model)(**shown, **sample.image_inputs).logits[0]
    words = {key: value[:, kept] for key, value in shown.items()}
    without = copy.deepcopy(model)(**words, position_ids=kept[None]).logits[0]
    positions = [int(t) for t in torch.nonzero(labels >= 0)[:, 0]]
    before = [int(torch.nonzero(kept < t)[-1]) for t in positions]
    return (
        torch.stack([with_image[t - 1, ids[t]] for t in positions]),
        torch.stack([without[row, ids[t]] for row, t in zip(before, positions, strict=True)]),
    )


def test_lengths_lie_on_both_sides_of_the_limit(case: Case) -> None:
    lengths = [sample.num_tokens for sample in case.samples]
    assert min(lengths) <= _LIMIT < max(lengths)
    assert varying_rotary(innermost_decoder(case.model))


def test_a_row_is_measured_as_if_alone_whatever_it_shares_a_batch_with(case: Case) -> None:
    rows = measure(
        case.samples, model=case.model, encoder=case, contrast=ContrastSpec(), tokens_per_batch=10_000,  # type: ignore[arg-type]
        extra_columns=("logits",),
    )  # fmt: skip
    for sample, row in zip(case.samples, rows, strict=True):
        assert isinstance(row, MeasuredSample)
        with_image, without = by_hand(case.model, sample)
        torch.testing.assert_close(torch.from_numpy(row.logits_with_image), with_image, atol=1e-4, rtol=0)
        torch.testing.assert_close(torch.from_numpy(row.logits_without_image), without, atol=1e-4, rtol=0)


def test_in_windows_too() -> None:
    case = Case(model=_windowed(), samples=token_samples(_image))
    options = {"model": case.model, "encoder": case, "contrast": ContrastSpec()}
    together = measure(case.samples, tokens_per_batch=10_000, **options)  # type: ignore[arg-type]
    for sample, row in zip(case.samples, together, strict=True):
        (alone,) = measure([sample], tokens_per_batch=1, **options)  # type: ignore[arg-type]
        assert isinstance(row, MeasuredSample)
        assert isinstance(alone, MeasuredSample)
        np.testing.assert_allclose(row.delta_logits, alone.delta_logits, atol=1e-4)


def test_what_was_measured_before_leaves_no_trace(case: Case) -> None:
    """`dynamic` keeps the frequencies of the longest row so far, for every row above the limit that comes later."""
    long = max(case.samples, key=lambda sample: sample.num_tokens)
    rows = [sample for sample in case.samples if sample.image_inputs and sample.num_tokens > _LIMIT]
    second = min(rows, key=lambda sample: sample.num_tokens)
    assert second.num_tokens < long.num_tokens
    for sample in (long, second):
        batch = case.batch([sample])
        passes = contrast_logits(case.model, batch.inputs, batch.labels, batch.image_mask)
    torch.testing.assert_close(passes[0][0][sample.labels >= 0], by_hand(case.model, second)[0], atol=1e-4, rtol=0)


def test_the_rotary_s_own_forward_comes_back(case: Case) -> None:
    decoder = innermost_decoder(case.model)
    with rows_alone(decoder, None):
        assert all("forward" in module.__dict__ for module in varying_rotary(decoder))
    assert not any("forward" in module.__dict__ for module in varying_rotary(decoder))


@pytest.mark.parametrize("rope", [{"rope_type": "default"}, {"rope_type": "linear", "factor": 2.0}])
def test_frequencies_that_never_change_are_left_alone(rope: dict[str, Any]) -> None:
    assert varying_rotary(innermost_decoder(_llava({"rope_theta": 10000.0, **rope}))) == []
