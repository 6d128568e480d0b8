"""GLM-V: Qwen's patches and positions, markers of begin and end by the chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import ROPE, TOWER, text
from families.family import Family, chat, save
from tiny_models import train_tokenizer

BEGIN, END = "<|begin_of_image|>", "<|end_of_image|>"
_NAMED: Final = {"image_token": "<|image|>", "video_token": "<|video|>"}
PATCHES: Final = {"patch_size": 4, "size": {"shortest_edge": 2 * 8 * 8, "longest_edge": 2 * 32 * 32}}
"""Two frames are counted for an image."""


def tokenizer() -> hf.PreTrainedTokenizerFast:
    """With GLM's tokens of turns, images and videos."""
    special = ["<|user|>", "<|assistant|>", BEGIN, END, "<|begin_of_video|>", "<|end_of_video|>", *_NAMED.values()]
    return train_tokenizer(
        bos="[gMASK]", eos="<|endoftext|>", pad="<|pad|>", add_bos=False, special=special, named=_NAMED
    )


def build_glm4v(directory: Path) -> None:
    words = tokenizer()
    template = chat(
        f"{BEGIN}<|image|>{END}", begin="[gMASK]", user="<|user|>\n", assistant="<|assistant|>\n", end="<|endoftext|>"
    )
    processor = hf.Glm4vProcessor(
        hf.Glm4vImageProcessor(**PATCHES), words, hf.Glm4vVideoProcessor(), chat_template=template
    )
    names = {"image_token_id": "<|image|>", "video_token_id": "<|video|>", "image_start_token_id": BEGIN,
             "image_end_token_id": END, "video_start_token_id": "<|begin_of_video|>",
             "video_end_token_id": "<|end_of_video|>"}  # fmt: skip
    config = hf.Glm4vConfig(
        text_config=text(words, rope_parameters={**ROPE, "partial_rotary_factor": 1.0}),
        vision_config={**TOWER, "image_size": 24},
        **{name: words.convert_tokens_to_ids(token) for name, token in names.items()},
    )
    save(directory, hf.Glm4vForConditionalGeneration, config, processor)


GLM4V: Final = Family(name="glm4v", build=build_glm4v, markers=("<|image|>",), around=(BEGIN, END))
