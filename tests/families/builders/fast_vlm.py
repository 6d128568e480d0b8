"""FastVLM: convolutions of timm's FastViT, with batch norms, halve an image six times; the processor is LLaVA's."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import template
from families.family import Family, chatml_tokenizer, save, text_values
from tiny_models import HIDDEN

_SIDE: Final = 128
"""Pixels: 2 x 2 tokens."""


def build(directory: Path) -> None:
    words = chatml_tokenizer(image_token="<image>")
    processor = hf.LlavaProcessor(
        hf.LlavaImageProcessor(size={"shortest_edge": _SIDE}, crop_size={"height": _SIDE, "width": _SIDE}), words,
        patch_size=64, vision_feature_select_strategy="full", num_additional_image_tokens=0,
        chat_template=template("<image>\n"),
    )  # fmt: skip
    tower = {
        "layers": [1] * 5, "embed_dims": [8, 16, 16, 32, HIDDEN], "mlp_ratios": [1] * 5, "inference_mode": True,
    }  # fmt: skip
    vision = {
        "model_type": "timm_wrapper", "architecture": "fastvit_mci3", "model_args": tower, "hidden_size": 2 * HIDDEN,
        "num_labels": 0, "do_pooling": True,
    }  # fmt: skip
    config = hf.FastVlmConfig(
        vision_config=vision, text_config=hf.Qwen2Config(**text_values(words)), image_token_index=words.image_token_id,
        image_seq_length=4, tie_word_embeddings=False,
    )  # fmt: skip
    save(directory, hf.FastVlmForConditionalGeneration, config, processor)


FAST_VLM: Final = Family(name="fast_vlm", build=build, markers=("<image>",))
