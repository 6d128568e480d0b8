"""LFM2-VL: short convolutions beside attention, images as rows of patches in tiles with markers."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import template
from families.family import LAYERS, Family, chatml_tokenizer, save, text_values

_NAMED: Final = {
    "image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>",
    "image_thumbnail_token": "<|img_thumbnail|>",
}  # fmt: skip


def build(directory: Path) -> None:
    tiles = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = chatml_tokenizer(*tiles, **_NAMED)
    processor = hf.Lfm2VlProcessor(
        hf.Lfm2VlImageProcessor(
            encoder_patch_size=4, downsample_factor=2, tile_size=16, min_tiles=2, max_tiles=4, min_image_tokens=2,
            max_image_tokens=4, max_num_patches=16,
        ),
        tokenizer, chat_template=template("<image>"),
    )  # fmt: skip
    values = text_values(
        tokenizer, block_ff_dim=64, block_auto_adjust_ff_dim=False, layer_types=["conv", "full_attention"]
    )
    config = hf.Lfm2VlConfig(
        vision_config=hf.Siglip2VisionConfig(**LAYERS, patch_size=4, num_patches=16, vision_use_head=False),
        text_config=hf.Lfm2Config(**values), image_token_id=tokenizer.image_token_id, projector_hidden_size=64,
        downsample_factor=2,
    )  # fmt: skip
    save(directory, hf.Lfm2VlForConditionalGeneration, config, processor)


LFM2_VL: Final = Family(
    name="lfm2_vl",
    build=build,
    markers=("<|image_start|>", "<|img_row_1_col_1|>", "<|img_thumbnail|>", "<image>", "<|image_end|>"),
)
