"""LightOnOCR: Pixtral's tower over a Qwen 3 decoder, without tokens between rows of patches."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import template
from families.family import LAYERS, Family, chatml_tokenizer, save, text_values

_NAMED: Final = {
    "image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>", "image_end_token": "<|vision_end|>",
}  # fmt: skip


def build(directory: Path) -> None:
    tokenizer = chatml_tokenizer(**_NAMED)
    processor = hf.LightOnOcrProcessor(
        hf.PixtralImageProcessor(patch_size=8, size={"longest_edge": 32}), tokenizer, patch_size=4,
        spatial_merge_size=2, chat_template=template("<|image_pad|>"),
    )  # fmt: skip
    config = hf.LightOnOcrConfig(
        vision_config={"model_type": "pixtral", **LAYERS, "head_dim": 16, "image_size": 32, "patch_size": 4},
        text_config={"model_type": "qwen3", **text_values(tokenizer)}, image_token_id=tokenizer.image_token_id,
        spatial_merge_size=2, tie_word_embeddings=False,
    )  # fmt: skip
    save(directory, hf.LightOnOcrForConditionalGeneration, config, processor)


LIGHTON_OCR: Final = Family(name="lighton_ocr", build=build, markers=("<|image_pad|>",))
