"""GLM-5-Next: GLM-V's images; a layer of linear attention and one whose indexer chooses what a token attends to."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.glm import BEGIN, END, TEMPLATE, VISION, ids, tokenizer
from families.family import Family, save, text_values


def build(directory: Path) -> None:
    words = tokenizer()
    processor = hf.Glm5NextProcessor(
        hf.Glm5NextImageProcessor(patch_size=4, min_image_tokens=1, max_image_tokens=16), words,
        hf.Glm5NextVideoProcessor(), chat_template=TEMPLATE,
    )  # fmt: skip
    text = text_values(
        words, num_key_value_heads=2, moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2,
        kv_lora_rank=16, q_lora_rank=16, v_head_dim=16, qk_nope_head_dim=16, index_topk=512, index_head_dim=16,
        index_n_heads=8, index_kpool=4, linear_head_dim=16, linear_num_heads=2, hc_mult=2,
        layer_types=["linear_attention", "indexed_attention"], mlp_layer_types=["dense", "sparse"],
    )  # fmt: skip
    del text["head_dim"]
    config = hf.Glm5NextConfig(
        text_config=text, vision_config={**VISION, "projection_intermediate_size": 64}, **ids(words)
    )
    save(directory, hf.Glm5NextForConditionalGeneration, config, processor)


GLM5_NEXT: Final = Family(name="glm5_next", build=build, markers=("<|image|>",), around=(BEGIN, END))
