"""Llama 4: experts, a layer without rotary positions, chunked attention; tiles with separators."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.family import LAYERS, Family, chat, save, text_values
from tiny_models import HIDDEN, train_tokenizer

_MARKERS: Final = ("<|image_start|>", "<|patch|>", "<|image|>", "<|image_end|>")


def build(directory: Path) -> None:
    special = ["<|header_start|>", "<|header_end|>", "<|tile_x_separator|>", "<|tile_y_separator|>", *_MARKERS]
    tokenizer = train_tokenizer(bos="<|begin_of_text|>", eos="<|eot|>", pad="<pad>", special=special, add_bos=True)

    def header(role: str) -> str:
        return f"<|header_start|>{role}<|header_end|>\n\n"

    template = chat(
        "<|image|>", begin="<|begin_of_text|>", user=header("user"), assistant=header("assistant"), end="<|eot|>"
    )
    processor = hf.Llama4Processor(
        hf.Llama4ImageProcessor(size={"height": 16, "width": 16}, max_patches=4), tokenizer, patch_size=4,
        pixel_shuffle_ratio=0.5, chat_template=template,
    )  # fmt: skip
    vision = {
        **LAYERS, "image_size": 16, "patch_size": 4, "vision_output_dim": HIDDEN, "projector_input_dim": HIDDEN,
        "projector_output_dim": HIDDEN, "intermediate_size": 4 * HIDDEN,
    }  # fmt: skip
    text = text_values(
        tokenizer, intermediate_size_mlp=64, num_local_experts=2, attention_chunk_size=32, no_rope_layers=[1, 0],
        interleave_moe_layer_step=1,
    )  # fmt: skip
    ids = {"image_token_index": "<|patch|>", "boi_token_index": "<|image_start|>", "eoi_token_index": "<|image_end|>"}
    config = hf.Llama4Config(
        text_config=text, vision_config=vision,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in ids.items()},
    )  # fmt: skip
    save(directory, hf.Llama4ForConditionalGeneration, config, processor)


LLAMA4: Final = Family(name="llama4", build=build, markers=(*_MARKERS, "<|tile_y_separator|>"))
