"""PerceptionLM: tiles of one size and the whole image, through a vision tower of timm.

One tile here: its processor raises where the images of a sample have different numbers of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import template
from families.family import Family, chatml_tokenizer, save, text_values
from tiny_models import HIDDEN


def build(directory: Path) -> None:
    words = chatml_tokenizer(image_token="<|image|>", video_token="<|video|>")
    processor = hf.PerceptionLMProcessor(
        hf.PerceptionLMVideoProcessor(), hf.PerceptionLMImageProcessor(tile_size=28, max_num_tiles=1), words,
        patch_size=14, pooling_ratio=1, chat_template=template("<|image|>"),
    )  # fmt: skip
    tower = {
        "embed_dim": HIDDEN, "depth": 2, "num_heads": 2, "img_size": [28, 28], "patch_size": [14, 14],
        "global_pool": "", "use_post_transformer_norm": False, "init_values": 0.1, "ref_feat_shape": [2, 2],
    }  # fmt: skip
    vision = {
        "model_type": "timm_wrapper", "architecture": "vit_pe_core_large_patch14_336", "model_args": tower,
        "hidden_size": HIDDEN, "num_labels": 0,
    }  # fmt: skip
    config = hf.PerceptionLMConfig(
        vision_config=vision, text_config=hf.LlamaConfig(**text_values(words)), image_token_id=words.image_token_id,
        video_token_id=words.video_token_id, vision_use_cls_token=True, projector_pooling_ratio=1,
        tie_word_embeddings=False,
    )  # fmt: skip
    save(directory, hf.PerceptionLMForConditionalGeneration, config, processor)


PERCEPTION_LM: Final = Family(name="perception_lm", build=build, markers=("<|image|>",))
