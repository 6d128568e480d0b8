"""Deepseek-VL with a second tower for high resolution, and Janus, its kin."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.family import LAYERS, Family, chat, save, text_values
from tiny_models import HIDDEN, train_tokenizer

_IMAGE: Final = "<image_placeholder>"


def build_deepseek_vl_hybrid(directory: Path) -> None:
    tokenizer = train_tokenizer(
        bos="<|begin|>", eos="<|end|>", pad="<pad>", add_bos=True, special=[_IMAGE], named={"image_token": _IMAGE}
    )
    template = chat(_IMAGE, begin="<|begin|>", user="User: ", assistant="Assistant: ", end="<|end|>")
    pixels = hf.DeepseekVLHybridImageProcessor(
        size={"height": 32, "width": 32}, high_res_size={"height": 64, "width": 64}, min_size=4
    )
    processor = hf.DeepseekVLHybridProcessor(pixels, tokenizer, chat_template=template, num_image_tokens=4)
    config = hf.DeepseekVLHybridConfig(
        text_config=hf.LlamaConfig(**text_values(tokenizer)),
        vision_config=hf.SiglipVisionConfig(**LAYERS, image_size=32, patch_size=16, vision_use_head=False),
        high_res_vision_config={
            "model_type": "sam_vision_model", "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 2, "mlp_dim": 64, "output_channels": 16, "window_size": 4,
            "global_attn_indexes": [1], "num_pos_feats": 16,
        },
        image_token_id=tokenizer.image_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    save(directory, hf.DeepseekVLHybridForConditionalGeneration, config, processor)


def build_janus(directory: Path) -> None:
    named = {"image_token": _IMAGE, "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = train_tokenizer(
        bos="<|begin|>", eos="<|end|>", pad="<pad>", add_bos=True, special=[*named.values()], named=named
    )
    template = chat(f"{_IMAGE}\n", begin="<|begin|>", user="<|User|>: ", assistant="<|Assistant|>: ", end="<|end|>")
    processor = hf.JanusProcessor(
        hf.JanusImageProcessor(size={"height": 16, "width": 16}, min_size=4), tokenizer, chat_template=template,
        num_image_tokens=4,
    )  # fmt: skip
    vision = {
        "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
        "projection_dim": HIDDEN, "num_image_tokens": 4, "mlp_ratio": 2.0,
    }  # fmt: skip
    codes = {
        "embed_dim": 4, "num_embeddings": 32, "latent_channels": 4, "base_channels": 32, "channel_multiplier": [1, 1],
        "num_res_blocks": 1, "projection_dim": HIDDEN, "num_hidden_layers": 1, "image_token_embed_dim": HIDDEN,
        "num_patches": 2,
    }  # fmt: skip
    config = hf.JanusConfig(
        text_config=hf.LlamaConfig(**text_values(tokenizer)), vision_config=vision, vq_config=codes,
        image_token_id=tokenizer.image_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    save(directory, hf.JanusForConditionalGeneration, config, processor)


DEEPSEEK_VL_HYBRID: Final = Family(name="deepseek_vl_hybrid", build=build_deepseek_vl_hybrid, markers=(_IMAGE,))
JANUS: Final = Family(name="janus", build=build_janus, markers=("<begin_of_image>", _IMAGE, "<end_of_image>"))
