"""Ernie 4.5 VL: tokens of images, and those around them, go to experts of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import PATCHES, ROPE, template, text
from families.family import Family, chatml_tokenizer, save
from tiny_models import HIDDEN

START, END, IMAGE = "<|IMAGE_START|>", "<|IMAGE_END|>", "<|IMAGE_PLACEHOLDER|>"
_NAMED: Final = {
    "image_token": IMAGE, "image_start_token": START, "image_end_token": END, "video_token": "<|VIDEO_PLACEHOLDER|>",
    "video_start_token": "<|VIDEO_START|>", "video_end_token": "<|VIDEO_END|>",
}  # fmt: skip


def build(directory: Path) -> None:
    words = chatml_tokenizer(**_NAMED)
    processor = hf.Ernie4_5_VLMoeProcessor(
        hf.Ernie4_5_VLMoeImageProcessor(**PATCHES), words, hf.Ernie4_5_VLMoeVideoProcessor(draw_on_frames=False),
        chat_template=template(START + IMAGE + END),
    )  # fmt: skip
    values = text(
        words, moe_intermediate_size=[32, 16], moe_k=2, moe_num_experts=4, moe_num_shared_experts=1,
        num_hidden_layers=3, mlp_layer_types=["dense", "sparse", "sparse"],
        rope_parameters={**ROPE, "mrope_section": [3, 3, 2]},
    )  # fmt: skip
    vision = {"depth": 2, "hidden_size": HIDDEN, "num_heads": 2, "patch_size": 4, "intermediate_size": 64}
    config = hf.Ernie4_5_VLMoeConfig(
        text_config=values, vision_config=vision, tie_word_embeddings=False,
        **{f"{name}_id": getattr(words, f"{name}_id") for name in _NAMED},
    )  # fmt: skip
    save(directory, hf.Ernie4_5_VLMoeForConditionalGeneration, config, processor)


ERNIE4_5_VL_MOE: Final = Family(name="ernie4_5_vl_moe", build=build, markers=(IMAGE,), around=(START, END))
