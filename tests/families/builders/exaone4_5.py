"""EXAONE 4.5: Qwen2.5-VL's images in a decoder with plain positions and a sliding window."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import END, IMAGE, PATCHES, START, TOWER, VIDEO, template, tokenizer
from families.family import Family, save, text_values


def build(directory: Path) -> None:
    words = tokenizer()
    processor = hf.Exaone4_5_Processor(
        hf.Qwen2VLImageProcessor(**PATCHES), words, hf.Qwen2VLVideoProcessor(), chat_template=template()
    )
    text = text_values(
        words, model_type="exaone4", sliding_window=8, sliding_window_pattern=2,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    config = hf.Exaone4_5_Config(
        text_config=text,
        vision_config={**TOWER, "num_key_value_heads": 1, "window_size": 16, "fullatt_block_indexes": [1]},
        image_token_id=words.convert_tokens_to_ids(IMAGE), video_token_id=words.convert_tokens_to_ids(VIDEO),
    )  # fmt: skip
    save(directory, hf.Exaone4_5_ForConditionalGeneration, config, processor)


EXAONE4_5: Final = Family(name="exaone4_5", build=build, markers=(IMAGE,), around=(START, END))
