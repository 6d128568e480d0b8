"""Qwen's mixtures of experts, which route every token to some of their decoder's experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import transformers as hf

from families.builders.qwen import DEEPSTACK, END, IMAGE, ROPE, START, TOWER, ids, qwen3_processor, text, tokenizer
from families.family import Family, save

EXPERTS: Final[dict[str, Any]] = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1,
}  # fmt: skip


def build_qwen3_vl_moe(directory: Path, **more: Any) -> None:
    """Images enter as in Qwen3-VL; `more` are values of the decoder's config."""
    words = tokenizer()
    config = hf.Qwen3VLMoeConfig(
        text_config={**text(words, head_dim=16, **EXPERTS), **more}, vision_config=DEEPSTACK, **ids(words)
    )
    save(directory, hf.Qwen3VLMoeForConditionalGeneration, config, qwen3_processor(words))


def build_qwen3_5_moe(directory: Path) -> None:
    words = tokenizer()
    values = text(
        words, linear_key_head_dim=16, linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=2,
        layer_types=["linear_attention", "full_attention"], head_dim=16, shared_expert_intermediate_size=32,
        rope_parameters={**ROPE, "partial_rotary_factor": 1.0}, moe_intermediate_size=32,
        num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    del values["intermediate_size"]
    config = hf.Qwen3_5MoeConfig(
        text_config=values, vision_config={**TOWER, "num_position_embeddings": 64}, **ids(words)
    )
    save(directory, hf.Qwen3_5MoeForConditionalGeneration, config, qwen3_processor(words))


QWEN3_VL_MOE: Final = Family(name="qwen3_vl_moe", build=build_qwen3_vl_moe, markers=(IMAGE,), around=(START, END))
QWEN3_5_MOE: Final = Family(name="qwen3_5_moe", build=build_qwen3_5_moe, markers=(IMAGE,), around=(START, END))
