"""Qwen 4's experiment: residual streams, embeddings of n-grams, attention to the tokens that an indexer picks."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import (
    END,
    IMAGE,
    ROPE,
    START,
    TOWER,
    ids,
    qwen3_processor,
    text,
    tokenizer,
)
from families.family import Family, save
from tiny_models import HIDDEN


def build(directory: Path) -> None:
    words = tokenizer()
    values = text(
        words, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
        shared_expert_intermediate_size=32, linear_key_head_dim=16, linear_value_head_dim=16, linear_num_key_heads=2,
        linear_num_value_heads=2, layer_types=["linear_attention", "indexed_attention"], hc_count=2, hc_lowrank=8,
        ple_layer_ids=[1], ngram_vocab_size_base=50, heads_per_ngram=2, split_ngram_parts=4,
        make_ngram_vocab_size_divisible_by=4, ple_embed_dim=HIDDEN, indexer_n_heads=8, indexer_kv_heads=1,
        indexer_head_dim=16, indexer_budget=8, indexer_compress_ratio=4,
        rope_parameters={**ROPE, "partial_rotary_factor": 1.0},
    )  # fmt: skip
    del values["intermediate_size"]
    config = hf.Qwen4ExpConfig(text_config=values, vision_config={**TOWER, "num_position_embeddings": 64}, **ids(words))
    save(directory, hf.Qwen4ExpForConditionalGeneration, config, qwen3_processor(words))


QWEN4_EXP: Final = Family(name="qwen4_exp", build=build, markers=(IMAGE,), around=(START, END))
