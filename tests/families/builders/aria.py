"""Aria: a mixture of experts that reads a few queries of each image."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import template
from families.family import LAYERS, Family, chatml_tokenizer, save, text_values


def build(directory: Path) -> None:
    tokenizer = chatml_tokenizer("<fim_prefix>", "<fim_suffix>", image_token="<|img|>")
    processor = hf.AriaProcessor(
        hf.AriaImageProcessor(max_image_size=980, min_image_size=336), tokenizer,
        chat_template=template("<fim_prefix><|img|><fim_suffix>"), size_conversion={490: 4, 980: 4},
    )  # fmt: skip
    config = hf.AriaConfig(
        vision_config={"model_type": "idefics3_vision", **LAYERS, "image_size": 980, "patch_size": 140},
        text_config={**text_values(tokenizer), "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
        projector_patch_to_query_dict={49: 4}, image_token_index=tokenizer.image_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    save(directory, hf.AriaForConditionalGeneration, config, processor)


ARIA: Final = Family(name="aria", build=build, markers=("<|img|>",), around=("<fim_prefix>", "<fim_suffix>"))
