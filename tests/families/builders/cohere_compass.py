"""Cohere Compass: Qwen3-VL's images with features of several vision layers, in Cohere's decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import PATCHES, ROPE, TOWER, template, text
from families.family import Family, chatml_tokenizer, save

START, END, IMAGE, VIDEO = "<|VISION_START|>", "<|VISION_END|>", "<|IMAGE_PAD|>", "<|VIDEO_PAD|>"


def build(directory: Path) -> None:
    words = chatml_tokenizer(START, END, IMAGE, VIDEO)
    processor = hf.CohereCompassProcessor(
        hf.CohereCompassImageProcessor(**PATCHES), words, hf.CohereCompassVideoProcessor(),
        chat_template=template(f"{START}{IMAGE}{END}"),
    )  # fmt: skip
    types = ["sliding_attention", "full_attention"]
    values = text(
        words, logit_scale=1.0, sliding_window=8, layer_types=types, rope_parameters=dict.fromkeys(types, ROPE)
    )
    vision = {**TOWER, "depth": 3, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    names = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START,
             "vision_end_token_id": END}  # fmt: skip
    config = hf.CohereCompassConfig(
        text_config=values, vision_config=vision,
        **{name: words.convert_tokens_to_ids(token) for name, token in names.items()},
    )  # fmt: skip
    save(directory, hf.CohereCompassForConditionalGeneration, config, processor)


COHERE_COMPASS: Final = Family(name="cohere_compass", build=build, markers=(IMAGE,), around=(START, END))
