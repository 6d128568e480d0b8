"""Ovis 2: an image's features are mixtures over a visual vocabulary, its markers entries of that too."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import template
from families.family import LAYERS, Family, chatml_tokenizer, save, text_values
from tiny_models import HIDDEN

_INDICATORS: Final = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")


def build(directory: Path) -> None:
    tokenizer = chatml_tokenizer("<image>", "<IMG_ATOM>", *_INDICATORS)
    processor = hf.Ovis2Processor(
        hf.Ovis2ImageProcessor(size={"height": 16, "width": 16}, crop_to_patches=True, max_patches=4), tokenizer,
        image_seq_length=4, chat_template=template("<image>\n"),
    )  # fmt: skip
    vision = {**LAYERS, "image_size": 16, "patch_size": 4, "vocab_size": 40, "hidden_stride": 2,
              "num_visual_indicator_tokens": 5}  # fmt: skip
    config = hf.Ovis2Config(
        vision_config=vision, text_config=hf.Qwen2Config(**text_values(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(list(_INDICATORS)), vocab_size=len(tokenizer),
        hidden_size=HIDDEN, tie_word_embeddings=False,
    )  # fmt: skip
    save(directory, hf.Ovis2ForConditionalGeneration, config, processor)


OVIS2: Final = Family(name="ovis2", build=build, markers=("<IMG_START>", "<IMG_ATOM>", "<IMG_GRID>", "<IMG_END>"))
