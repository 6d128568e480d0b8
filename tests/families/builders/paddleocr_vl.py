"""PaddleOCR-VL: patches of their own grid, positions of three axes, over ERNIE."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import text
from families.family import LAYERS, Family, chat, save
from tiny_models import train_tokenizer

_START, _END, _IMAGE, _VIDEO = "<|IMAGE_START|>", "<|IMAGE_END|>", "<|IMAGE_PLACEHOLDER|>", "<|VIDEO_PLACEHOLDER|>"


def build(directory: Path) -> None:
    named = {"image_token": _IMAGE}
    tokenizer = train_tokenizer(
        bos="<|begin_of_sentence|>", eos="</s>", pad="<pad>", add_bos=False, named=named,
        special=[_START, _END, _IMAGE, _VIDEO],
    )  # fmt: skip
    template = chat(
        f"{_START}{_IMAGE}{_END}", begin="<|begin_of_sentence|>", user="User: ", assistant="\nAssistant:\n", end="</s>"
    )
    processor = hf.PaddleOCRVLProcessor(
        hf.PaddleOCRVLImageProcessor(patch_size=4, size={"shortest_edge": 8 * 8, "longest_edge": 32 * 32}), tokenizer,
        chat_template=template,
    )  # fmt: skip
    names = {"image_token_id": _IMAGE, "video_token_id": _VIDEO, "vision_start_token_id": _START,
             "vision_end_token_id": _END}  # fmt: skip
    config = hf.PaddleOCRVLConfig(
        text_config=text(tokenizer, head_dim=16), vision_config={**LAYERS, "image_size": 16, "patch_size": 4},
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()},
    )  # fmt: skip
    save(directory, hf.PaddleOCRVLForConditionalGeneration, config, processor)


PADDLEOCR_VL: Final = Family(name="paddleocr_vl", build=build, markers=(_IMAGE,), around=(_START, _END))
