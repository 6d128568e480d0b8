"""The inputs of the second pass, number by number."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cal_pipeline.measuring.conditions import (
    FirstPass,
    WithoutImage,
    check_contrast_inputs,
    defined_tokens,
    sliding_window,
    without_image,
)
from cal_schemas.errors import ConfigError

_ = -100
IDS = torch.tensor([[5, 3, 3, 20, 21, 22], [3, 30, 31, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
IMAGE = (IDS == 3) & MASK.bool()
LABELS = torch.tensor([[_, _, _, 20, _, 22], [_, 30, 31, _, _, _]])
INPUTS = {"input_ids": IDS, "attention_mask": MASK, "kinds": IDS * 10, "pixel_values": torch.ones(2, 3, 4, 4)}
PLAIN = SimpleNamespace()


def second(
    condition: Any = "drop",
    positions: Tensor | None = None,
    config: Any = PLAIN,
    contrast_inputs: Any = None,
    required: Collection[str] = (),
) -> WithoutImage:
    first = FirstPass(
        inputs=INPUTS, labels=LABELS, image_mask=IMAGE, position_ids=positions, text_config=config, required=required
    )
    return without_image(condition, first, contrast_inputs)


def test_drop_gathers_every_input_of_tokens_and_leaves_the_image_s_out() -> None:
    without = second()
    assert without.index.tolist() == [[0, 3, 4, 5], [1, 2, 1, 1]], "padding repeats a row's first kept token"
    assert without.inputs["input_ids"].tolist() == [[5, 20, 21, 22], [30, 31, 30, 30]]
    assert without.inputs["kinds"].tolist() == [[50, 200, 210, 220], [300, 310, 300, 300]]
    assert without.inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert without.inputs["attention_mask"].dtype == MASK.dtype
    assert without.inputs["position_ids"].tolist() == [[0, 3, 4, 5], [1, 2, 1, 1]], "as beside the image"
    assert without.labels.tolist() == [[_, 20, _, 22], [30, 31, _, _]]
    assert set(without.inputs) == {"input_ids", "attention_mask", "kinds", "position_ids"}


def test_an_input_that_the_forward_requires_is_passed_on_as_it_is() -> None:
    without = second(required=["pixel_values", "input_ids", "absent"])
    assert without.inputs["pixel_values"] is INPUTS["pixel_values"]
    assert without.inputs["input_ids"].shape == (2, 4)
    assert "absent" not in without.inputs


@pytest.mark.parametrize("shape", [(2, 6), (1, 6), (3, 2, 6)])
def test_positions_are_those_of_the_first_pass_in_every_section(shape: tuple[int, ...]) -> None:
    positions = torch.arange(100, 100 + 36)[: torch.Size(shape).numel()].reshape(shape)
    position_ids = second(positions=positions).inputs["position_ids"]
    whole = positions.expand(*shape[:-2], 2, 6)
    assert position_ids.shape == (*shape[:-2], 2, 4)
    assert torch.equal(position_ids[..., 0, :], whole[..., 0, [0, 3, 4, 5]])
    assert torch.equal(position_ids[..., 1, :2], whole[..., 1, [1, 2]])


def test_without_position_ids_real_tokens_are_counted_padding_in_front_too() -> None:
    left = {"input_ids": torch.tensor([[0, 0, 5, 3, 20]]), "attention_mask": torch.tensor([[0, 0, 1, 1, 1]])}
    image = left["input_ids"] == 3
    labels = torch.tensor([[_, _, _, _, 20]])
    first = FirstPass(inputs=left, labels=labels, image_mask=image, position_ids=None, text_config=PLAIN)
    assert without_image("drop", first).inputs["position_ids"].tolist() == [[0, 2]]
    masked = without_image("mask", first)
    assert masked.inputs["position_ids"].tolist() == [[0, 0, 0, 1, 2]]
    assert masked.inputs["attention_mask"].tolist() == [[0, 0, 1, 0, 1]]


def test_mask_leaves_every_token_where_it_is_and_hides_the_image_s() -> None:
    without = second("mask")
    assert without.inputs["attention_mask"].tolist() == [[1, 0, 0, 1, 1, 1], [0, 1, 1, 0, 0, 0]]
    assert without.inputs["pixel_values"] is INPUTS["pixel_values"]
    assert without.inputs["input_ids"] is IDS
    assert torch.equal(without.index, torch.arange(6).expand(2, 6))
    assert torch.equal(without.labels, LABELS)
    with pytest.raises(ConfigError, match="contrast 'mask' is not defined for this model: layers of type mamba"):
        second("mask", config=SimpleNamespace(layer_types=["mamba"]))


@pytest.mark.parametrize("config", [{"sliding_window": 2}, {"attention_chunk_size": 3}])
def test_mask_under_eager_refuses_a_label_read_where_an_image_fills_all_that_a_layer_sees(config: Any) -> None:
    """Image at 3, 4 and 5, words before it, a label right behind it and one more."""
    image = torch.tensor([[False, False, False, True, True, True, False, False]])
    ones = torch.ones(1, 8, dtype=torch.long)

    def masked(labels: list[int], **changed: Any) -> WithoutImage:
        first = FirstPass(
            inputs={"input_ids": ones, "attention_mask": ones}, labels=torch.tensor([labels]), image_mask=image,
            position_ids=None, text_config=SimpleNamespace(**{"_attn_implementation": "eager", **config, **changed}),
        )  # fmt: skip
        return without_image("mask", first)

    behind = [_] * 6 + [1, 1]
    with pytest.raises(ValueError, match=r"fills the [23] tokens .*: use --attn_implementation sdpa, or --contrast"):
        masked(behind)
    masked([_, 1, 1, _, _, _, _, 1])
    masked(behind, _attn_implementation="sdpa")
    masked(behind, **dict.fromkeys(config, 6))


def test_mask_refuses_what_would_move_windows_or_chunks() -> None:
    """The second row begins with an image (its padding stands in front in the third), the first does not."""
    image = torch.tensor([[0, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]]).bool()
    real = torch.tensor([[1] * 6, [1] * 6, [0, 0, 1, 1, 1, 1]])

    def masked(row: int, **config: Any) -> WithoutImage:
        first = FirstPass(
            inputs={"input_ids": real[row][None], "attention_mask": real[row][None]}, labels=real[row][None],
            image_mask=image[row][None], position_ids=None, text_config=SimpleNamespace(**config),
        )  # fmt: skip
        return without_image("mask", first)

    for row in (1, 2):
        with pytest.raises(
            ValueError, match=r"begins with an image, and its chunks of 3 tokens .*: use --contrast drop"
        ):
            masked(row, attention_chunk_size=3)
        masked(row, attention_chunk_size=6)
        masked(row, sliding_window=3)
    masked(0, attention_chunk_size=3)
    flash = "flash_attention_2"
    with pytest.raises(ConfigError, match=f"attention of 3 tokens is not exact under '{flash}'.*_implementation sdpa"):
        masked(0, sliding_window=3, _attn_implementation=flash)
    masked(0, sliding_window=6, _attn_implementation=flash)


@pytest.mark.parametrize("condition", ["patch_mask", "gaussian_blur"])
def test_a_perturbed_image_takes_the_place_of_the_image(condition: Any) -> None:
    perturbed = {"pixel_values": torch.zeros(2, 3, 4, 4)}
    without = second(condition, contrast_inputs=perturbed)
    assert without.inputs["pixel_values"] is perturbed["pixel_values"]
    assert without.inputs["attention_mask"] is MASK
    assert "position_ids" not in without.inputs, "the model makes the same ones again"
    assert torch.equal(without.index, torch.arange(6).expand(2, 6))


def allowed(mask: Tensor) -> list[list[list[int]]]:
    """Of an additive mask [B, 1, K, K]: keys that each query of each row sees."""
    assert set(mask.unique().tolist()) <= {0.0, torch.finfo(mask.dtype).min}
    return [[torch.nonzero(query == 0)[:, 0].tolist() for query in row[0]] for row in mask]


def test_chunks_begin_where_they_began_in_the_first_pass() -> None:
    """Tokens 0, 3, 4, 5 of the first row, in chunks of 4; the second row's are in one."""
    kinds = ["chunked_attention", "full_attention"]
    config = SimpleNamespace(attention_chunk_size=4, layer_types=kinds, _attn_implementation="sdpa")
    masks = second(config=config).inputs["attention_mask"]
    assert allowed(masks["chunked_attention"]) == [[[0], [0, 1], [2], [2, 3]], [[0], [0, 1], [0, 2], [0, 3]]]
    assert allowed(masks["full_attention"])[0] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    assert isinstance(second(config=SimpleNamespace(attention_chunk_size=6)).inputs["attention_mask"], Tensor)


