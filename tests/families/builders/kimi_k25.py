"""Kimi K2.5: DeepSeek's decoder with latent attention and experts, images in patches of their own grid."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import template
from families.family import LAYERS, Family, chatml_tokenizer, save, text_values
from tiny_models import HIDDEN

_BEGIN, _CONTENT, _END = "<|media_begin|>", "<|media_content|>", "<|media_end|>"


def build(directory: Path) -> None:
    tokenizer = chatml_tokenizer(
        _BEGIN, _CONTENT, _END, image_token="<|media_pad|>", video_token="<|kimi_k25_video_placeholder|>"
    )
    processor = hf.Kimi_K25Processor(
        hf.Kimi_K25ImageProcessor(patch_size=4, size={"max_height": 32, "max_width": 32}), tokenizer,
        hf.Kimi_K25VideoProcessor(),
        chat_template=template(f"{_BEGIN}image{_CONTENT}<|media_pad|>{_END}"),
    )  # fmt: skip
    text = text_values(
        tokenizer, model_type="deepseek_v3", moe_intermediate_size=32, num_key_value_heads=2, n_routed_experts=4,
        n_shared_experts=1, num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1, kv_lora_rank=16,
        q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16,
    )  # fmt: skip
    del text["head_dim"]
    vision = {**LAYERS, "patch_size": 4, "pos_emb_height": 8, "pos_emb_width": 8}
    config = hf.Kimi_K25Config(
        text_config=text, vision_config=vision, projection_hidden_size=HIDDEN, tie_word_embeddings=False,
        image_token_id=tokenizer.image_token_id, video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.convert_tokens_to_ids(_BEGIN),
        vision_end_token_id=tokenizer.convert_tokens_to_ids(_END),
    )  # fmt: skip
    save(directory, hf.Kimi_K25ForConditionalGeneration, config, processor)


KIMI_K25: Final = Family(
    name="kimi_k25", build=build, markers=("<|media_pad|>",), around=(f"{_BEGIN}image{_CONTENT}", _END)
)
