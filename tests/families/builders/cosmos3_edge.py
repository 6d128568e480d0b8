"""Cosmos 3 Edge: images of any size in blocks of patches, positions of three axes, squared ReLU."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import END, IMAGE, PATCHES, ROPE, START, ids, template, tokenizer
from families.family import LAYERS, Family, save, text_values
from tiny_models import HIDDEN


def build(directory: Path) -> None:
    words = tokenizer()
    processor = hf.Cosmos3EdgeProcessor(
        hf.Cosmos3EdgeImageProcessor(**PATCHES), words, hf.Cosmos3EdgeVideoProcessor(), chat_template=template()
    )
    config = hf.Cosmos3EdgeConfig(
        text_config=text_values(words, rope_parameters=ROPE),
        vision_config={**LAYERS, "patch_size": 4, "num_patches": 64}, projector_hidden_size=HIDDEN, **ids(words),
    )  # fmt: skip
    save(directory, hf.Cosmos3EdgeForConditionalGeneration, config, processor)


COSMOS3_EDGE: Final = Family(name="cosmos3_edge", build=build, markers=(IMAGE,), around=(START, END))
