"""LLaVA-OneVision: tiles and the whole image, unpadded, a newline's embedding behind each row."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import template
from families.family import LAYERS, Family, chatml_tokenizer, save, text_values


def build(directory: Path) -> None:
    tokenizer = chatml_tokenizer("<image>", "<video>")
    grid = {"image_grid_pinpoints": [[16, 32], [32, 16], [32, 32]]}
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size={"height": 16, "width": 16}, **grid), tokenizer,
        hf.LlavaOnevisionVideoProcessor(), num_image_tokens=4, vision_feature_select_strategy="full",
        chat_template=template("<image>\n"),
    )  # fmt: skip
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**LAYERS, image_size=16, patch_size=8, vision_use_head=False),
        text_config=hf.Qwen2Config(**text_values(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"), **grid,
    )  # fmt: skip
    save(directory, hf.LlavaOnevisionForConditionalGeneration, config, processor)


LLAVA_ONEVISION: Final = Family(name="llava_onevision", build=build, markers=("<image>",))
