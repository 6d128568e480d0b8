"""Molmo 2: crops and the whole image in pooled patches, a column token behind each row; BOS by its processor."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import template
from families.family import LAYERS, Family, chatml_tokenizer, save, text_values
from tiny_models import HIDDEN

_TOKENS: Final = (
    "<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>", "<frame_end>",
    "<im_low>",
)  # fmt: skip


def build(directory: Path) -> None:
    tokenizer = chatml_tokenizer(*_TOKENS, image_token="<|image|>", video_token="<|video|>")
    processor = hf.Molmo2Processor(
        hf.Molmo2ImageProcessor(size={"height": 16, "width": 16}, patch_size=4, max_crops=2, overlap_margins=[0, 0]),
        hf.Molmo2VideoProcessor(), tokenizer, chat_template=template("<|image|>"),
    )  # fmt: skip
    ids = {"image_start_token_id": "<im_start>", "low_res_image_start_token_id": "<low_res_im_start>",
           "image_end_token_id": "<im_end>", "image_patch_id": "<im_patch>", "image_col_id": "<im_col>",
           "frame_start_token_id": "<frame_start>", "frame_end_token_id": "<frame_end>"}  # fmt: skip
    adapter = {
        "hidden_size": HIDDEN, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 64, "text_hidden_size": HIDDEN, "vision_feature_layer": [1, 0],
    }  # fmt: skip
    config = hf.Molmo2Config(
        vision_config={**LAYERS, "num_key_value_heads": 2, "head_dim": 16, "image_size": [16, 16], "patch_size": 4},
        adapter_config=adapter, text_config=text_values(tokenizer, additional_vocab_size=8),
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in ids.items()},
    )  # fmt: skip
    save(directory, hf.Molmo2ForConditionalGeneration, config, processor)


MOLMO2: Final = Family(
    name="molmo2", build=build, rows_of_a_step=1, one_by_one="a row's logits differ by .* with another row beside it",
    markers=("<low_res_im_start>", "<im_patch>", "<im_col>", "<im_end>", "<im_start>"),
)  # fmt: skip
