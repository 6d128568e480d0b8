"""Qianfan-OCR: InternVL's tiles, for which its chat template writes a placeholder of plain text."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import template
from families.family import LAYERS, Family, chatml_tokenizer, save, text_values

_NAMED: Final = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}


def build(directory: Path) -> None:
    tokenizer = chatml_tokenizer(**_NAMED)
    processor = hf.QianfanOCRProcessor(
        hf.GotOcr2ImageProcessor(size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer, image_seq_length=4, chat_template=template("<image>\n"),
    )  # fmt: skip
    config = hf.QianfanOCRConfig(
        vision_config={**LAYERS, "image_size": (16, 16), "patch_size": (4, 4), "drop_path_rate": 0.0},
        text_config={"model_type": "qwen3", **text_values(tokenizer)},
        image_token_id=tokenizer.context_image_token_id, image_seq_length=4,
    )  # fmt: skip
    save(directory, hf.QianfanOCRForConditionalGeneration, config, processor)


QIANFAN_OCR: Final = Family(name="qianfan_ocr", build=build, markers=("<img>", "<IMG_CONTEXT>", "</img>"))
