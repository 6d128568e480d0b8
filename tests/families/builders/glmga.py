"""GLM-GA: GLM-4.6V's model and processor with an image processor and a config of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.glm import BEGIN, END, GLM_ROPE, PATCHES, TEMPLATE, VISION, ids, tokenizer
from families.builders.qwen import text
from families.family import Family, save


def build(directory: Path) -> None:
    words = tokenizer()
    processor = hf.Glm46VProcessor(
        hf.GlmgaImageProcessor(**PATCHES), words, hf.GlmgaVideoProcessor(), chat_template=TEMPLATE
    )
    config = hf.GlmgaConfig(
        text_config={"model_type": "glm4v_text", **text(words, rope_parameters=GLM_ROPE)},
        vision_config={"model_type": "glm4v_vision", **VISION}, **ids(words),
    )  # fmt: skip
    save(directory, hf.Glm46VForConditionalGeneration, config, processor)


GLMGA: Final = Family(name="glmga", build=build, markers=("<|image|>",), around=(BEGIN, END))
