"""Gemma 4: images of any size in pooled patches, which see each other; an embedding beside every layer."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.family import LAYERS, Family, chat, save, text_values
from tiny_models import train_tokenizer

_NAMED: Final = {
    "boi_token": "<|image>", "image_token": "<|image|>", "eoi_token": "<image|>", "boa_token": "<|audio>",
    "audio_token": "<|audio|>", "eoa_token": "<audio|>",
}  # fmt: skip


def build(directory: Path) -> None:
    tokenizer = train_tokenizer(
        bos="<bos>", eos="<eos>", pad="<pad>", add_bos=True, named=_NAMED,
        special=["<|turn>", "<turn|>", "<|video|>", *_NAMED.values()],
    )  # fmt: skip
    template = chat("<|image|>", begin="<bos>", user="<|turn>user\n", assistant="<|turn>model\n", end="<turn|>\n")
    processor = hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(), hf.Gemma4ImageProcessor(
            patch_size=4, pooling_kernel_size=2, max_soft_tokens=70
        ), tokenizer, hf.Gemma4VideoProcessor(), chat_template=template,
    )  # fmt: skip
    words = len(tokenizer)
    vision = {
        **LAYERS, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "pooling_kernel_size": 2,
        "position_embedding_size": 64,
    }  # fmt: skip
    text = text_values(
        tokenizer, sliding_window=64, layer_types=["sliding_attention", "full_attention"],
        hidden_size_per_layer_input=8, use_bidirectional_attention="vision", vocab_size_per_layer_input=words,
        global_head_dim=16,
    )  # fmt: skip
    tokens = {"image_token_id": "<|image|>", "video_token_id": "<|video|>", "audio_token_id": "<|audio|>",
              "boi_token_id": "<|image>", "eoi_token_id": "<image|>"}  # fmt: skip
    config = hf.Gemma4Config(
        text_config=text, vision_config=vision, audio_config=None,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()},
    )  # fmt: skip
    save(directory, hf.Gemma4ForConditionalGeneration, config, processor)


GEMMA4: Final = Family(name="gemma4", build=build, markers=("<|image>", "<|image|>", "<image|>"))
