"""HunYuan-VL: patches of their own grid, a newline behind each row, positions of four axes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import template, text
from families.family import LAYERS, Family, chatml_tokenizer, save
from tiny_models import HIDDEN

_NAMED: Final = {"image_token": "<img>", "image_start_token": "<img_s>", "image_end_token": "<img_e>"}


def build(directory: Path) -> None:
    tokenizer = chatml_tokenizer("<img_n>", **_NAMED)
    processor = hf.HunYuanVLProcessor(
        image_processor=hf.HunYuanVLImageProcessor(
            patch_size=4, size={"shortest_edge": 8 * 8, "longest_edge": 32 * 32}
        ),
        tokenizer=tokenizer, chat_template=template("<img_s><img><img_e>"),
    )  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2, 2]}
    vision = {
        **LAYERS, "out_hidden_size": HIDDEN, "patch_size": 4, "img_max_token_num": 64, "max_image_size": 64,
        "min_image_size": 8, "text_hidden_size": HIDDEN,
    }  # fmt: skip
    config = hf.HunYuanVLConfig(
        text_config=text(tokenizer, rope_parameters=rope, head_dim=16), vision_config=vision,
        image_token_id=tokenizer.image_token_id, im_start_id=tokenizer.image_start_token_id,
        im_end_id=tokenizer.image_end_token_id, im_newline_id=tokenizer.convert_tokens_to_ids("<img_n>"),
    )  # fmt: skip
    save(directory, hf.HunYuanVLForConditionalGeneration, config, processor)


HUNYUAN_VL: Final = Family(
    name="hunyuan_vl", build=build, markers=("<img>",), around=("<img_s>", "<img_e>"), rows_of_a_step=1,
    one_by_one="a row's logits differ by .* with another row beside it",
)  # fmt: skip
