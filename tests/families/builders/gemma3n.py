"""Gemma 3n: timm's MobileNet for a tower, an embedding beside every layer, a vocabulary of its own for images."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.family import Family, chat, save, text_values
from tiny_models import train_tokenizer

_NAMED: Final = {
    "boi_token": "<start_of_image>", "image_token": "<image_soft_token>", "eoi_token": "<end_of_image>",
    "boa_token": "<start_of_audio>", "audio_token": "<audio_soft_token>", "eoa_token": "<end_of_audio>",
}  # fmt: skip


def build(directory: Path) -> None:
    tokenizer = train_tokenizer(
        bos="<bos>", eos="<eos>", pad="<pad>", add_bos=True, named=_NAMED,
        special=["<start_of_turn>", "<end_of_turn>", *_NAMED.values()],
    )  # fmt: skip
    template = chat(
        "<image_soft_token>", begin="<bos>", user="<start_of_turn>user\n", assistant="<start_of_turn>model\n",
        end="<end_of_turn>\n",
    )  # fmt: skip
    processor = hf.Gemma3nProcessor(
        hf.Gemma3nAudioFeatureExtractor(), hf.SiglipImageProcessor(size={"height": 64, "width": 64}), tokenizer,
        chat_template=template, image_seq_length=4,
    )  # fmt: skip
    words = len(tokenizer)
    text = text_values(
        tokenizer, vocab_size=words + 16, vocab_size_per_layer_input=words, sliding_window=512,
        layer_types=["sliding_attention", "full_attention"], hidden_size_per_layer_input=8, altup_num_inputs=2,
        num_kv_shared_layers=0, laurel_rank=8, activation_sparsity_pattern=[0.0, 0.0],
    )  # fmt: skip
    tower = {
        "architecture": "mobilenetv5_300m_enc", "hidden_size": 2048, "vocab_size": 8, "vocab_offset": words,
        "model_args": {"channel_multiplier": 0.0625, "msfa_output_resolution": 2},
    }  # fmt: skip
    audio = {
        "vocab_size": 8, "vocab_offset": words + 8, "input_feat_size": 16, "hidden_size": 32,
        "conf_num_attention_heads": 2, "conf_num_hidden_layers": 1, "sscp_conv_channel_size": [8, 8],
    }  # fmt: skip
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in _NAMED.items()}
    config = hf.Gemma3nConfig(
        text_config=text, vision_config=tower, audio_config=audio, vision_soft_tokens_per_image=4, **ids
    )
    save(directory, hf.Gemma3nForConditionalGeneration, config, processor)


GEMMA3N: Final = Family(
    name="gemma3n", build=build, markers=("<start_of_image>", "<image_soft_token>", "<end_of_image>")
)
