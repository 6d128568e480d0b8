"""MiniCPM-V 4.7, whose positions are places on the image's canvas, and MiniCPM-OCR."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.minicpmv4_6 import NAMED
from families.builders.qwen import ROPE, template
from families.family import LAYERS, Family, chatml_tokenizer, save, text_values

VISION: Final = {**LAYERS, "image_size": 64, "patch_size": 4, "insert_layer_id": 0}
CUT: Final = {"patch_size": 4, "scale_resolution": 32}
TEMPLATE: Final = template("<|image_pad|>\n")


def build_v4_7(directory: Path) -> None:
    tokenizer = chatml_tokenizer(**NAMED)
    processor = hf.MiniCPMV4_7Processor(
        image_processor=hf.MiniCPMV4_6ImageProcessor(**CUT), tokenizer=tokenizer,
        video_processor=hf.MiniCPMV4_6VideoProcessor(), chat_template=TEMPLATE,
    )  # fmt: skip
    ends = {f"{part}_{end}_id": getattr(tokenizer, f"{part}_{end}_token_id")
            for part in ("image", "slice") for end in ("start", "end")}  # fmt: skip
    (newline,) = tokenizer.encode("\n", add_special_tokens=False)
    config = hf.MiniCPMV4_7Config(
        text_config=text_values(
            tokenizer, model_type="qwen3_5_text", layer_types=["linear_attention", "full_attention"],
            linear_key_head_dim=16, linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=2,
            rope_parameters={**ROPE, "partial_rotary_factor": 1.0},
        ),
        vision_config=VISION, image_token_id=tokenizer.image_token_id, video_token_id=tokenizer.video_token_id,
        insert_layer_id=0, newline_id=newline, **ends,
    )  # fmt: skip
    save(directory, hf.MiniCPMV4_7ForConditionalGeneration, config, processor)


def build_ocr(directory: Path) -> None:
    tokenizer = chatml_tokenizer(**NAMED)
    processor = hf.MiniCPMOcrProcessor(
        image_processor=hf.MiniCPMOcrImageProcessor(**CUT, downsample_mode="16x"), tokenizer=tokenizer,
        video_processor=hf.MiniCPMOcrVideoProcessor(), chat_template=TEMPLATE,
    )  # fmt: skip
    config = hf.MiniCPMOcrConfig(
        text_config=text_values(tokenizer, model_type="qwen3"), vision_config=VISION, downsample_mode="16x",
        image_token_id=tokenizer.image_token_id, video_token_id=tokenizer.video_token_id, insert_layer_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip
    save(directory, hf.MiniCPMOcrForConditionalGeneration, config, processor)


MARKERS: Final = ("<image>", "<|image_pad|>", "</image>")
MINICPMV4_7: Final = Family(
    name="minicpmv4_7", build=build_v4_7, markers=MARKERS, rows_of_a_step=1,
    one_by_one="its forward fails on two rows",
)  # fmt: skip
MINICPM_OCR: Final = Family(
    name="minicpm_ocr", build=build_ocr, markers=MARKERS, rows_of_a_step=1,
    one_by_one="its forward fails on two rows",
)  # fmt: skip
