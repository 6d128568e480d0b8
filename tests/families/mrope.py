"""Families with M-RoPE, from token ids: positions of image tokens follow the image's grid."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from families.case import VOCABULARY, Case, Image, pixels, token_samples
from tiny_models import HIDDEN, build

_START, _END, _IMAGE, _VIDEO = 1, 2, 3, 4
_TEXT: dict[str, Any] = {
    "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": VOCABULARY, "pad_token_id": 0, "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
}  # fmt: skip
_QWEN = {
    "image_token_id": _IMAGE,
    "video_token_id": _VIDEO,
    "vision_start_token_id": _START,
    "vision_end_token_id": _END,
}


def _image(seed: int) -> Image:
    grid = torch.tensor([[1, 4, 4 + 2 * (seed % 2)]])  # in patches; 2 x 2 patches make one token
    patches = int(grid.prod())
    inputs = {"pixel_values": pixels(seed, patches, 3 * 2 * 4 * 4), "image_grid_thw": grid}
    return Image(ids=[_IMAGE] * (patches // 4), inputs=inputs, before=[_START], after=[_END])


def _case(model_class: Any, config: Any) -> Case:
    return Case(model=build(model_class, config), samples=token_samples(_image, type_ids="mm_token_type_ids"))


def qwen2_5_vl() -> Case:
    vision = {
        "depth": 2, "hidden_size": HIDDEN, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": HIDDEN,
        "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = hf.Qwen2_5_VLConfig(text_config=_TEXT, vision_config=vision, **_QWEN)
    return _case(hf.Qwen2_5_VLForConditionalGeneration, config)


def qwen3_5() -> Case:
    vision = {
        "depth": 2, "hidden_size": HIDDEN, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": HIDDEN,
        "patch_size": 4, "num_position_embeddings": 64,
    }  # fmt: skip
    linear = {
        "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
        "layer_types": ["linear_attention", "full_attention"], "head_dim": 16,
    }  # fmt: skip
    text = {**_TEXT, **linear, "rope_parameters": {**_TEXT["rope_parameters"], "partial_rotary_factor": 1.0}}
    config = hf.Qwen3_5Config(text_config=text, vision_config=vision, **_QWEN)
    return _case(hf.Qwen3_5ForConditionalGeneration, config)
