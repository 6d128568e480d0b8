"""Families that general rules would measure wrongly without a word. Their processors need torchvision or more.

Each is a model in float32 and samples as its processor would write them; `Case.samples` are ragged.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import transformers as hf

from families.case import VOCABULARY, Case, Picture, pixels, token_samples
from tiny_models import HIDDEN, build

_START, _END, _IMAGE, _VIDEO = 1, 2, 3, 4
_LAYERS: dict[str, Any] = {
    "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
_TEXT: dict[str, Any] = {
    **_LAYERS, "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 6,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip
_GRIDS = ((4, 4), (4, 6))


def _grid_picture(seed: int, values: int = 96) -> Picture:
    """Patches in a row; 2 x 2 make a token."""
    grid = torch.tensor([[1, *_GRIDS[seed % 2]]])
    patches = int(grid.prod())
    return Picture(
        ids=[_IMAGE] * (patches // 4), inputs={"pixel_values": pixels(seed, patches, values), "image_grid_thw": grid},
        before=[_START], after=[_END],
    )  # fmt: skip


def ernie4_5_vl_moe() -> Case:
    """Tokens of pictures, the markers around them too, go to experts of their own, by an input [B, T]."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]}
    text = {
        **_TEXT, "num_hidden_layers": 4, "moe_intermediate_size": [32, 16], "moe_k": 2, "moe_num_experts": 4,
        "moe_num_shared_experts": 1, "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "rope_parameters": rope,
    }  # fmt: skip
    text.pop("head_dim")
    config = hf.Ernie4_5_VLMoeConfig(
        text_config=text,
        vision_config={"depth": 2, "hidden_size": HIDDEN, "num_heads": 2, "patch_size": 4, "intermediate_size": 64},
        image_start_token_id=_START, image_end_token_id=_END, image_token_id=_IMAGE, video_start_token_id=6,
        video_end_token_id=7, video_token_id=_VIDEO, tie_word_embeddings=False,
    )  # fmt: skip

    def picture(seed: int) -> Picture:
        return _grid_picture(seed, 48)

    samples = []
    for sample in token_samples(picture, type_ids="mm_token_type_ids"):
        ids = sample.sequence_inputs["input_ids"]
        experts = torch.isin(ids, torch.tensor([_IMAGE, _START, _END])).long()
        sequence = {**sample.sequence_inputs, "moe_mm_token_type_ids": experts}
        samples.append(dataclasses.replace(sample, sequence_inputs=sequence))
    return Case(model=build(hf.Ernie4_5_VLMoeForConditionalGeneration, config), samples=samples)
