"""LFM3-VL: short convolutions beside attention in the tower too; images of any size in patches of their own grid."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import END, IMAGE, PATCHES, START, ids, template, tokenizer
from families.family import Family, save, text_values
from tiny_models import HIDDEN


def build(directory: Path) -> None:
    words = tokenizer()
    processor = hf.Lfm3VlProcessor(
        hf.Qwen2VLImageProcessor(**PATCHES), words, hf.Qwen3VLVideoProcessor(), chat_template=template()
    )
    text = text_values(
        words, model_type="lfm2", block_ff_dim=64, block_auto_adjust_ff_dim=False,
        layer_types=["conv", "full_attention"],
    )  # fmt: skip
    vision = {
        "hidden_size": HIDDEN, "intermediate_size": 64, "patch_size": 4, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "layer_types": ["conv", "full_attention"],
    }  # fmt: skip
    config = hf.Lfm3VlConfig(text_config=text, vision_config=vision, projector_hidden_size=64, **ids(words))
    save(directory, hf.Lfm3VlForConditionalGeneration, config, processor)


LFM3_VL: Final = Family(name="lfm3_vl", build=build, markers=(IMAGE,), around=(START, END))
