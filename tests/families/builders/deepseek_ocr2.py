"""Deepseek-OCR 2: tiles and the whole image through SAM and a second encoder, experts behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import transformers as hf

from families.builders.qwen import template
from families.family import LAYERS, Family, chatml_tokenizer, save, text_values
from tiny_models import HIDDEN

EXPERTS: Final = {
    "num_key_value_heads": 2, "n_group": 1, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "mlp_layer_types": ["dense", "sparse"],
}  # fmt: skip


def sam(size: int, patch: int) -> dict[str, Any]:
    """A tower whose neck halves the grid twice."""
    return {
        "hidden_size": HIDDEN, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": size, "patch_size": patch, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 64,
        "downsample_channels": [16, 16],
    }  # fmt: skip


def build(directory: Path) -> None:
    """A tile has 144 tokens: so many queries are written in the model's code. Only images wider than 89 are tiled."""
    words = chatml_tokenizer(image_token="<image>")
    pixels = hf.DeepseekOcr2ImageProcessor(size={"height": 96, "width": 96}, tile_size=89)
    processor = hf.DeepseekOcr2Processor(pixels, words, patch_size=2, chat_template=template("<image>\n"))
    encoder = {**LAYERS, "hidden_size": 16, "intermediate_size": 32, "num_key_value_heads": 2, "vocab_size": 8}
    config = hf.DeepseekOcr2Config(
        vision_config={"sam_config": sam(96, 2), "encoder_config": encoder},
        text_config=text_values(words, **EXPERTS), image_token_id=words.image_token_id,
    )  # fmt: skip
    save(directory, hf.DeepseekOcr2ForConditionalGeneration, config, processor)


DEEPSEEK_OCR2: Final = Family(name="deepseek_ocr2", build=build, markers=("<image>",))
