"""MiniCPM-V 4.6: slices and the whole image, each between markers, over Qwen 3."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import template
from families.family import LAYERS, Family, chatml_tokenizer, save, text_values

NAMED: Final = {
    "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "image_start_token": "<image>",
    "image_end_token": "</image>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
}  # fmt: skip


def build(directory: Path) -> None:
    tokenizer = chatml_tokenizer(**NAMED)
    processor = hf.MiniCPMV4_6Processor(
        image_processor=hf.MiniCPMV4_6ImageProcessor(patch_size=4, scale_resolution=32), tokenizer=tokenizer,
        video_processor=hf.MiniCPMV4_6VideoProcessor(), chat_template=template("<|image_pad|>\n"),
    )  # fmt: skip
    config = hf.MiniCPMV4_6Config(
        text_config=text_values(tokenizer, model_type="qwen3"),
        vision_config={**LAYERS, "image_size": 64, "patch_size": 4, "insert_layer_id": 0},
        image_token_id=tokenizer.image_token_id, video_token_id=tokenizer.video_token_id, insert_layer_id=0,
    )  # fmt: skip
    save(directory, hf.MiniCPMV4_6ForConditionalGeneration, config, processor)


MINICPMV4_6: Final = Family(
    name="minicpmv4_6", build=build, markers=("<image>", "<|image_pad|>", "</image>"), rows_of_a_step=1,
    one_by_one="its forward fails on two rows",
)  # fmt: skip
