"""Mistral Large 4: Mistral 3's images; an indexer chooses which tokens a token attends to, experts behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.mistral3 import MARKERS, processor
from families.family import LAYERS, Family, save, text_values


def build(directory: Path) -> None:
    made = processor()
    words = made.tokenizer
    text = text_values(
        words, num_key_value_heads=2, moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2,
        kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16, index_topk=512, index_head_dim=16,
        index_n_heads=2, first_k_dense_replace=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    config = hf.MistralLarge4Config(
        vision_config=hf.PixtralVisionConfig(**LAYERS, head_dim=16, image_size=32, patch_size=4), text_config=text,
        image_token_index=words.convert_tokens_to_ids("[IMG]"), spatial_merge_size=2,
    )  # fmt: skip
    save(directory, hf.MistralLarge4ForConditionalGeneration, config, made)


MISTRAL_LARGE4: Final = Family(name="mistral_large4", build=build, markers=MARKERS)
