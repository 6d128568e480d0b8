"""Qwen's vision-language models: images of any size in patches of their own grid, positions of three axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import transformers as hf

from families.family import Family, chat, chatml_tokenizer, save, text_values
from tiny_models import HIDDEN

START, END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
PATCHES: Final = {"patch_size": 4, "size": {"shortest_edge": 8 * 8, "longest_edge": 32 * 32}}
"""2 x 2 patches of 4 x 4 pixels make a token; an image has at most 1024 pixels, 16 tokens."""
ROPE: Final = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
TOWER: Final[dict[str, Any]] = {
    "depth": 2, "hidden_size": HIDDEN, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": HIDDEN,
    "patch_size": 4,
}  # fmt: skip
DEEPSTACK: Final = {**TOWER, "depth": 3, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
"""Features of several vision layers enter several layers of the decoder."""


def tokenizer() -> hf.PreTrainedTokenizerFast:
    """With Qwen's tokens of turns and images."""
    return chatml_tokenizer(START, END, IMAGE, VIDEO)


def template(image: str = f"{START}{IMAGE}{END}") -> str:
    """ChatML with the tokens that stand around an image."""
    return chat(image, user="<|im_start|>user\n", assistant="<|im_start|>assistant\n", end="<|im_end|>\n")


def ids(words: hf.PreTrainedTokenizerFast) -> dict[str, int]:
    """What the configs call the tokens."""
    names = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START,
             "vision_end_token_id": END}  # fmt: skip
    return {name: int(words.convert_tokens_to_ids(token)) for name, token in names.items()}


def text(words: hf.PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """A decoder with positions of three axes."""
    values = text_values(words, rope_parameters=ROPE)
    del values["head_dim"]
    return {**values, **more}


def build_qwen2_vl(directory: Path) -> None:
    words = tokenizer()
    vision = {"depth": 2, "embed_dim": HIDDEN, "hidden_size": HIDDEN, "mlp_ratio": 2, "num_heads": 2, "patch_size": 4}
    processor = hf.Qwen2VLProcessor(
        hf.Qwen2VLImageProcessor(**PATCHES), words, hf.Qwen2VLVideoProcessor(), chat_template=template()
    )
    config = hf.Qwen2VLConfig(text_config=text(words), vision_config=vision, **ids(words))
    save(directory, hf.Qwen2VLForConditionalGeneration, config, processor)


def build_qwen2_5_vl(directory: Path) -> None:
    words = tokenizer()
    processor = hf.Qwen2_5_VLProcessor(
        hf.Qwen2VLImageProcessor(**PATCHES), words, hf.Qwen2VLVideoProcessor(), chat_template=template()
    )
    vision = {**TOWER, "window_size": 16, "fullatt_block_indexes": [1]}
    config = hf.Qwen2_5_VLConfig(text_config=text(words), vision_config=vision, **ids(words))
    save(directory, hf.Qwen2_5_VLForConditionalGeneration, config, processor)


def qwen3_processor(words: hf.PreTrainedTokenizerFast) -> hf.Qwen3VLProcessor:
    """Qwen3-VL's and that of its mixtures."""
    return hf.Qwen3VLProcessor(
        hf.Qwen2VLImageProcessor(**PATCHES), words, hf.Qwen3VLVideoProcessor(), chat_template=template()
    )


def build_qwen3_vl(directory: Path) -> None:
    words = tokenizer()
    config = hf.Qwen3VLConfig(text_config=text(words, head_dim=16), vision_config=DEEPSTACK, **ids(words))
    save(directory, hf.Qwen3VLForConditionalGeneration, config, qwen3_processor(words))


def build_qwen3_5(directory: Path) -> None:
    """A layer of linear attention beside one of full attention."""
    words = tokenizer()
    values = text(
        words, linear_key_head_dim=16, linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=2,
        layer_types=["linear_attention", "full_attention"], head_dim=16,
        rope_parameters={**ROPE, "partial_rotary_factor": 1.0},
    )  # fmt: skip
    config = hf.Qwen3_5Config(text_config=values, vision_config={**TOWER, "num_position_embeddings": 64}, **ids(words))
    save(directory, hf.Qwen3_5ForConditionalGeneration, config, qwen3_processor(words))


QWEN2_VL: Final = Family(name="qwen2_vl", build=build_qwen2_vl, markers=(IMAGE,), around=(START, END))
QWEN2_5_VL: Final = Family(name="qwen2_5_vl", build=build_qwen2_5_vl, markers=(IMAGE,), around=(START, END))
QWEN3_VL: Final = Family(name="qwen3_vl", build=build_qwen3_vl, markers=(IMAGE,), around=(START, END))
QWEN3_5: Final = Family(name="qwen3_5", build=build_qwen3_5, markers=(IMAGE,), around=(START, END))
