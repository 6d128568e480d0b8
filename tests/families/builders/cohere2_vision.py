"""Command A Vision: tiles of one size, a line break behind each."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.family import LAYERS, Family, chat, save, text_values
from tiny_models import train_tokenizer

_NAMED: Final = {
    "image_token": "<|IMG_PATCH|>", "boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>",
    "img_line_break_token": "<|IMG_LINE_BREAK|>",
}  # fmt: skip


def build(directory: Path) -> None:
    tokenizer = train_tokenizer(
        bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", pad="<PAD>", add_bos=True, named=_NAMED,
        special=[*_NAMED.values()],
    )  # fmt: skip
    template = chat(
        "<|IMG_PATCH|>", begin="<BOS_TOKEN>", user="<USER>", assistant="<CHATBOT>", end="<|END_OF_TURN_TOKEN|>"
    )
    pixels = hf.Cohere2VisionImageProcessor(
        size={"height": 16, "width": 16}, min_patches=1, max_patches=4, patch_size=2, downsample_factor=2
    )
    processor = hf.Cohere2VisionProcessor(pixels, tokenizer, chat_template=template)
    text = hf.Cohere2Config(
        **text_values(tokenizer), sliding_window=512, layer_types=["sliding_attention", "full_attention"]
    )
    config = hf.Cohere2VisionConfig(
        vision_config=hf.SiglipVisionConfig(**LAYERS, image_size=16, patch_size=4, vision_use_head=False),
        text_config=text, image_token_id=tokenizer.image_token_id, alignment_intermediate_size=64,
    )  # fmt: skip
    save(directory, hf.Cohere2VisionForConditionalGeneration, config, processor)


COHERE2_VISION: Final = Family(
    name="cohere2_vision",
    build=build,
    markers=("<|START_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "<|END_OF_IMG|>"),
)
