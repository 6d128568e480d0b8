"""Qwen's mixtures of experts, which route every token to some of their decoder's experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import transformers as hf

from families.builders.qwen import END, IMAGE, PATCHES, START, TOWER, ids, template, text, tokenizer
from families.family import Family, save

EXPERTS: Final[dict[str, Any]] = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1,
}  # fmt: skip


def build_qwen3_vl_moe(directory: Path, **more: Any) -> None:
    """Images enter as in Qwen3-VL; `more` are values of the decoder's config."""
    words = tokenizer()
    processor = hf.Qwen3VLProcessor(
        hf.Qwen2VLImageProcessor(**PATCHES), words, hf.Qwen3VLVideoProcessor(), chat_template=template()
    )
    vision = {**TOWER, "depth": 3, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    config = hf.Qwen3VLMoeConfig(
        text_config={**text(words, head_dim=16, **EXPERTS), **more}, vision_config=vision, **ids(words)
    )
    save(directory, hf.Qwen3VLMoeForConditionalGeneration, config, processor)


QWEN3_VL_MOE: Final = Family(name="qwen3_vl_moe", build=build_qwen3_vl_moe, markers=(IMAGE,), around=(START, END))
