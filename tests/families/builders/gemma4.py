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


TEMPLATE: Final = chat("<|image|>", begin="<bos>", user="<|turn>user\n", assistant="<|turn>model\n", end="<turn|>\n")
MARKERS: Final = ("<|image>", "<|image|>", "<image|>")


def tokenizer() -> hf.PreTrainedTokenizerFast:
    """With Gemma 4's tokens of turns, images, audio and videos."""
    return train_tokenizer(
        bos="<bos>", eos="<eos>", pad="<pad>", add_bos=True, named=_NAMED,
        special=["<|turn>", "<turn|>", "<|video|>", *_NAMED.values()],
    )  # fmt: skip


def ids(words: hf.PreTrainedTokenizerFast) -> dict[str, int]:
    """What the configs call the tokens."""
    names = {"image_token_id": "<|image|>", "video_token_id": "<|video|>", "audio_token_id": "<|audio|>",
             "boi_token_id": "<|image>", "eoi_token_id": "<image|>"}  # fmt: skip
    return {name: int(words.convert_tokens_to_ids(token)) for name, token in names.items()}


def build(directory: Path) -> None:
    words = tokenizer()
    processor = hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(), hf.Gemma4ImageProcessor(
            patch_size=4, pooling_kernel_size=2, max_soft_tokens=70
        ), words, hf.Gemma4VideoProcessor(), chat_template=TEMPLATE,
    )  # fmt: skip
    vision = {
        **LAYERS, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "pooling_kernel_size": 2,
        "position_embedding_size": 64,
    }  # fmt: skip
    text = text_values(
        words, sliding_window=64, layer_types=["sliding_attention", "full_attention"],
        hidden_size_per_layer_input=8, use_bidirectional_attention="vision", vocab_size_per_layer_input=len(words),
        global_head_dim=16,
    )  # fmt: skip
    config = hf.Gemma4Config(text_config=text, vision_config=vision, audio_config=None, **ids(words))
    save(directory, hf.Gemma4ForConditionalGeneration, config, processor)


GEMMA4: Final = Family(name="gemma4", build=build, markers=MARKERS)
