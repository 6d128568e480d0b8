"""InternVL in its -HF form: tiles of one size by aspect ratio, and one of the whole image."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import template
from families.family import LAYERS, Family, chatml_tokenizer, save, text_values

_NAMED: Final = {
    "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}  # fmt: skip


def build(directory: Path) -> None:
    tokenizer = chatml_tokenizer(**_NAMED)
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(
            size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer, hf.InternVLVideoProcessor(), image_seq_length=4, chat_template=template("<IMG_CONTEXT>\n"),
    )  # fmt: skip
    config = hf.InternVLConfig(
        vision_config={**LAYERS, "image_size": 16, "patch_size": 4},
        text_config=hf.Qwen2Config(**text_values(tokenizer)), image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )  # fmt: skip
    save(directory, hf.InternVLForConditionalGeneration, config, processor)


INTERNVL: Final = Family(name="internvl", build=build, markers=("<img>", "<IMG_CONTEXT>", "</img>"))
