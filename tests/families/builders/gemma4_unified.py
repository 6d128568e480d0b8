"""Gemma 4 without towers: patches, which see each other, enter the decoder by a projection alone."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.gemma4 import MARKERS, TEMPLATE, ids, tokenizer
from families.family import Family, save, text_values
from tiny_models import HIDDEN


def build(directory: Path) -> None:
    words = tokenizer()
    processor = hf.Gemma4UnifiedProcessor(
        hf.Gemma4UnifiedAudioFeatureExtractor(),
        hf.Gemma4UnifiedImageProcessor(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70), words,
        hf.Gemma4UnifiedVideoProcessor(), chat_template=TEMPLATE,
    )  # fmt: skip
    vision = {
        "patch_size": 4, "pooling_kernel_size": 2, "mm_embed_dim": HIDDEN, "mm_posemb_size": 64,
        "output_proj_dims": HIDDEN,
    }  # fmt: skip
    text = text_values(
        words, sliding_window=64, layer_types=["sliding_attention", "full_attention"],
        use_bidirectional_attention="vision", global_head_dim=16,
    )  # fmt: skip
    config = hf.Gemma4UnifiedConfig(text_config=text, vision_config=vision, audio_config=None, **ids(words))
    save(directory, hf.Gemma4UnifiedForConditionalGeneration, config, processor)


GEMMA4_UNIFIED: Final = Family(
    name="gemma4_unified", build=build, markers=MARKERS, parts=("projector", "language_model")
)