def test_chunks_are_counted_from_a_row_s_first_token_behind_padding() -> None:
    left = {"input_ids": torch.tensor([[0, 0, 5, 3, 20, 21]]), "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]])}
    config = SimpleNamespace(attention_chunk_size=3, _attn_implementation="sdpa")
    first = FirstPass(
        inputs=left, labels=torch.tensor([[_, _, _, _, 20, 21]]), image_mask=left["input_ids"] == 3, position_ids=None,
        text_config=config,
    )  # fmt: skip
    assert allowed(without_image("drop", first).inputs["attention_mask"]) == [[[0], [0, 1], [2]]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_window_counts_the_tokens_that_were_there_in_the_first_pass(attention: str) -> None:
    kinds = ["sliding_attention", "full_attention", "indexed_attention", "linear_attention"]
    config = SimpleNamespace(sliding_window=4, layer_types=kinds, dtype=torch.bfloat16, _attn_implementation=attention)
    masks = second(config=config).inputs["attention_mask"]
    assert set(masks) == {*kinds, "chunked_attention"}
    assert masks["full_attention"].dtype == torch.bfloat16
    # Tokens 0, 3, 4, 5 of the first row: 3 places back are inside a window of 4, 4 are not.
    assert allowed(masks["sliding_attention"]) == [[[0], [0, 1], [1, 2], [1, 2, 3]], [[0], [0, 1], [0, 2], [0, 3]]]
    assert allowed(masks["full_attention"])[0] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    assert allowed(masks["indexed_attention"]) == allowed(masks["full_attention"])
    assert masks["linear_attention"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_one_kind_of_layers_gets_one_mask_and_a_row_inside_the_window_none() -> None:
    config = SimpleNamespace(sliding_window=5, _attn_implementation="sdpa")
    mask = second(config=config).inputs["attention_mask"]
    assert mask.shape == (2, 1, 4, 4)
    assert mask.dtype == torch.float32
    assert second(config=SimpleNamespace(sliding_window=6)).inputs["attention_mask"].shape == (2, 4)


def test_a_question_that_looks_ahead_is_refused_over_a_window() -> None:
    """PaliGemma's answers are of type 1; Gemma 3's images are, which are gone."""
    config = SimpleNamespace(sliding_window=4, _attn_implementation="sdpa")

    def typed(types: Tensor) -> WithoutImage:
        inputs = {**INPUTS, "token_type_ids": types.long()}
        first = FirstPass(inputs=inputs, labels=LABELS, image_mask=IMAGE, position_ids=None, text_config=config)
        return without_image("drop", first)

    assert typed(IMAGE).inputs["attention_mask"].dim() == 4
    with pytest.raises(ValueError, match=r"attention of 4 tokens .* looks ahead .*: use --contrast mask"):
        typed(LABELS > 0)


def test_attention_without_explicit_masks_is_refused_over_a_window() -> None:
    config = SimpleNamespace(sliding_window=4, _attn_implementation="flash_attention_2")
    with pytest.raises(
        ConfigError, match=r"attention of 4 tokens .* 'flash_attention_2' does not take: use --attn_impl"
    ):
        second(config=config)


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({}, None),
        ({"sliding_window": None}, None),
        ({"sliding_window": 8}, 8),
        ({"sliding_window": 8, "use_sliding_window": False}, None),
        ({"sliding_window": 8, "use_sliding_window": True}, 8),
        ({"sliding_window": 8, "layer_types": ["full_attention"]}, None),
        ({"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}, 8),
    ],
)
def test_the_window_is_that_of_layers_that_have_one(config: dict[str, Any], window: int | None) -> None:
    assert sliding_window(SimpleNamespace(**config)) == window


def test_a_delta_needs_a_kept_token_before_it() -> None:
    dropped = [[False, False, False, True, False, True], [False, False, True, False, False, False]]
    assert defined_tokens(LABELS, MASK, IMAGE).tolist() == dropped
    assert defined_tokens(LABELS, MASK, IMAGE, "mask").tolist() == dropped
    shown = defined_tokens(LABELS, MASK, IMAGE, "patch_mask").tolist()
    assert shown == [dropped[0], [False, True, True, False, False, False]], "a perturbed image stands before it"


def test_contrast_inputs_fit_their_condition_and_their_first_pass() -> None:
    pixels = {"pixel_values": torch.zeros(2, 3, 4, 4)}
    check_contrast_inputs("drop", INPUTS, None)
    check_contrast_inputs("patch_mask", INPUTS, pixels)
    with pytest.raises(ConfigError, match="'drop' removes the image and takes no contrast_inputs"):
        check_contrast_inputs("drop", INPUTS, pixels)
    with pytest.raises(ConfigError, match="'gaussian_blur' needs contrast_inputs"):
        check_contrast_inputs("gaussian_blur", INPUTS, None)
    for name in ("input_ids", "other"):
        with pytest.raises(ConfigError, match=rf"has '{name}', which is no image input .*\['pixel_values'\]"):
            check_contrast_inputs("patch_mask", INPUTS, {name: IDS})
    with pytest.raises(ConfigError, match=r"has the shape \[1, 3, 4, 4\], the image itself \[2, 3, 4, 4\]"):
        check_contrast_inputs("patch_mask", INPUTS, {"pixel_values": torch.zeros(1, 3, 4, 4)})
