"""GLM-V: Qwen's patches and positions, markers of begin and end by the chat template."""

from __future__ import annotations

from collections.abc import Callable
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


TEMPLATE: Final = chat(
    f"{BEGIN}<|image|>{END}", begin="[gMASK]", user="<|user|>\n", assistant="<|assistant|>\n", end="<|endoftext|>"
)
GLM_ROPE: Final = {**ROPE, "partial_rotary_factor": 1.0}
VISION: Final = {**TOWER, "image_size": 24}


def ids(words: hf.PreTrainedTokenizerFast) -> dict[str, int]:
    """What the configs call the tokens."""
    names = {"image_token_id": "<|image|>", "video_token_id": "<|video|>", "image_start_token_id": BEGIN,
             "image_end_token_id": END, "video_start_token_id": "<|begin_of_video|>",
             "video_end_token_id": "<|end_of_video|>"}  # fmt: skip
    return {name: int(words.convert_tokens_to_ids(token)) for name, token in names.items()}


def _processor(words: hf.PreTrainedTokenizerFast) -> hf.Glm4vProcessor:
    return hf.Glm4vProcessor(hf.Glm4vImageProcessor(**PATCHES), words, hf.Glm4vVideoProcessor(), chat_template=TEMPLATE)


def _processor_46(words: hf.PreTrainedTokenizerFast) -> hf.Glm46VProcessor:
    return hf.Glm46VProcessor(
        hf.Glm46VImageProcessor(**PATCHES), words, hf.Glm46VVideoProcessor(), chat_template=TEMPLATE
    )


def build_glm4v(directory: Path) -> None:
    words = tokenizer()
    config = hf.Glm4vConfig(text_config=text(words, rope_parameters=GLM_ROPE), vision_config=VISION, **ids(words))
    save(directory, hf.Glm4vForConditionalGeneration, config, _processor(words))


def build_glm4v_moe(directory: Path) -> None:
    words = tokenizer()
    values = text(
        words, rope_parameters=GLM_ROPE, moe_intermediate_size=32, num_experts_per_tok=2, n_routed_experts=4,
        n_shared_experts=1, first_k_dense_replace=1, head_dim=16,
    )  # fmt: skip
    config = hf.Glm4vMoeConfig(text_config=values, vision_config=VISION, **ids(words))
    save(directory, hf.Glm4vMoeForConditionalGeneration, config, _processor(words))


def build_glm46v(directory: Path) -> None:
    words = tokenizer()
    config = hf.Glm46VConfig(
        text_config={"model_type": "glm4v_text", **text(words, rope_parameters=GLM_ROPE)},
        vision_config={"model_type": "glm4v_vision", **VISION}, **ids(words),
    )  # fmt: skip
    save(directory, hf.Glm46VForConditionalGeneration, config, _processor_46(words))


def build_glm_ocr(directory: Path) -> None:
    words = tokenizer()
    config = hf.GlmOcrConfig(
        text_config=text(words, rope_parameters=GLM_ROPE, head_dim=16), vision_config=VISION, **ids(words)
    )
    save(directory, hf.GlmOcrForConditionalGeneration, config, _processor_46(words))


def _family(name: str, build: Callable[[Path], None]) -> Family:
    return Family(name=name, build=build, markers=("<|image|>",), around=(BEGIN, END))


GLM4V: Final = _family("glm4v", build_glm4v)
GLM4V_MOE: Final = _family("glm4v_moe", build_glm4v_moe)
GLM46V: Final = _family("glm46v", build_glm46v)
GLM_OCR: Final = _family("glm_ocr", build_glm_ocr)
