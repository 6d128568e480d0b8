"""Models that take Qwen's images: Cosmos 3 Omni's reasoner and HyperCLOVA X Vision V2."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import END, IMAGE, PATCHES, START, TOWER, ids, qwen3_processor, template, text, tokenizer
from families.family import Family, save, text_values


def build_cosmos3_omni(directory: Path) -> None:
    words = tokenizer()
    vision = {**TOWER, "depth": 3, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
              "model_type": "qwen3_vl_vision"}  # fmt: skip
    config = hf.Cosmos3OmniConfig(
        text_config={**text(words, head_dim=16), "model_type": "qwen3_vl_text"}, vision_config=vision, **ids(words)
    )
    save(directory, hf.Cosmos3OmniForConditionalGeneration, config, qwen3_processor(words))


def build_hyperclovax(directory: Path) -> None:
    words = tokenizer()
    processor = hf.HyperCLOVAXVisionV2Processor(
        hf.Qwen2VLImageProcessor(**PATCHES), words, hf.Qwen2VLVideoProcessor(), chat_template=template()
    )
    vision = {**TOWER, "window_size": 16, "fullatt_block_indexes": [1], "model_type": "qwen2_5_vl_vision"}
    config = hf.HyperCLOVAXVisionV2Config(
        text_config=text_values(words, model_type="hyperclovax"), vision_config=vision, tie_word_embeddings=False,
        image_token_id=ids(words)["image_token_id"], video_token_id=ids(words)["video_token_id"],
    )  # fmt: skip
    save(directory, hf.HyperCLOVAXVisionV2ForConditionalGeneration, config, processor)


COSMOS3_OMNI: Final = Family(name="cosmos3_omni", build=build_cosmos3_omni, markers=(IMAGE,), around=(START, END))
HYPERCLOVAX: Final = Family(
    name="hyperclovax_vision_v2", build=build_hyperclovax, markers=(IMAGE,), around=(START, END)
)
